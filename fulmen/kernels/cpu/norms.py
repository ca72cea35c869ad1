"""Norms with their residual or gate in C++, and their gradients."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulmen.kernels.cpu.extension import DTYPES, address, loaded
from fulmen.kernels.gradients import needs_gradient


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise rows: (..., C), (C,) -> (..., C); differentiable."""
    if not needs_gradient(x, weight):
        return _norm(x, weight, eps)[1]
    _, out = _Norm.apply(x, weight, eps, None, 1.0, 1.0, None)  # type: ignore[no-untyped-call]
    normed: Tensor = out
    return normed


def residual_norm(
    residual: Tensor, branch: Tensor, weight: Tensor, eps: float, *, alpha: float, beta: float
) -> tuple[Tensor, Tensor]:
    """Add and normalise: (T, C), (T, C), (C,) -> stream (T, C), norm (T, C); differentiable."""
    if not needs_gradient(residual, branch, weight):
        return _norm(residual, weight, eps, branch=branch, alpha=alpha, beta=beta)
    stream, out = _Norm.apply(residual, weight, eps, branch, alpha, beta, None)  # type: ignore[no-untyped-call]
    return stream, out


def add_residual(residual: Tensor, branch: Tensor, *, alpha: float, beta: float) -> Tensor:
    """Add: (T, C), (T, C) -> (T, C); differentiable."""
    if not needs_gradient(residual, branch):
        return _norm(residual, None, branch=branch, alpha=alpha, beta=beta)[0]
    out: Tensor = _AddResidual.apply(residual, branch, alpha, beta)  # type: ignore[no-untyped-call]
    return out


def gated_norm(x: Tensor, weight: Tensor, gate_logits: Tensor, eps: float) -> Tensor:
    """Normalise and gate: (T, C), (C,), (T, C) -> (T, C); differentiable."""
    if not needs_gradient(x, weight, gate_logits):
        return _norm(x, weight, eps, gate_logits=gate_logits)[1]
    _, out = _Norm.apply(x, weight, eps, None, 1.0, 1.0, gate_logits)  # type: ignore[no-untyped-call]
    normed: Tensor = out
    return normed


class _Norm(torch.autograd.Function):
    """The kernel forward and backward; gives the stream and its norm, gated or not."""

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
        wants_x, wants_weight, _, wants_branch, _, _, wants_gate = ctx.needs_input_grad
        dx, dweight, dbranch, dgate = norm_backward(
            stream,
            weight,
            eps,
            dout,
            dstream=dstream,
            gains=(alpha, beta),
            gate_logits=gate_logits,
            wants=(wants_x, wants_weight, wants_branch and has_branch, wants_gate),
        )
        return dx, dweight, None, dbranch, None, None, dgate


def norm_backward(
    stream: Tensor,
    weight: Tensor,
    eps: float,
    dout: Tensor,
    *,
    wants: tuple[bool, bool, bool, bool],
    dstream: Tensor | None = None,
    gains: tuple[float, float] = (1.0, 1.0),
    gate_logits: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients, of those that are wanted, of the norm's input, of its weight, of a
    branch and of a gate.

    stream   (..., C)   the norm's input: x, or gains[0] * residual + gains[1] * branch
    dout     (..., C)   gradient of the norm
    dstream  (..., C)   gradient of the stream where it is used elsewhere
    """
    width = stream.shape[-1]
    weight = weight.contiguous()
    rows = stream.reshape(-1, width)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    dout = dout.contiguous()
    dstream = None if dstream is None else dstream.contiguous()
    gate_logits = None if gate_logits is None else gate_logits.contiguous()
    wants_x, wants_weight, wants_branch, wants_gate = wants
    is_shared = wants_x and wants_branch and gains[0] == gains[1]

    def room(wanted: bool) -> Tensor | None:
        return torch.empty(stream.shape, dtype=stream.dtype) if wanted else None

    dx, dbranch, dgate = room(wants_x), room(wants_branch and not is_shared), room(wants_gate)
    dweight = torch.empty(width) if wants_weight else None
    loaded().norm_backward(
        dtype=DTYPES[stream.dtype],
        rows=len(rows),
        width=width,
        stream=rows.data_ptr(),
        stream_stride=rows.stride(0),
        weight=weight.data_ptr(),
        eps=eps,
        gate=address(gate_logits),
        dout=dout.data_ptr(),
        dstream=address(dstream),
        alpha=gains[0],
        beta=gains[1],
        dx=address(dx),
        dbranch=address(dbranch),
        dgate=address(dgate),
        dweight=address(dweight),
    )
    dweight = None if dweight is None else dweight.to(weight.dtype)
    return dx, dweight, dx if is_shared else dbranch, dgate


class _AddResidual(torch.autograd.Function):
    """The kernel forward; backward is a product with each gain."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, branch: Tensor, alpha: float, beta: float) -> Tensor:
        ctx.gains = alpha, beta
        return _norm(residual, None, branch=branch, alpha=alpha, beta=beta)[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        wanted = zip(ctx.gains, ctx.needs_input_grad[:2], strict=True)
        products = {
            gain: gradient if gain == 1 else gain * gradient for gain, wants in wanted if wants
        }
        alpha, beta = ctx.gains
        return products.get(alpha), products.get(beta), None, None


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
    """One call of the kernel: the stream and its norm; without a weight the stream alone."""
    width = x.shape[-1]
    weight = None if weight is None else weight.contiguous()
    rows = x if x.ndim == 2 else x.reshape(-1, width)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    branch = None if branch is None else branch.contiguous()
    gate_logits = None if gate_logits is None else gate_logits.contiguous()
    out = x if weight is None else torch.empty(x.shape, dtype=x.dtype)
    stream = x if branch is None else torch.empty(x.shape, dtype=x.dtype)
    loaded().norm(
        dtype=DTYPES[x.dtype],
        rows=len(rows),
        width=width,
        x=rows.data_ptr(),
        x_stride=rows.stride(0),
        weight=address(weight),
        eps=eps,
        branch=address(branch),
        alpha=alpha,
        beta=beta,
        stream=stream.data_ptr(),
        gate=address(gate_logits),
        gate_stride=width,
        out=out.data_ptr(),
    )
    return stream, out
