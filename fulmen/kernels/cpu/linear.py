"""`linear` and `linear_each` in C++, and their gradients as products of the same kernel."""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulmen.kernels.cpu.extension import DTYPES, address, loaded
from fulmen.kernels.cpu.weights import matrix_of, pack
from fulmen.kernels.gradients import needs_gradient
from fulmen.kernels.weights import PackedMatrix

_ACTIVATIONS: Final = {"none": 0, "silu": 1, "sigmoid": 2}


def linear(
    x: Tensor,
    weight: Tensor | PackedMatrix,
    *,
    activation: str,
    out_dtype: torch.dtype,
    input_bits: int,
) -> Tensor:
    """Multiply: (..., K), (N, K) -> activation of (..., N); differentiable for a plain matrix."""
    if isinstance(weight, PackedMatrix):
        return _run(x, weight, activation, out_dtype, input_bits)
    if needs_gradient(x, weight):
        out: tuple[Tensor] = _Linear.apply(x, (activation,), (out_dtype,), weight)  # type: ignore[no-untyped-call]
        return out[0]
    return _run(x, pack(weight), activation, out_dtype, input_bits)


def linear_each(
    x: Tensor, weights: Sequence[Tensor], activations: Sequence[str], out_dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Multiply by plain matrices: (..., K), (N, K) each -> activation of (..., N) each; the
    gradients of x are added up as they are made."""
    outs: tuple[Tensor, ...] = _Linear.apply(  # type: ignore[no-untyped-call]
        x, tuple(activations), (out_dtype,) * len(weights), *weights
    )
    return outs


def _run(
    x: Tensor,
    matrix: PackedMatrix,
    activation: str,
    out_dtype: torch.dtype,
    input_bits: int,
    sums: Tensor | None = None,
    addend: Tensor | None = None,
) -> Tensor:
    """One call of the kernel; sums (rows, N) receives what goes into the activation, addend (rows,
    N) of out_dtype, contiguous, is added to it."""
    rows = x if x.ndim == 2 else x.reshape(-1, matrix.k)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    out = torch.empty((*x.shape[:-1], matrix.n), dtype=out_dtype)
    loaded().linear(
        x=rows.data_ptr(),
        x_dtype=DTYPES[x.dtype],
        rows=len(rows),
        x_stride=rows.stride(0),
        w=matrix_of(matrix),
        input_bits=input_bits,
        out=out.data_ptr(),
        out_dtype=DTYPES[out_dtype],
        out_stride=matrix.n,
        activation=_ACTIVATIONS[activation],
        sums=address(sums),
        addend=address(addend),
    )
    return out


class _Linear(torch.autograd.Function):
    """The kernel forward, for each matrix; two more products of the same kernel backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        activations: Sequence[str],
        out_dtypes: Sequence[torch.dtype],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        sums = [
            None if activation == "none" else torch.empty(*x.shape[:-1], len(weight), dtype=x.dtype)
            for weight, activation in zip(weights, activations, strict=True)
        ]
        ctx.activations = activations
        ctx.save_for_backward(x, *weights, *sums)
        each = zip(weights, activations, out_dtypes, sums, strict=True)
        return tuple(
            _run(x, pack(weight), activation, dtype, 16, kept)
            for weight, activation, dtype, kept in each
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *others = ctx.saved_tensors
        weights, sums = others[: len(gradients)], others[len(gradients) :]
        wants_x, _, _, *wants_weights = ctx.needs_input_grad
        x_gradient: Tensor | None = None
        weight_gradients: list[Tensor | None] = []
        each = zip(gradients, weights, sums, ctx.activations, wants_weights, strict=True)
        for gradient, weight, kept, activation, wants_weight in each:
            n, k = weight.shape
            dz = gradient.contiguous()
            if kept is not None and (wants_x or wants_weight):
                dz = _activation_backward(dz, kept, activation)
            if wants_x:
                x_gradient = product(dz, weight.t(), x.dtype, addend=x_gradient)
            weight_gradients.append(
                outer(dz.view(-1, n), x.reshape(-1, k), weight.dtype) if wants_weight else None
            )
        return x_gradient, None, None, *weight_gradients


def _activation_backward(gradient: Tensor, sums: Tensor, activation: str) -> Tensor:
    """Return the gradient of what went into the activation, in its dtype."""
    dz = torch.empty_like(sums)
    loaded().activation_backward(
        dy=gradient.data_ptr(),
        dy_dtype=DTYPES[gradient.dtype],
        rows=sums.numel() // sums.shape[-1],
        n=sums.shape[-1],
        sums=sums.data_ptr(),
        activation=_ACTIVATIONS[activation],
        dtype=DTYPES[sums.dtype],
        dz=dz.data_ptr(),
    )
    return dz


def product(
    rows: Tensor, matrix: Tensor, dtype: torch.dtype, *, addend: Tensor | None = None
) -> Tensor:
    """Multiply rows (..., K) by the transpose of matrix (N, K), any strides: (..., N) of dtype,
    plus an addend of the same shape and dtype."""
    return _run(rows, pack(matrix), "none", dtype, 16, addend=addend)


def outer(a: Tensor, b: Tensor, dtype: torch.dtype, *, add_to: Tensor | None = None) -> Tensor:
    """Return the sum over rows of a[row] b[row]^T: (R, N), (R, K) -> (N, K) of dtype, the gradient
    of a matrix. add_to (N, K) float32, contiguous, receives the sum on top of its own values."""
    a, b = (x if x.stride(1) == 1 else x.contiguous() for x in (a, b))
    out = torch.empty(a.shape[1], b.shape[1], dtype=dtype) if add_to is None else add_to
    loaded().outer(
        a=a.data_ptr(),
        a_dtype=DTYPES[a.dtype],
        a_stride=a.stride(0),
        b=b.data_ptr(),
        b_dtype=DTYPES[b.dtype],
        b_stride=b.stride(0),
        rows=len(a),
        n=a.shape[1],
        k=b.shape[1],
        out=out.data_ptr(),
        out_dtype=DTYPES[out.dtype],
        adds=add_to is not None,
    )
    return out
