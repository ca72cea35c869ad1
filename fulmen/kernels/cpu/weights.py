"""Packing in C++, and the extension's view of packed matrices."""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from fulmen.kernels.cpu.extension import DTYPES, loaded
from fulmen.kernels.weights import PackedMatrix, format_of, packed_bytes

_NAME: Final = "cpu"
"""Key of this backend among a matrix's views."""


def matrix_of(matrix: PackedMatrix) -> Any:
    """Return the extension's view of a packed matrix: the same memory, made on first use."""
    view = matrix.views.get(_NAME)
    if view is None:
        if not matrix.data.is_cpu:
            raise ValueError(f"the weight is on {matrix.data.device}, its inputs are on the CPU")
        view = matrix.views[_NAME] = loaded().Matrix(
            data=matrix.data.data_ptr(),
            format=int(matrix.format),
            group=matrix.group,
            n=matrix.n,
            k=matrix.k,
        )
    return view


def pack(weight: Tensor) -> PackedMatrix:
    """Pack a float32 or bfloat16 matrix (N, K), any strides."""
    format = format_of(weight.dtype)
    n, k = weight.shape
    out = torch.empty(packed_bytes(format, n, k), dtype=torch.uint8)
    matrix = PackedMatrix(out, format, n, k)
    pack_into(matrix, weight)
    return matrix


def pack_into(matrix: PackedMatrix, weight: Tensor) -> None:
    """Pack a float32 or bfloat16 matrix (N, K), any strides, where another of its shape lies."""
    row_stride, column_stride = weight.stride()
    loaded().pack(
        source=weight.detach().data_ptr(),
        source_dtype=DTYPES[weight.dtype],
        row_stride=row_stride,
        column_stride=column_stride,
        w=matrix_of(matrix),
        out=matrix.data.data_ptr(),
    )


def stack_experts(
    w1: Sequence[PackedMatrix], w2: Sequence[PackedMatrix], w3: Sequence[PackedMatrix]
) -> Any:
    """Return the extension's view of a layer's experts, one matrix of each kind an expert."""
    return loaded().Stack(*([matrix_of(matrix) for matrix in kind] for kind in (w1, w2, w3)))
