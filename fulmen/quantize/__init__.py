"""Rounded checkpoints: weights of 8 or 4 bits or FP8, and what the rounding changed."""

from fulmen.quantize.quality import Drift, measure_drift, sample_text
from fulmen.quantize.quantize import QuantizeConfig, parse_packed, quantize_checkpoint

__all__ = [
    "Drift",
    "QuantizeConfig",
    "measure_drift",
    "parse_packed",
    "quantize_checkpoint",
    "sample_text",
]
