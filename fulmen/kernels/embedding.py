"""Rows of a table, by id."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fulmen.kernels.backends import native_for, needs_gradient


def embed(input_ids: Tensor, weight: Tensor) -> Tensor:
    """weight[input_ids]: (T,) int64 ids below V, (V, C) -> (T, C)

    Raises ValueError for an id that the table does not have.
    """
    extension = native_for(weight)
    is_plain = input_ids.ndim == 1 and input_ids.is_cpu and weight.is_contiguous()
    if extension is None or needs_gradient(weight) or not is_plain:
        return F.embedding(input_ids, weight)
    ids = input_ids.long().contiguous()
    out = torch.empty(len(ids), weight.shape[1], dtype=weight.dtype)
    row_bytes = weight.shape[1] * weight.element_size()
    extension.embed(
        weight.data_ptr(), len(weight), ids.data_ptr(), len(ids), row_bytes, out.data_ptr()
    )
    return out
