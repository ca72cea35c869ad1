"""Rotary position embedding, and the norm of heads before it."""

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulmen.kernels.backends import DTYPES, native, native_alike, needs_gradient
from fulmen.kernels.norms import norm_backward
from fulmen.kernels.pages import rows_of


def rotate(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    head_dim: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Queries and keys as attention takes them: normalised over all heads together, if there are
    weights for it, then turned.

    q, k            (T, H * D), (T, Hkv * D)   rows may lie apart, as parts of wider ones
    cos, sin        (T, rotary_dim / 2)        float32, of `rotary_angles`
    q_norm, k_norm  (H * D,), (Hkv * D,)       weights of RMSNorm(eps), or none

    Dimension j < rotary_dim / 2 of a head turns with j + rotary_dim / 2, those from rotary_dim on
    pass through. Sums, norm and rotation are in float32, rounded after each of scale, weight and
    rotation. Returns (T, H, D) and (T, Hkv, D); differentiable in q, k and the weights.
    """
    if cos.shape != (len(q), cos.shape[-1]) or cos.shape != sin.shape or len(k) != len(q):
        raise ValueError(
            f"q and k have {len(q)} and {len(k)} tokens, cos and sin shapes {tuple(cos.shape)} and "
            f"{tuple(sin.shape)}, needed is one row a token"
        )
    if 2 * cos.shape[-1] > head_dim or q.shape[1] % head_dim or k.shape[1] % head_dim:
        raise ValueError(
            f"rows of {q.shape[1]} and {k.shape[1]} and rotary_dim {2 * cos.shape[-1]} do not fit "
            f"head_dim {head_dim}"
        )
    if (q_norm is None) != (k_norm is None):
        raise ValueError("q_norm and k_norm go together, one is missing")
    norms = [] if q_norm is None or k_norm is None else [q_norm, k_norm]
    for norm, rows in zip(norms, (q, k), strict=False):
        if norm.shape != rows.shape[1:]:
            raise ValueError(
                f"a norm has {norm.numel()} weights for rows of {rows.shape[1]}, needed is one each"
            )

    extension = native_alike(q, k, *norms)
    if extension is None:
        if norms:
            q, k = _normalise(q, norms[0], eps), _normalise(k, norms[1], eps)
        return _turn(q, cos, sin, head_dim), _turn(k, cos, sin, head_dim)
    if needs_gradient(q, k, *norms):
        turned: tuple[Tensor, Tensor] = _Rotate.apply(  # type: ignore[no-untyped-call]
            q, k, extension, cos, sin, head_dim, eps, *norms
        )
        return turned
    return _rotate(extension, q, k, cos, sin, head_dim, eps, norms)


def _rotate(
    extension: ModuleType,
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    head_dim: int,
    eps: float,
    norms: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    q, k = rows_of(q), rows_of(k)
    q_out = q.new_empty(len(q), q.shape[1] // head_dim, head_dim)
    k_out = k.new_empty(len(k), k.shape[1] // head_dim, head_dim)
    # Names hold what a conversion may copy until the kernel has run.
    c, s = cos.float().contiguous(), sin.float().contiguous()
    weights = [x.contiguous() for x in norms]
    q_weight, k_weight = (x.data_ptr() for x in weights) if weights else (0, 0)
    extension.rotate(
        q=q.data_ptr(),
        q_stride=q.stride(0),
        q_norm=q_weight,
        q_out=q_out.data_ptr(),
        num_heads=q_out.shape[1],
        k=k.data_ptr(),
        k_stride=k.stride(0),
        k_norm=k_weight,
        k_out=k_out.data_ptr(),
        num_kv_heads=k_out.shape[1],
        dtype=DTYPES[q.dtype],
        num_tokens=len(q),
        head_dim=head_dim,
        half=c.shape[1],
        cos=c.data_ptr(),
        sin=s.data_ptr(),
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
        extension: ModuleType,
        cos: Tensor,
        sin: Tensor,
        head_dim: int,
        eps: float,
        *norms: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*((q, k, *norms) if norms else ()))
        # Not saved as tensors: the angles may have been made in inference mode.
        ctx.others = extension, cos, sin, head_dim, eps
        return _rotate(extension, q, k, cos, sin, head_dim, eps, norms)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
        extension, cos, sin, head_dim, eps = ctx.others
        rows = dq.flatten(1), dk.flatten(1)
        dq, dk = (x.flatten(1) for x in _rotate(extension, *rows, cos, -sin, head_dim, eps))
        if not ctx.saved_tensors:
            return dq, dk, None, None, None, None, None
        q, k, q_norm, k_norm = ctx.saved_tensors
        dq, dq_norm, *_ = norm_backward(q, q_norm, eps, dq)
        dk, dk_norm, *_ = norm_backward(k, k_norm, eps, dk)
        return dq, dk, None, None, None, None, None, dq_norm, dk_norm


def rotary_angles(positions: Tensor, rotary_dim: int, rope_theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin (T, rotary_dim / 2) float32 of position * rope_theta^(-2j / rotary_dim), for
    positions (T,) int64; never a table of the whole context.

    The angle is rounded to float32 also for a float64 model, as in the reference implementations.
    """
    frequencies = _frequencies(rotary_dim, rope_theta, positions.device)
    extension = native() if positions.device.type == "cpu" else None
    if extension is None:
        angles = positions.float()[:, None] * frequencies
        return angles.cos(), angles.sin()
    positions = positions.long().contiguous()
    # Not torch's cos: its value may differ with the place of an element in the tensor.
    cos = torch.empty(len(positions), len(frequencies))
    sin = torch.empty_like(cos)
    extension.rotary_angles(
        positions=positions.data_ptr(),
        frequencies=frequencies.data_ptr(),
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        num_tokens=len(positions),
        half=len(frequencies),
    )
    return cos, sin


@functools.lru_cache(maxsize=64)
def _frequencies(rotary_dim: int, rope_theta: float, device: torch.device) -> Tensor:
    exponents = torch.arange(0, rotary_dim, 2, device=device).float() / rotary_dim
    return 1.0 / rope_theta**exponents


def _normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of rows (T, C)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, head_dim: int) -> Tensor:
    """(T, H * D) -> (T, H, D)"""
    x = x.reshape(len(x), -1, head_dim)
    half = cos.shape[-1]
    wide = x[..., : 2 * half].to(torch.promote_types(x.dtype, torch.float32))
    a, b, c, s = wide[..., :half], wide[..., half:], cos[:, None], sin[:, None]
    turned = torch.cat((a * c - b * s, b * c + a * s), -1)
    return torch.cat((turned.to(x.dtype), x[..., 2 * half :]), -1)
