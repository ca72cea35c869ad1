"""`linear` in C++, and its gradients as products of the same kernel."""

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
        out: Tensor = _Linear.apply(x, weight, activation, out_dtype)  # type: ignore[no-untyped-call]
        return out
    return _run(x, pack(weight), activation, out_dtype, input_bits)


def _run(
    x: Tensor,
    matrix: PackedMatrix,
    activation: str,
    out_dtype: torch.dtype,
    input_bits: int,
    sums: Tensor | None = None,
) -> Tensor:
    """One call of the kernel; sums (rows, N) receives what goes into the activation."""
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
    )
    return out


class _Linear(torch.autograd.Function):
    """The kernel forward; two more products of the same kernel backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, activation: str, out_dtype: torch.dtype
    ) -> Tensor:
        sums = None
        if activation != "none":
            sums = torch.empty(*x.shape[:-1], len(weight), dtype=x.dtype)
        ctx.activation = activation
        ctx.save_for_backward(x, weight, sums)
        return _run(x, pack(weight), activation, out_dtype, 16, sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, sums = ctx.saved_tensors
        n, k = weight.shape
        flat = x.reshape(-1, k)
        rows = len(flat)
        gradient = gradient.contiguous()
        dtype = gradient.dtype if sums is None else sums.dtype
        dz = gradient if sums is None else torch.empty(gradient.shape, dtype=dtype)
        transposed = transposed_buffer(n, rows, dtype)
        loaded().activation_backward(
            dy=gradient.data_ptr(),
            dy_dtype=DTYPES[gradient.dtype],
            rows=rows,
            n=n,
            sums=address(sums),
            activation=_ACTIVATIONS[ctx.activation],
            dtype=DTYPES[dtype],
            dz=0 if sums is None else dz.data_ptr(),
            dz_transposed=transposed.data_ptr(),
            stride=transposed.stride(0),
        )
        wants_x, wants_weight, *_ = ctx.needs_input_grad
        return (
            product(dz, weight.t(), x.dtype) if wants_x else None,
            product(transposed, flat.t(), weight.dtype) if wants_weight else None,
            None,
            None,
        )


def product(rows: Tensor, matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply rows (..., K) by the transpose of matrix (N, K), any strides: (..., N) of dtype."""
    return _run(rows, pack(matrix), "none", dtype, 16)


def transposed_buffer(n: int, rows: int, dtype: torch.dtype) -> Tensor:
    """Return memory (n, rows) whose rows are not a power of two apart: that would crowd a few sets
    of the cache."""
    return torch.empty(n, rows + 32, dtype=dtype)[:, :rows]
