"""Lightning attention: causal linear attention whose state fades by exp(-slope_rate) at each token.

The one idea is the canonical chunk. Time is cut into chunks of 64 tokens counted from position 0 of
each sequence, and what a sequence carries between calls is the state at its last chunk boundary
plus the keys and values since. So a token meets the same operands in the same order in prefill, in
chunked prefill and in decode. csrc/lightning.h does it bit for bit; the torch code here is the
definition, for GPUs, float64 and machines without the extension, exact up to rounding.
"""

import functools
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulmen.kernels.backends import DTYPES, native_for, needs_gradient
from fulmen.kernels.lengths import Lengths, lengths_of

CHUNK = 64
"""Tokens in a chunk; boundaries are multiples of it, counted from position 0 of a sequence."""


class LightningCarry(NamedTuple):
    """What sequences carry from one call to the next, each in a slot of its own."""

    kv_state: Tensor
    """(S, H, D, D) float32: sum over keys before the last chunk boundary, faded to that boundary;
    indices are slot, head, key dimension, value dimension."""
    k_tail: Tensor
    """(S, H, 64, D): the keys since the boundary in the first rows; later rows are ignored."""
    v_tail: Tensor
    """(S, H, 64, D): the values since the boundary."""


def lightning_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope_rate: Tensor,
    *,
    lengths: Lengths | None = None,
    states: LightningCarry | None = None,
    cu_seqlens: Tensor | None = None,
    context_lens: Tensor | None = None,
    slots: Tensor | None = None,
) -> Tensor:
    """o_t = q_t S_t with S_t = exp(-slope_rate) S_{t-1} + k_t v_t^T (arXiv:2501.08313).

    q, k, v        (T, H, D)    packed tokens, any float dtype, any strides
    slope_rate     (H,)         float32, positive; gets no gradient
    states         (S, ...)     updated in place; if omitted, sequences start from zero and leave
                                nothing behind
    lengths        new and past tokens of each sequence, and its slot, or instead of it:
    cu_seqlens     (N + 1,)     int32: sequence n owns tokens cu_seqlens[n] to cu_seqlens[n + 1]
    context_lens   (N,)         int32: tokens of each sequence before this call; zeros if omitted
    slots          (N,)         int64: the row of each sequence in states; needed with states

    A sequence without context starts from zero whatever its slot holds. Returns the output
    (T, H, D) in q's dtype; sums are in float32 (float64 for float64 inputs).
    """
    if lengths is None and (states is None) != (slots is None):
        raise ValueError("states and slots are needed together, only one is given")
    lengths = lengths_of(lengths, cu_seqlens, context_lens, slots)
    _check(q, k, v, slope_rate, lengths, states)
    extension = native_for(q, k, v)
    if extension is None:
        return _reference(q, k, v, slope_rate, lengths, states)
    decays = _decays(tuple(slope_rate.tolist()))
    if needs_gradient(q, k, v):
        out: Tensor = _Native.apply(q, k, v, extension, decays, lengths)  # type: ignore[no-untyped-call]
        return out
    return _run(extension, q, k, v, decays, lengths, states)


def kv_state_at(carry: LightningCarry, slope_rate: Tensor, context_lens: Tensor) -> Tensor:
    """The recurrent state (N, H, D, D) float32 after all context_lens (N,) tokens of each sequence.

    Sequence n is in row n of the carry. Between chunk boundaries no kernel needs this; it is what
    the recurrence of the paper calls S_t.
    """
    dtype = carry.kv_state.dtype
    tails = (context_lens % CHUNK).tolist()
    states = []
    for n, length in enumerate(tails):
        k, v = (tail[n, :, :length].to(dtype) for tail in (carry.k_tail, carry.v_tail))  # (H, t, D)
        age = torch.arange(length - 1, -1, -1, device=k.device)  # (t,)
        fade = torch.exp(-slope_rate[:, None] * age)  # (H, t)
        decay = torch.exp(-slope_rate * length)[:, None, None]
        states.append(decay * carry.kv_state[n] + (k * fade[..., None]).mT @ v)
    return torch.stack(states)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope_rate: Tensor,
    lengths: Lengths,
    states: LightningCarry | None,
) -> None:
    """Raise ValueError unless all fit together: the kernel writes to memory by these numbers."""
    if not (q.ndim == 3 and q.shape == k.shape == v.shape and q.dtype == k.dtype == v.dtype):
        found = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in (q, k, v))
        raise ValueError(f"q, k and v are {found}, all must be (T, H, D) of one dtype")
    num_tokens, num_heads, head_dim = q.shape
    if slope_rate.shape != (num_heads,):
        raise ValueError(
            f"slope_rate has shape {tuple(slope_rate.shape)}, q has {num_heads} heads, each needs "
            "one"
        )
    lengths.check_tokens(num_tokens)
    if states is None:
        if any(lengths.host_context_lens):
            raise ValueError("context_lens is not zero, so states are needed")
        return
    if needs_gradient(q, k, v):
        raise ValueError(
            "states carry no gradient, train on whole sequences or use torch.no_grad()"
        )
    num_slots = len(states.kv_state)
    shapes = (head_dim, head_dim), (CHUNK, head_dim), (CHUNK, head_dim)
    sum_dtype = torch.promote_types(q.dtype, torch.float32)
    dtypes = sum_dtype, q.dtype, q.dtype
    for name, state, shape, dtype in zip(states._fields, states, shapes, dtypes, strict=True):
        wanted = (num_slots, num_heads, *shape)
        if state.shape != wanted or state.dtype != dtype or not state.is_contiguous():
            raise ValueError(
                f"{name} is {tuple(state.shape)} {state.dtype}, it must be {wanted} {dtype}, "
                "contiguous"
            )
    rows = lengths.host_slots
    if rows is None:
        raise ValueError("states are given without slots, each sequence needs one in Lengths")
    if max(rows) >= num_slots:
        raise ValueError(f"slots is {list(rows)}, the states have {num_slots}")


