"""Linear layers: y = x W^T with weights packed once, and how each format is packed.

Lanes run over output columns and K is summed in one fixed order, so a row has the same bits alone
and among a thousand. The packed bytes are what a quantised checkpoint stores, so it is used where
it lies in the file.
"""

from types import ModuleType
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulmen.kernels.backends import DTYPES, check_input_bits, native, native_for, needs_gradient
from fulmen.kernels.weights import PackedMatrix, pack

NO_GRADIENT: Final = "packed, which has no gradient: load the model with trainable=True"

Activation = Literal["none", "silu", "sigmoid"]
_ACTIVATIONS: Final[dict[Activation, int]] = {"none": 0, "silu": 1, "sigmoid": 2}


def linear(
    x: Tensor,
    weight: Tensor | PackedMatrix,
    *,
    activation: Activation = "none",
    out_dtype: torch.dtype | None = None,
    input_bits: int = 16,
) -> Tensor:
    """activation(x W^T), summed in float32 (float64 for float64), rounded once.

    x           (..., K)     bfloat16, float32 or float64
    weight      (N, K)       packed, or a plain matrix, which is packed for the call; float32 and
                             bfloat16 may meet
    out_dtype   of the result; x's if omitted
    input_bits  8 or 16: how finely x is rounded, group by group, for int8 and int4 weights

    Returns (..., N).
    """
    out_dtype = out_dtype or x.dtype
    check_input_bits(input_bits)
    k = weight.k if isinstance(weight, PackedMatrix) else weight.shape[1]
    if x.shape[-1] != k:
        raise ValueError(f"x has {x.shape[-1]} inputs, the matrix takes {k}")
    if isinstance(weight, PackedMatrix):
        if needs_gradient(x):
            raise ValueError(f"the weight is {NO_GRADIENT}")
        extension = native_for(x)
        if extension is not None and out_dtype in DTYPES:
            return _run(extension, x, weight, activation, out_dtype, input_bits)
        return linear_reference(x, weight, activation=activation, out_dtype=out_dtype)
    extension = native_for(x, weight)
    if extension is None or out_dtype not in DTYPES:
        return linear_reference(x, weight, activation=activation, out_dtype=out_dtype)
    if needs_gradient(x, weight):
        out: Tensor = _Linear.apply(x, weight, activation, out_dtype)  # type: ignore[no-untyped-call]
        return out
    return _run(extension, x, pack(weight), activation, out_dtype, input_bits)


def _run(
    extension: ModuleType,
    x: Tensor,
    matrix: PackedMatrix,
    activation: Activation,
    out_dtype: torch.dtype,
    input_bits: int,
    sums: Tensor | None = None,
) -> Tensor:
    """One call of the kernel; sums (rows, N) receives what goes into the activation."""
    rows = x if x.ndim == 2 else x.reshape(-1, matrix.k)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    out = torch.empty((*x.shape[:-1], matrix.n), dtype=out_dtype)
    extension.linear(
        rows.data_ptr(),
        DTYPES[x.dtype],
        len(rows),
        rows.stride(0),
        matrix.handle,
        input_bits,
        out.data_ptr(),
        DTYPES[out_dtype],
        matrix.n,
        _ACTIVATIONS[activation],
        0 if sums is None else sums.data_ptr(),
    )
    return out


def linear_reference(
    x: Tensor,
    weight: Tensor | PackedMatrix,
    *,
    activation: Activation = "none",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The same in plain torch."""
    wide = torch.promote_types(x.dtype, torch.float32)
    matrix = weight.unpack() if isinstance(weight, PackedMatrix) else weight
    out = F.linear(x.to(wide), matrix.to(wide))
    if activation != "none":
        out = F.silu(out) if activation == "silu" else out.sigmoid()
    return out.to(out_dtype or x.dtype)


class _Linear(torch.autograd.Function):
    """The kernel's forward; the backward pass is two products more of the same kernel."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, activation: Activation, out_dtype: torch.dtype
    ) -> Tensor:
        extension = native()
        assert extension is not None
        sums = None
        if activation != "none":
            sums = torch.empty(*x.shape[:-1], len(weight), dtype=x.dtype)
        ctx.activation = activation
        ctx.save_for_backward(x, weight, sums)
        return _run(extension, x, pack(weight), activation, out_dtype, 16, sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, sums = ctx.saved_tensors
        extension = native()
        assert extension is not None
        n, k = weight.shape
        flat = x.reshape(-1, k)
        rows = len(flat)
        gradient = gradient.contiguous()
        dtype = gradient.dtype if sums is None else sums.dtype
        dz = gradient if sums is None else torch.empty(gradient.shape, dtype=dtype)
        transposed = transposed_buffer(n, rows, dtype)
        extension.activation_backward(
            gradient.data_ptr(),
            DTYPES[gradient.dtype],
            rows,
            n,
            0 if sums is None else sums.data_ptr(),
            _ACTIVATIONS[ctx.activation],
            DTYPES[dtype],
            0 if sums is None else dz.data_ptr(),
            transposed.data_ptr(),
            transposed.stride(0),
        )
        wants_x, wants_weight, *_ = ctx.needs_input_grad
        return (
            product(dz, weight.t(), x.dtype) if wants_x else None,
            product(transposed, flat.t(), weight.dtype) if wants_weight else None,
            None,
            None,
        )


def product(rows: Tensor, matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """rows (..., K) times the transpose of matrix (N, K), any strides: (..., N) of dtype."""
    extension = native()
    assert extension is not None
    return _run(extension, rows, pack(matrix), "none", dtype, 16)


def transposed_buffer(n: int, rows: int, dtype: torch.dtype) -> Tensor:
    """(n, rows), its rows not a power of two apart: that would crowd a few sets of the cache."""
    return torch.empty(n, rows + 32, dtype=dtype)[:, :rows]
