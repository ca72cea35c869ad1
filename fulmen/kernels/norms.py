"""RMSNorm, with the residual before it or the gate after it, row by row in float32."""

import torch
from torch import Tensor

from fulmen.kernels.backends import backend_for_alike


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return weight * x / sqrt(mean(x^2) + eps), the mean in float32; x is rounded to its dtype
    before the weight. Differentiable.

    x (..., C), weight (C,) -> (..., C)
    """
    _check_shapes(x, weight)
    backend = backend_for_alike(x, weight)
    if backend is None:
        return rms_norm_reference(x, weight, eps)
    return backend.rms_norm(x, weight, eps)


def residual_norm(
    residual: Tensor,
    branch: Tensor,
    weight: Tensor,
    eps: float,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the stream alpha * residual + beta * branch, rounded once, and its RMSNorm.
    Differentiable.

    residual, branch (T, C), weight (C,) -> (T, C), (T, C)
    """
    _check_shapes(residual, weight, branch)
    backend = backend_for_alike(residual, branch, weight)
    if backend is None:
        return residual_norm_reference(residual, branch, weight, eps, alpha=alpha, beta=beta)
    return backend.residual_norm(residual, branch, weight, eps, alpha=alpha, beta=beta)


def add_residual(
    residual: Tensor, branch: Tensor, *, alpha: float = 1.0, beta: float = 1.0
) -> Tensor:
    """Return alpha * residual + beta * branch, rounded once. Differentiable.

    residual, branch (T, C) -> (T, C)
    """
    _check_shapes(residual, None, branch)
    backend = backend_for_alike(residual, branch)
    if backend is None:
        return add_residual_reference(residual, branch, alpha=alpha, beta=beta)
    return backend.add_residual(residual, branch, alpha=alpha, beta=beta)


def gated_norm(x: Tensor, weight: Tensor, gate_logits: Tensor, eps: float) -> Tensor:
    """Return sigmoid(gate_logits) * RMSNorm(x), rounded once after the gate. Differentiable.

    x, gate_logits (T, C), weight (C,) -> (T, C)
    """
    _check_shapes(x, weight, gate_logits)
    backend = backend_for_alike(x, weight, gate_logits)
    if backend is None:
        return gated_norm_reference(x, weight, gate_logits, eps)
    return backend.gated_norm(x, weight, gate_logits, eps)


def _check_shapes(x: Tensor, weight: Tensor | None, *others: Tensor | None) -> None:
    """Raise ValueError unless shapes fit: a kernel reads memory by these numbers."""
    if weight is not None and weight.shape != x.shape[-1:]:
        raise ValueError(f"the norm has {tuple(weight.shape)} weights for rows of {x.shape[-1]}")
    for other in others:
        if other is not None and other.shape != x.shape:
            raise ValueError(
                f"branch or gate has shape {tuple(other.shape)}, it must be that of x, "
                f"{tuple(x.shape)}"
            )


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def add_residual_reference(
    residual: Tensor, branch: Tensor, *, alpha: float, beta: float
) -> Tensor:
    """Return what `add_residual` does, in plain torch."""
    return (alpha * _wide(residual) + beta * _wide(branch)).to(residual.dtype)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return what `rms_norm` does, in plain torch."""
    wide = _wide(x)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def residual_norm_reference(
    residual: Tensor, branch: Tensor, weight: Tensor, eps: float, *, alpha: float, beta: float
) -> tuple[Tensor, Tensor]:
    """Return what `residual_norm` does, in plain torch."""
    stream = add_residual_reference(residual, branch, alpha=alpha, beta=beta)
    return stream, rms_norm_reference(stream, weight, eps)


def gated_norm_reference(x: Tensor, weight: Tensor, gate_logits: Tensor, eps: float) -> Tensor:
    """Return what `gated_norm` does, in plain torch."""
    wide = _wide(x)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normed = _wide(weight) * _wide((wide * scale).to(x.dtype))
    return (_wide(gate_logits).sigmoid() * normed).to(x.dtype)
