"""Autograd at the door of an op: whether it watches, and what has no gradient."""

from typing import Final

import torch
from torch import Tensor

NO_GRADIENT: Final = (
    "packed, which has no gradient: wrap inference in torch.no_grad(), or load the model with "
    "trainable=True to train it"
)


def needs_gradient(*tensors: Tensor) -> bool:
    """Return whether autograd watches any of these tensors."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
