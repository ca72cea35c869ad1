"""RMSNorm, with the residual before it or the gate after it, row by row in float32."""

import torch
from torch import Tensor

from fulmen.kernels.native import DTYPES, native_for, needs_gradient, with_reference_gradient


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps): the mean in float32, x rounded to its dtype before the
    weight.

    x (..., C), weight (C,) -> (..., C)
    """
    if native_for(x, weight) is None or x.dtype != weight.dtype:
        return rms_norm_reference(x, weight, eps)
    if not needs_gradient(x, weight):
        return _norm(x, weight, eps)[1]
    out: Tensor = with_reference_gradient(
        lambda x, weight: _norm(x, weight, eps)[1],
        lambda x, weight: rms_norm_reference(x, weight, eps),
        x,
        weight,
    )
    return out


def residual_norm(
    residual: Tensor,
    branch: Tensor,
    weight: Tensor,
    eps: float,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The stream alpha * residual + beta * branch, rounded once, and its RMSNorm.

    residual, branch (T, C), weight (C,) -> (T, C), (T, C)
    """
    if native_for(residual, branch, weight) is None or residual.dtype != weight.dtype:
        return residual_norm_reference(residual, branch, weight, eps, alpha=alpha, beta=beta)
    if not needs_gradient(residual, branch, weight):
        return _norm(residual, weight, eps, branch=branch, alpha=alpha, beta=beta)
    stream, out = with_reference_gradient(
        lambda residual, branch, weight: _norm(
            residual, weight, eps, branch=branch, alpha=alpha, beta=beta
        ),
        lambda residual, branch, weight: residual_norm_reference(
            residual, branch, weight, eps, alpha=alpha, beta=beta
        ),
        residual,
        branch,
        weight,
    )
    return stream, out


def add_residual(
    residual: Tensor, branch: Tensor, *, alpha: float = 1.0, beta: float = 1.0
) -> Tensor:
    """alpha * residual + beta * branch, rounded once.

    residual, branch (T, C) -> (T, C)
    """
    if native_for(residual, branch) is None or residual.dtype != branch.dtype:
        return add_residual_reference(residual, branch, alpha=alpha, beta=beta)
    if not needs_gradient(residual, branch):
        return _norm(residual, None, branch=branch, alpha=alpha, beta=beta)[0]
    out: Tensor = with_reference_gradient(
        lambda residual, branch: _norm(residual, None, branch=branch, alpha=alpha, beta=beta)[0],
        lambda residual, branch: add_residual_reference(residual, branch, alpha=alpha, beta=beta),
        residual,
        branch,
    )
    return out


def gated_norm(x: Tensor, weight: Tensor, gate_logits: Tensor, eps: float) -> Tensor:
    """sigmoid(gate_logits) * RMSNorm(x), rounded once after the gate.

    x, gate_logits (T, C), weight (C,) -> (T, C)
    """
    if native_for(x, weight, gate_logits) is None or x.dtype != weight.dtype:
        return gated_norm_reference(x, weight, gate_logits, eps)
    if not needs_gradient(x, weight, gate_logits):
        return _norm(x, weight, eps, gate_logits=gate_logits)[1]
    out: Tensor = with_reference_gradient(
        lambda x, weight, gate: _norm(x, weight, eps, gate_logits=gate)[1],
        lambda x, weight, gate: gated_norm_reference(x, weight, gate, eps),
        x,
        weight,
        gate_logits,
    )
    return out


def _norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float = 0.0,
    *,
    branch: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    gate_logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    extension = native_for(x)
    assert extension is not None
    width = x.shape[-1]
    rows = x if x.ndim == 2 else x.reshape(-1, width)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    branch = None if branch is None else branch.contiguous()
    gate_logits = None if gate_logits is None else gate_logits.contiguous()
    out = x if weight is None else torch.empty(x.shape, dtype=x.dtype)
    stream = x if branch is None else torch.empty(x.shape, dtype=x.dtype)
    extension.norm(
        DTYPES[x.dtype],
        len(rows),
        width,
        rows.data_ptr(),
        rows.stride(0),
        0 if weight is None else weight.data_ptr(),
        eps,
        0 if branch is None else branch.data_ptr(),
        alpha,
        beta,
        stream.data_ptr(),
        0 if gate_logits is None else gate_logits.data_ptr(),
        width,
        out.data_ptr(),
    )
    return stream, out


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def add_residual_reference(
    residual: Tensor, branch: Tensor, *, alpha: float, beta: float
) -> Tensor:
    """`add_residual` in plain torch."""
    return (alpha * _wide(residual) + beta * _wide(branch)).to(residual.dtype)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` in plain torch."""
    wide = _wide(x)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def residual_norm_reference(
    residual: Tensor, branch: Tensor, weight: Tensor, eps: float, *, alpha: float, beta: float
) -> tuple[Tensor, Tensor]:
    """`residual_norm` in plain torch."""
    stream = add_residual_reference(residual, branch, alpha=alpha, beta=beta)
    return stream, rms_norm_reference(stream, weight, eps)


def gated_norm_reference(x: Tensor, weight: Tensor, gate_logits: Tensor, eps: float) -> Tensor:
    """`gated_norm` in plain torch."""
    wide = _wide(x)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normed = _wide(weight) * _wide((wide * scale).to(x.dtype))
    return (_wide(gate_logits).sigmoid() * normed).to(x.dtype)
