"""Rows of keys and values as int8 codes with a scale each, in torch."""

import torch
from torch import Tensor


def rounded_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 codes of x (T, Hkv, D) and their scales (T, Hkv) float32.

    The largest value of a row becomes 127. A row with infinity or NaN has scale NaN, so that it is
    not taken for numbers.
    """
    wide = x.float()
    finite = wide.isfinite().all(-1)
    largest = wide.abs().amax(-1)
    scales = torch.where(finite, largest / 127, torch.nan)
    known = torch.where(finite & (largest > 0), scales, torch.inf)
    codes = torch.where(finite[..., None], wide, 0) / known[..., None]
    return codes.round().to(torch.int8), scales


def widened_rows(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values of codes (T, Hkv, D) and scales (T, Hkv), in dtype or float32 if wider."""
    return codes.to(torch.promote_types(dtype, torch.float32)) * scales[..., None]
