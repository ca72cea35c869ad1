"""The search for the codes of a CODEBOOK4 matrix in C++."""

import torch
from torch import Tensor

from fulmen.kernels.cpu.extension import loaded


def search_codebook(weight: Tensor, columns: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes (N, K) uint8, scales int8 and zeros uint8 (N, groups)."""
    n, k = weight.shape
    groups = -(-k // group)
    codes = torch.empty(n, k, dtype=torch.uint8)
    scales = torch.empty(n, groups, dtype=torch.int8)
    zeros = torch.empty(n, groups, dtype=torch.uint8)
    row_stride, column_stride = weight.stride()
    columns = columns.contiguous()
    loaded().codebook(
        weight=weight.detach().data_ptr(),
        rows=n,
        width=k,
        row_stride=row_stride,
        column_stride=column_stride,
        group=group,
        columns=columns.data_ptr(),
        codes=codes.data_ptr(),
        scales=scales.data_ptr(),
        zeros=zeros.data_ptr(),
    )
    return codes, scales, zeros
