"""Checkpoints with rounded weights: written, and compared with their originals."""

from fulmen.models.quantize.quality import Drift, measure_drift, sample_text
from fulmen.models.quantize.quantize import QuantizeConfig, parse_packed, quantize_checkpoint

__all__ = [
    "Drift",
    "QuantizeConfig",
    "measure_drift",
    "parse_packed",
    "quantize_checkpoint",
    "sample_text",
]
