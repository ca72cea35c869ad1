"""Rotary position embedding, and the norm of queries and keys before it."""

import functools

import torch
from torch import Tensor

from fulmen.kernels.backends import backend_for, backend_for_alike
from fulmen.kernels.norms import rms_norm_reference


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
    """Turn queries and keys as attention takes them, after a norm over all heads if it is given.

    q, k            (T, H * D), (T, Hkv * D)   rows may be parts of wider ones
    cos, sin        (T, rotary_dim / 2)        float32, of `rotary_angles`
    q_norm, k_norm  (H * D,), (Hkv * D,)       weights of RMSNorm(eps), or None

    Dimension j < rotary_dim / 2 of a head turns with dimension j + rotary_dim / 2; dimensions from
    rotary_dim on pass through. Computed in float32 and rounded after each of scale, weight and
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

    backend = backend_for_alike(q, k, *norms)
    if backend is not None:
        return backend.rotate(q, k, cos, sin, head_dim=head_dim, norms=norms, eps=eps)
    if norms:
        q, k = rms_norm_reference(q, norms[0], eps), rms_norm_reference(k, norms[1], eps)
    return _turn(q, cos, sin, head_dim), _turn(k, cos, sin, head_dim)


def rotary_angles(positions: Tensor, rotary_dim: int, rope_theta: float) -> tuple[Tensor, Tensor]:
    """Return cos and sin of position * rope_theta^(-2j / rotary_dim), for these positions only.

    positions   (T,)   integers
    rotary_dim  even; j runs below rotary_dim / 2

    Returns (T, rotary_dim / 2) twice, float32: also for a float64 model the angle is rounded to
    float32, as in the reference implementations.
    """
    frequencies = rotary_frequencies(rotary_dim, rope_theta, positions.device)
    backend = backend_for(frequencies)
    if backend is not None:
        return backend.rotary_angles(positions, frequencies)
    angles = positions.float()[:, None] * frequencies
    return angles.cos(), angles.sin()


@functools.lru_cache(maxsize=64)
def rotary_frequencies(rotary_dim: int, rope_theta: float, device: torch.device) -> Tensor:
    """Return rope_theta^(-2j / rotary_dim) for j below rotary_dim / 2, float32.

    The power is torch's: the one function of torch that takes part in bits (see numerics.py).
    """
    exponents = torch.arange(0, rotary_dim, 2, device=device).float() / rotary_dim
    return 1.0 / rope_theta**exponents


def _turn(x: Tensor, cos: Tensor, sin: Tensor, head_dim: int) -> Tensor:
    """Rotate heads: (T, H * D) -> (T, H, D)."""
    x = x.reshape(len(x), -1, head_dim)
    half = cos.shape[-1]
    wide = x[..., : 2 * half].to(torch.promote_types(x.dtype, torch.float32))
    a, b, c, s = wide[..., :half], wide[..., half:], cos[:, None], sin[:, None]
    turned = torch.cat((a * c - b * s, b * c + a * s), -1)
    return torch.cat((turned.to(x.dtype), x[..., 2 * half :]), -1)