@functools.lru_cache(maxsize=1024)
def _decays(slope_rate: tuple[float, ...]) -> Tensor:
    """(H, 65) float32: exp(-slope_rate n), from float64, by the C library and not by torch, whose
    vectors and leftovers may round apart: a head's values do not depend on the other heads."""
    table = [[math.exp(-slope * n) for n in range(CHUNK + 1)] for slope in slope_rate]
    return torch.tensor(table, dtype=torch.float64).float()


class _Native(torch.autograd.Function):
    """The C++ kernel on whole sequences, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extension: ModuleType,
        decays: Tensor,
        lengths: Lengths,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        # Not saved as tensors: the table may have been made in inference mode, by the engine.
        ctx.others = extension, decays, lengths
        return _run(extension, q, k, v, decays, lengths)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Each gradient is lightning attention itself, forward or backward in time, because out_i
        sums (q_i k_j) lambda^(i-j) v_j over j <= i:

            dq_i = sum over j <= i of (dout_i v_j) lambda^(i-j) k_j
            dk_j = sum over i >= j of (v_j dout_i) lambda^(i-j) q_i
            dv_j = sum over i >= j of (k_j q_i) lambda^(i-j) dout_i

        A sixth more work than a backward pass of its own would need, and no states of chunks to
        keep.
        """
        q, k, v = ctx.saved_tensors
        extension, decays, lengths = ctx.others
        dq = _run(extension, dout, v, k, decays, lengths)
        dk = _run(extension, v, dout, q, decays, lengths, is_reversed=True)
        dv = _run(extension, k, q, dout, decays, lengths, is_reversed=True)
        return dq, dk, dv, None, None, None


