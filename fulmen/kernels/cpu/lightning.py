"""`lightning_attention` in C++, and its gradients as lightning attention itself."""

import functools
import math
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulmen.kernels.cpu.extension import DTYPES, address, loaded
from fulmen.kernels.gradients import needs_gradient
from fulmen.kernels.lengths import Lengths

States = tuple[Tensor, Tensor, Tensor]
"""Fields of `LightningCarry`: kv_state, k_tail, v_tail."""

_CHUNK: Final = 64
"""Tokens in a chunk, kChunk of csrc/lightning.h."""


def lightning_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope_rate: Tensor,
    *,
    lengths: Lengths,
    states: States | None,
) -> Tensor:
    """Attend with decay: (T, H, D) each, (H,) -> (T, H, D); differentiable without states."""
    decays = _decays(tuple(slope_rate.tolist()))
    if needs_gradient(q, k, v):
        out: Tensor = _Lightning.apply(q, k, v, decays, lengths)  # type: ignore[no-untyped-call]
        return out
    return _run(q, k, v, decays, lengths, states)


@functools.lru_cache(maxsize=1024)
def _decays(slope_rate: tuple[float, ...]) -> Tensor:
    """Return exp(-slope_rate n) as (H, 65) float32.

    Computed in float64 by the C library, not by torch, whose vector code and its remainder may
    round differently: a head's values must not depend on the other heads.
    """
    table = [[math.exp(-slope * n) for n in range(_CHUNK + 1)] for slope in slope_rate]
    return torch.tensor(table, dtype=torch.float64).float()


class _Lightning(torch.autograd.Function):
    """The kernel on whole sequences, forward and backward.

    Each gradient is lightning attention, forward or backward in time, because out_i sums
    (q_i k_j) lambda^(i-j) v_j over j <= i:

        dq_i = sum over j <= i of (dout_i v_j) lambda^(i-j) k_j
        dk_j = sum over i >= j of (v_j dout_i) lambda^(i-j) q_i
        dv_j = sum over i >= j of (k_j q_i) lambda^(i-j) dout_i

    That is a sixth more work than a backward pass of its own, and no chunk states are kept.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, decays: Tensor, lengths: Lengths
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        # Not saved as tensors: the engine may have made them in inference mode.
        ctx.others = decays, lengths
        return _run(q, k, v, decays, lengths)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        decays, lengths = ctx.others
        wants_q, wants_k, wants_v, *_ = ctx.needs_input_grad
        # Side by side, as `split_qkv` joins them without a copy.
        dq, dk, dv = q.new_empty(*q.shape[:2], 3 * q.shape[2]).chunk(3, -1)
        if wants_q:
            _run(dout, v, k, decays, lengths, out=dq)
        if wants_k:
            _run(v, dout, q, decays, lengths, out=dk, is_reversed=True)
        if wants_v:
            _run(k, q, dout, decays, lengths, out=dv, is_reversed=True)
        return (
            dq if wants_q else None,
            dk if wants_k else None,
            dv if wants_v else None,
            None,
            None,
        )


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decays: Tensor,
    lengths: Lengths,
    states: States | None = None,
    *,
    out: Tensor | None = None,
    is_reversed: bool = False,
) -> Tensor:
    """One call of the kernel, from the last token to the first if reversed; out (T, H, D), of any
    strides but the last, receives the result."""
    num_tokens, num_heads, head_dim = q.shape
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype) if out is None else out
    cu_seqlens = lengths.cu_seqlens
    if is_reversed:
        cu_seqlens = num_tokens - cu_seqlens.flip(0)
    tokens: dict[str, int] = {}
    for name, x in (("q", q), ("k", k), ("v", v), ("out", out)):
        first, stride = x.data_ptr(), x.stride(0)
        if is_reversed:  # begin at the last token and step back
            first += (num_tokens - 1) * stride * x.element_size()
            stride = -stride
        tokens |= {name: first, f"{name}_token": stride, f"{name}_head": x.stride(1)}
    kv_state, k_tail, v_tail = states or (None, None, None)
    loaded().lightning(
        **tokens,
        dtype=DTYPES[q.dtype],
        num_sequences=lengths.num_sequences,
        num_heads=num_heads,
        head_dim=head_dim,
        cu_seqlens=cu_seqlens.data_ptr(),
        context_lens=0 if states is None else lengths.context_lens.data_ptr(),
        decays=decays.data_ptr(),
        slots=0 if states is None else address(lengths.slots),
        kv_state=address(kv_state),
        k_tail=address(k_tail),
        v_tail=address(v_tail),
    )
    return out
