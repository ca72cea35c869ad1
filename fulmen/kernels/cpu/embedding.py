"""`embed` in C++."""

import torch
from torch import Tensor

from fulmen.kernels.cpu.extension import loaded


def embed(input_ids: Tensor, weight: Tensor) -> Tensor:
    """Copy rows: ids (T,), a contiguous table (V, C) -> (T, C); no gradient."""
    ids = input_ids.long().contiguous()
    out = torch.empty(len(ids), weight.shape[1], dtype=weight.dtype)
    loaded().embed(
        table=weight.data_ptr(),
        num_rows=len(weight),
        ids=ids.data_ptr(),
        num_ids=len(ids),
        row_bytes=weight.shape[1] * weight.element_size(),
        out=out.data_ptr(),
    )
    return out
