"""RMSNorm, with the residual before it or the gate after it, row by row in float32."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulmen.kernels.backends import DTYPES, native_alike, native_for, needs_gradient


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps): the mean in float32, x rounded to its dtype before the
    weight.

    x (..., C), weight (C,) -> (..., C)
    """
    if native_alike(x, weight) is None:
        return rms_norm_reference(x, weight, eps)
    if not needs_gradient(x, weight):
        return _norm(x, weight, eps)[1]
    _, out = _Norm.apply(x, weight, eps, None, 1.0, 1.0, None)  # type: ignore[no-untyped-call]
    normed: Tensor = out
    return normed


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
    if native_alike(residual, branch, weight) is None:
        return residual_norm_reference(residual, branch, weight, eps, alpha=alpha, beta=beta)
    if not needs_gradient(residual, branch, weight):
        return _norm(residual, weight, eps, branch=branch, alpha=alpha, beta=beta)
    stream, out = _Norm.apply(residual, weight, eps, branch, alpha, beta, None)  # type: ignore[no-untyped-call]
    return stream, out


def add_residual(
    residual: Tensor, branch: Tensor, *, alpha: float = 1.0, beta: float = 1.0
) -> Tensor:
    """alpha * residual + beta * branch, rounded once.

    residual, branch (T, C) -> (T, C)
    """
    if native_alike(residual, branch) is None:
        return add_residual_reference(residual, branch, alpha=alpha, beta=beta)
    if not needs_gradient(residual, branch):
        return _norm(residual, None, branch=branch, alpha=alpha, beta=beta)[0]
    out: Tensor = _AddResidual.apply(residual, branch, alpha, beta)  # type: ignore[no-untyped-call]
    return out


def gated_norm(x: Tensor, weight: Tensor, gate_logits: Tensor, eps: float) -> Tensor:
    """sigmoid(gate_logits) * RMSNorm(x), rounded once after the gate.

    x, gate_logits (T, C), weight (C,) -> (T, C)
    """
    if native_alike(x, weight, gate_logits) is None:
        return gated_norm_reference(x, weight, gate_logits, eps)
    if not needs_gradient(x, weight, gate_logits):
        return _norm(x, weight, eps, gate_logits=gate_logits)[1]
    _, out = _Norm.apply(x, weight, eps, None, 1.0, 1.0, gate_logits)  # type: ignore[no-untyped-call]
    normed: Tensor = out
    return normed


class _Norm(torch.autograd.Function):
    """The kernel forward and backward: returns the stream and its norm, gated or not."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        eps: float,
        branch: Tensor | None,
        alpha: float,
        beta: float,
        gate_logits: Tensor | None,
    ) -> tuple[Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        stream, out = _norm(
            x, weight, eps, branch=branch, alpha=alpha, beta=beta, gate_logits=gate_logits
        )
        ctx.save_for_backward(stream, weight, gate_logits)
        ctx.others = eps, alpha, beta, branch is not None
        return stream if branch is not None else None, out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dstream: Tensor | None, dout: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        stream, weight, gate_logits = ctx.saved_tensors
        eps, alpha, beta, has_branch = ctx.others
        if dout is None:
            if dstream is None:
                return (None,) * 7
            dout = torch.zeros_like(dstream)
        dx, dweight, dbranch, dgate = norm_backward(
            stream,
            weight,
            eps,
            dout,
            dstream=dstream,
            gains=(alpha, beta) if has_branch else None,
            gate_logits=gate_logits,
        )
        return dx, dweight, None, dbranch, None, None, dgate


def norm_backward(
    stream: Tensor,
    weight: Tensor,
    eps: float,
    dout: Tensor,
    *,
    dstream: Tensor | None = None,
    gains: tuple[float, float] | None = None,
    gate_logits: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of what was normalised, of the weight, of a branch and of a gate.

    stream   (..., C)   what was normalised: x, or gains[0] * residual + gains[1] * branch
    dout     (..., C)   the gradient of the norm
    dstream  (..., C)   that of the stream, if it is used elsewhere
    """
    extension = native_for(stream)
    assert extension is not None
    width = stream.shape[-1]
    weight = weight.contiguous()
    rows = stream.reshape(-1, width)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    dout = dout.contiguous()
    dstream = None if dstream is None else dstream.contiguous()
    gate_logits = None if gate_logits is None else gate_logits.contiguous()
    dx = torch.empty(stream.shape, dtype=stream.dtype)
    dbranch = None if gains is None else torch.empty_like(dx)
    dgate = None if gate_logits is None else torch.empty_like(dx)
    dweight = torch.empty(width)
    extension.norm_backward(
        DTYPES[stream.dtype],
        len(rows),
        width,
        rows.data_ptr(),
        rows.stride(0),
        weight.data_ptr(),
        eps,
        *(0 if x is None else x.data_ptr() for x in (gate_logits, dout, dstream)),
        *(gains or (1.0, 1.0)),
        *(0 if x is None else x.data_ptr() for x in (dx, dbranch, dgate)),
        dweight.data_ptr(),
    )
    return dx, dweight.to(weight.dtype), dbranch, dgate


class _AddResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, branch: Tensor, alpha: float, beta: float) -> Tensor:
        ctx.gains = alpha, beta
        return _norm(residual, None, branch=branch, alpha=alpha, beta=beta)[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        alpha, beta = (gradient if gain == 1 else gain * gradient for gain in ctx.gains)
        return alpha, beta, None, None


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
    _check_shapes(x, weight, branch, gate_logits)
    weight = None if weight is None else weight.contiguous()
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


def _check_shapes(x: Tensor, weight: Tensor | None, *others: Tensor | None) -> None:
    """The kernel reads by these numbers, so none goes unchecked."""
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
