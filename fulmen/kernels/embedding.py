"""Rows of a table, by id."""

import torch.nn.functional as F
from torch import Tensor

from fulmen.kernels.backends import backend_for
from fulmen.kernels.gradients import needs_gradient


def embed(input_ids: Tensor, weight: Tensor) -> Tensor:
    """Return weight[input_ids].

    input_ids  (T,)     integers, 0 to V - 1
    weight     (V, C)

    Returns (T, C) in weight's dtype. Raises ValueError for an id that the table does not have.
    """
    backend = backend_for(weight)
    is_plain = input_ids.ndim == 1 and input_ids.is_cpu and weight.is_contiguous()
    if backend is None or needs_gradient(weight) or not is_plain:
        return F.embedding(input_ids, weight)
    return backend.embed(input_ids, weight)