def _run(
    extension: ModuleType,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decays: Tensor,
    lengths: Lengths,
    states: LightningCarry | None = None,
    *,
    is_reversed: bool = False,
) -> Tensor:
    """One call of the kernel, from the last token to the first if reversed."""
    num_tokens, num_heads, head_dim = q.shape
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype)
    cu_seqlens = lengths.cu_seqlens
    if is_reversed:
        cu_seqlens = num_tokens - cu_seqlens.flip(0)
    tokens: list[int] = []
    for x in (q, k, v, out):
        address, stride = x.data_ptr(), x.stride(0)
        if is_reversed:
            address += (num_tokens - 1) * stride * x.element_size()
            stride = -stride
        tokens += (address, stride, x.stride(1))
    extension.lightning(
        *tokens,
        DTYPES[q.dtype],
        lengths.num_sequences,
        num_heads,
        head_dim,
        cu_seqlens.data_ptr(),
        lengths.context_lens.data_ptr() if states is not None else 0,
        decays.data_ptr(),
        0 if states is None or lengths.slots is None else lengths.slots.data_ptr(),
        *((0, 0, 0) if states is None else (x.data_ptr() for x in states)),
    )
    return out


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope_rate: Tensor,
    lengths: Lengths,
    states: LightningCarry | None,
) -> Tensor:
    """The definition, in torch: all chunks of all sequences at once, then a scan over states."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    grid = _Grid(lengths.host_seqlens, lengths.host_context_lens, q.device)
    slots = lengths.host_slots or ()
    q_heads, k_heads, v_heads = (grid.place(x.to(dtype)) for x in (q, k, v))  # (chunks, H, 64, D)
    if states is not None:
        grid.read_tails(k_heads, states.k_tail, slots)
        grid.read_tails(v_heads, states.v_tail, slots)

    slopes = slope_rate.to(dtype)[:, None, None]  # (H, 1, 1)
    i = torch.arange(1, CHUNK + 1, device=q.device, dtype=dtype)
    # Every exponent is at most 0. Factoring exp(+slope j) out of the mask would overflow for fast
    # heads.
    causal = (i[:, None] - i[None, :]).clamp(min=0)
    mask = torch.exp(-slopes * causal).tril()  # (H, 64, 64)
    from_start = torch.exp(-slopes * i[:, None])  # (H, 64, 1)
    to_end = torch.exp(-slopes * (CHUNK - i)[:, None])  # (H, 64, 1)
    chunk_decay = torch.exp(-slopes * CHUNK)  # (H, 1, 1)

    intra = ((q_heads @ k_heads.mT) * mask) @ v_heads
    added = (k_heads * to_end).mT @ v_heads  # (chunks, H, D, D), right for full chunks
    before = grid.scan(added, chunk_decay, states, slots)
    inter = (q_heads * from_start) @ before
    if states is not None:
        grid.write_tails(k_heads, states.k_tail, slots)
        grid.write_tails(v_heads, states.v_tail, slots)
    return grid.take(intra + inter).to(q.dtype)


class _Grid:
    """Where each packed token stands in the 64-row chunks of its sequence."""

    def __init__(self, lens: Sequence[int], past: Sequence[int], device: torch.device) -> None:
        self.past = past
        self.first_chunks: list[int] = []  # each sequence's first chunk in the grid
        self.full_chunks: list[int] = []  # how many of its chunks end at a boundary
        self.num_chunks = 0
        self.new_tail_lens: list[int] = []
        rows: list[Tensor] = []
        for context, length in zip(past, lens, strict=True):
            tail = context % CHUNK
            self.first_chunks.append(self.num_chunks)
            self.full_chunks.append((tail + length) // CHUNK)
            self.new_tail_lens.append((tail + length) % CHUNK)
            rows.append(torch.arange(length) + (self.num_chunks * CHUNK + tail))
            # One chunk more than the full ones: that of the tail, which may be empty.
            self.num_chunks += self.full_chunks[-1] + 1
        self.rows = torch.cat(rows).to(device)  # (T,) row of each token in the flattened grid

    def place(self, x: Tensor) -> Tensor:
        """(T, H, D) -> (chunks, H, 64, D), zero where no token stands."""
        flat = x.new_zeros(self.num_chunks * CHUNK, *x.shape[1:])
        return flat.index_copy(0, self.rows, x).view(-1, CHUNK, *x.shape[1:]).transpose(1, 2)

    def take(self, grid: Tensor) -> Tensor:
        """(chunks, H, 64, D) -> (T, H, D)"""
        return grid.transpose(1, 2).flatten(0, 1)[self.rows]

    def read_tails(self, grid: Tensor, tails: Tensor, slots: Sequence[int]) -> None:
        """Puts the carried rows of (S, H, 64, D) before the new ones of each first chunk."""
        for chunk, context, slot in zip(self.first_chunks, self.past, slots, strict=True):
            length = context % CHUNK
            grid[chunk, :, :length] = tails[slot, :, :length].to(grid.dtype)

    def write_tails(self, grid: Tensor, tails: Tensor, slots: Sequence[int]) -> None:
        """Stores the open chunk of each sequence in (S, H, 64, D)."""
        for first, full, length, slot in zip(
            self.first_chunks, self.full_chunks, self.new_tail_lens, slots, strict=True
        ):
            tails[slot, :, :length] = grid[first + full, :, :length].to(tails.dtype)

    def scan(
        self,
        added: Tensor,
        chunk_decay: Tensor,
        states: LightningCarry | None,
        slots: Sequence[int],
    ) -> Tensor:
        """The state before every chunk (chunks, H, D, D); stores the last of each sequence."""
        before: list[Tensor] = []
        for n, (first, full) in enumerate(zip(self.first_chunks, self.full_chunks, strict=True)):
            state = torch.zeros_like(added[0])
            if states is not None and self.past[n]:
                state += states.kv_state[slots[n]]
            before.append(state)
            for chunk in range(first, first + full):
                state = chunk_decay * state + added[chunk]
                before.append(state)
            if states is not None:
                states.kv_state[slots[n]] = state
        return torch.stack(before)
