"""`rotate` and `rotary_angles` in C++."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulmen.kernels.cpu.extension import DTYPES, address, dense_rows, loaded
from fulmen.kernels.cpu.norms import norm_backward
from fulmen.kernels.gradients import needs_gradient


def rotate(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    head_dim: int,
    norms: Sequence[Tensor],
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Turn (T, H * D), (T, Hkv * D) -> (T, H, D), (T, Hkv, D); norms has two weights or none."""
    if needs_gradient(q, k, *norms):
        turned: tuple[Tensor, Tensor] = _Rotate.apply(  # type: ignore[no-untyped-call]
            q, k, cos, sin, head_dim, eps, *norms
        )
        return turned
    return _rotate(q, k, cos, sin, head_dim, eps, norms)


def _rotate(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    head_dim: int,
    eps: float,
    norms: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    q, k = dense_rows(q), dense_rows(k)
    q_out = q.new_empty(len(q), q.shape[1] // head_dim, head_dim)
    k_out = k.new_empty(len(k), k.shape[1] // head_dim, head_dim)
    # Names keep converted copies alive until the kernel has run.
    cos, sin = cos.float().contiguous(), sin.float().contiguous()
    q_norm, k_norm = (x.contiguous() for x in norms) if norms else (None, None)
    loaded().rotate(
        q=q.data_ptr(),
        q_stride=q.stride(0),
        q_norm=address(q_norm),
        q_out=q_out.data_ptr(),
        num_heads=q_out.shape[1],
        k=k.data_ptr(),
        k_stride=k.stride(0),
        k_norm=address(k_norm),
        k_out=k_out.data_ptr(),
        num_kv_heads=k_out.shape[1],
        dtype=DTYPES[q.dtype],
        num_tokens=len(q),
        head_dim=head_dim,
        half=cos.shape[1],
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        eps=eps,
    )
    return q_out, k_out


class _Rotate(torch.autograd.Function):
    """Backward turns the other way, then goes through the norms, if there are any."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        cos: Tensor,
        sin: Tensor,
        head_dim: int,
        eps: float,
        *norms: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*((q, k, *norms) if norms else ()))
        # Not saved as tensors: the engine may have made the angles in inference mode.
        ctx.others = cos, sin, head_dim, eps
        return _rotate(q, k, cos, sin, head_dim, eps, norms)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin, head_dim, eps = ctx.others
        rows = dq.flatten(1), dk.flatten(1)
        dq, dk = (x.flatten(1) for x in _rotate(*rows, cos, -sin, head_dim, eps))
        if not ctx.saved_tensors:
            return dq, dk, None, None, None, None
        wants_q, wants_k, *_, wants_q_norm, wants_k_norm = ctx.needs_input_grad
        q, k, q_norm, k_norm = ctx.saved_tensors
        found_q = norm_backward(q, q_norm, eps, dq, wants=(wants_q, wants_q_norm, False, False))
        found_k = norm_backward(k, k_norm, eps, dk, wants=(wants_k, wants_k_norm, False, False))
        return found_q[0], found_k[0], None, None, None, None, found_q[1], found_k[1]


def rotary_angles(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin (T, half) float32 of positions (T,) times frequencies (half,).

    Not torch's cos, whose value may differ with an element's place in the tensor.
    """
    positions = positions.long().contiguous()
    cos = torch.empty(len(positions), len(frequencies))
    sin = torch.empty_like(cos)
    loaded().rotary_angles(
        positions=positions.data_ptr(),
        frequencies=frequencies.data_ptr(),
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        num_tokens=len(positions),
        half=len(frequencies),
    )
    return cos, sin
