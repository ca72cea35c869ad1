"""The cost of a reinforcement learning run like that of the M1 report."""

from dataclasses import dataclass
from typing import Final

from fulmen.catalog import published_config
from fulmen.models import Config, count_parameters, generation_cost
from fulmen.plan.hardware import ACCELERATORS, Gpus

_REPORT_GPUS: Final = 512
_REPORT_DAYS: Final = 21
_REPORT_USD: Final = 534_700
REPORT_LENGTH: Final = 40_000
"""Tokens of a generation; FLOPs of models are compared at this length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RLCost:
    """Cost of the report's run, 512 H800 for three weeks, with another model or on other GPUs."""

    gpus: str
    relative_flops: float
    """FLOPs of generating 40,000 tokens, over those of M1."""
    gpu_hours: float
    days: float
    usd: float | None
    """Cost at the report's price of an H800 hour; None for other GPUs."""
    usd_per_gpu_hour: float
    optimizer_bytes: int
    """Bytes of weights, gradients and AdamW's states in mixed precision: 16 a parameter."""


def rl_cost(config: Config, gpus: Gpus) -> RLCost:
    """Scale the report's run by the FLOPs of a model and the bf16 rate of the GPUs."""
    report_hours = _REPORT_GPUS * _REPORT_DAYS * 24
    price = _REPORT_USD / report_hours
    m1 = generation_cost(published_config("minimax-m1-80k")).cumulative(REPORT_LENGTH)
    relative = generation_cost(config).cumulative(REPORT_LENGTH) / m1
    h800 = ACCELERATORS["H800"]
    hours = report_hours * relative * h800.bf16_flops / gpus.accelerator.bf16_flops
    return RLCost(
        gpus=str(gpus),
        relative_flops=relative,
        gpu_hours=hours,
        days=hours / gpus.count / 24,
        usd=hours * price if gpus.accelerator == h800 else None,
        usd_per_gpu_hour=price,
        optimizer_bytes=16 * count_parameters(config).total,
    )
