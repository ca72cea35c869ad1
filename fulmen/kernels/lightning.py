"""Lightning attention: causal linear attention whose state fades by exp(-slope_rate) at each token.

The one idea is the canonical chunk. Time is cut into chunks of 64 tokens counted from position 0 of
each sequence, and what a sequence carries between calls is the state at its last chunk boundary
plus the keys and values since. So a token meets the same operands in the same order in prefill, in
chunked prefill and in decode. cpu/csrc/lightning.h keeps this to the bit. The torch code here is
the definition, for other devices and dtypes; it keeps it up to rounding.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulmen.kernels.backends import backend_for
from fulmen.kernels.gradients import needs_gradient
from fulmen.kernels.lengths import Lengths, lengths_of

CHUNK: Final = 64
"""Tokens in a chunk; boundaries are multiples of it, counted from position 0 of a sequence."""


class LightningCarry(NamedTuple):
    """State of sequences between two calls, each in a slot of its own."""

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
    """Return o_t = q_t S_t with S_t = exp(-slope_rate) S_{t-1} + k_t v_t^T (arXiv:2501.08313).

    q, k, v        (T, H, D)    packed tokens, any float dtype, any strides
    slope_rate     (H,)         float32, positive; gets no gradient
    states         (S, ...)     updated in place; if omitted, sequences start from zero and leave
                                nothing behind
    lengths        new and past tokens of each sequence, and its slot; or instead of lengths:
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
    backend = backend_for(q, k, v)
    if backend is None:
        return _reference(q, k, v, slope_rate, lengths, states)
    return backend.lightning_attention(q, k, v, slope_rate, lengths=lengths, states=states)


def split_qkv(rows: Tensor, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v of rows in which each head has them side by side.

    rows      (T, H * 3 * D)   any float dtype, contiguous
    head_dim  D

    Returns views (T, H, D). Differentiable: gradients that lie side by side again, as those of
    `lightning_attention` on a CPU do, are joined without a copy.
    """
    if rows.shape[-1] % (3 * head_dim) != 0:
        raise ValueError(
            f"rows have {rows.shape[-1]} columns, q, k and v of heads need a multiple of "
            f"{3 * head_dim}"
        )
    if needs_gradient(rows):
        q, k, v = _Split.apply(rows, head_dim)  # type: ignore[no-untyped-call]
        return q, k, v
    q, k, v = rows.view(len(rows), -1, 3 * head_dim).chunk(3, -1)
    return q, k, v


class _Split(torch.autograd.Function):
    """Views forward; backward the tensor that the gradients are views of, or a copy of them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, head_dim: int) -> tuple[Tensor, ...]:
        return rows.view(len(rows), -1, 3 * head_dim).chunk(3, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        first = gradients[0]
        num_tokens, num_heads, head_dim = first.shape
        is_joined = all(
            gradient.dtype == first.dtype
            and gradient.stride() == (num_heads * 3 * head_dim, 3 * head_dim, 1)
            and gradient.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
            and gradient.storage_offset() == first.storage_offset() + i * head_dim
            for i, gradient in enumerate(gradients)
        )
        width = num_heads * 3 * head_dim
        if is_joined:
            return first.as_strided((num_tokens, width), (width, 1)), None
        return torch.cat(gradients, -1).view(num_tokens, width), None


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
    _, num_heads, head_dim = q.shape
    if slope_rate.shape != (num_heads,):
        raise ValueError(
            f"slope_rate has shape {tuple(slope_rate.shape)}, q has {num_heads} heads, each needs "
            "one"
        )
    lengths.check_fits(q)
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


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope_rate: Tensor,
    lengths: Lengths,
    states: LightningCarry | None,
) -> Tensor:
    """Compute the definition: all chunks of all sequences at once, then a scan over states."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    grid = _Grid(lengths.host_seqlens, lengths.host_context_lens, q.device)
    slots = lengths.host_slots or ()
    q_heads, k_heads, v_heads = (grid.place(x.to(dtype)) for x in (q, k, v))  # (chunks, H, 64, D)
    if states is not None:
        grid.read_tails(k_heads, states.k_tail, slots)
        grid.read_tails(v_heads, states.v_tail, slots)

    slopes = slope_rate.to(dtype)[:, None, None]  # (H, 1, 1)
    i = torch.arange(1, CHUNK + 1, device=q.device, dtype=dtype)
    # Every exponent is at most 0: exp(+slope j), factored out of the mask, would overflow where a
    # head fades fast.
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
    """Places of packed tokens in the 64-row chunks of their sequences."""

    def __init__(self, lens: Sequence[int], past: Sequence[int], device: torch.device) -> None:
        self.past = past
        self.first_chunks: list[int] = []  # of each sequence, in the grid
        self.full_chunks: list[int] = []  # number of its chunks that end at a boundary
        self.num_chunks = 0
        self.new_tail_lens: list[int] = []
        rows: list[Tensor] = []
        for context, length in zip(past, lens, strict=True):
            tail = context % CHUNK
            self.first_chunks.append(self.num_chunks)
            self.full_chunks.append((tail + length) // CHUNK)
            self.new_tail_lens.append((tail + length) % CHUNK)
            rows.append(torch.arange(length) + (self.num_chunks * CHUNK + tail))
            # After the full chunks comes that of the tail, which may be empty.
            self.num_chunks += self.full_chunks[-1] + 1
        self.rows = torch.cat(rows).to(device)  # (T,) row of each token in the flattened grid

    def place(self, x: Tensor) -> Tensor:
        """Spread tokens: (T, H, D) -> (chunks, H, 64, D), zero where no token stands."""
        flat = x.new_zeros(self.num_chunks * CHUNK, *x.shape[1:])
        return flat.index_copy(0, self.rows, x).view(-1, CHUNK, *x.shape[1:]).transpose(1, 2)

    def take(self, grid: Tensor) -> Tensor:
        """Collect tokens: (chunks, H, 64, D) -> (T, H, D)."""
        return grid.transpose(1, 2).flatten(0, 1)[self.rows]

    def read_tails(self, grid: Tensor, tails: Tensor, slots: Sequence[int]) -> None:
        """Put the carried rows of (S, H, 64, D) before the new ones of each first chunk."""
        for chunk, context, slot in zip(self.first_chunks, self.past, slots, strict=True):
            length = context % CHUNK
            grid[chunk, :, :length] = tails[slot, :, :length].to(grid.dtype)

    def write_tails(self, grid: Tensor, tails: Tensor, slots: Sequence[int]) -> None:
        """Store the open chunk of each sequence in (S, H, 64, D)."""
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
        """Return the state before every chunk (chunks, H, D, D); store each sequence's last."""
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
