"""Schedule: the factor of every learning rate as a function of how far a run has come.

A run warms up, then stays constant: the trunk. A decay ends it, or many decays branch from it, each
with its own end, so that one run is judged at several lengths without being repeated. How good a
model is shows only after its decay: at a constant rate the same weights score 20 to 30 points less
(measured on small models).
"""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Warm-up, constant rate, and at most one decay."""

    unit: Literal["tokens", "steps"] = "tokens"
    """Unit of the three lengths below: tokens, or steps of the run."""
    warmup: int = 0
    """Length of the rise from 0 to the full rate."""
    decay: Literal["linear", "cosine"] = "linear"
    """Shape of the fall."""
    decay_start: int | None = None
    """Place at which the rate begins to fall; none keeps it constant: a trunk."""
    decay_length: int = 0
    """Length of the fall."""
    floor: float = 0.02
    """Share of the full rate at which the fall ends."""

    def __post_init__(self) -> None:
        if self.unit not in ("tokens", "steps"):
            raise ValueError(f"unit is {self.unit!r}, it must be tokens or steps")
        if self.decay not in ("linear", "cosine"):
            raise ValueError(f"decay is {self.decay!r}, it must be linear or cosine")
        for name in ("warmup", "decay_start", "decay_length"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}, it must be 0 or more")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor is {self.floor}, it must lie between 0 and 1")
        if self.decay_start is None and self.decay_length:
            raise ValueError(
                f"decay_length is {self.decay_length}, it needs decay_start, the place where the "
                "rate begins to fall"
            )
        if self.decay_start is not None and not self.decay_length:
            raise ValueError(
                f"decay_start is {self.decay_start}, it needs decay_length, which is 0"
            )

    def factor(self, place: int) -> float:
        """Return the share of the full rate for the step that ends at `place`, in the unit's
        tokens or steps."""
        share = min(1.0, place / self.warmup) if self.warmup else 1.0
        if self.decay_start is None or place <= self.decay_start:
            return share
        done = min(1.0, (place - self.decay_start) / self.decay_length)
        left = 1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
        return share * (self.floor + (1 - self.floor) * left)
