"""Ways to run a model in the memory of one machine: does it fit, how fast, what is to be typed.

`answer_text.py` says it in words; the arithmetic behind it is in `forecast.py`.
"""

import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fulmen.models import Config, Fp8Config, PackedConfig
from fulmen.plan.forecast import SYSTEM_BYTES, Forecast, Reading, forecast_machine

TYPICAL_DISK: Final = "3GB/s"
"""Read speed of a usual NVMe disk, for a forecast where none is named"""
_CACHE_BYTES: Final = 2 * 2**30
"""Memory that the engine gives keys and values unless it is told"""
_ROUNDING: Final = {"fp8": "--bits fp8", "int8": "--bits 8", "int4": "--bits 4"}
"""Options of `fulmen quantize` by precision"""
TITLES: Final = {
    "bf16": "bf16",
    "fp8": "FP8",
    "int8-experts": "8-bit experts",
    "int8": "8 bits",
    "int4": "4 bits",
}
"""Names of the precisions for people"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """A precision in which a model can be held in the memory of one machine."""

    precision: str
    is_published: bool
    """True if the published weights have this precision; others are written by `fulmen quantize`"""
    needed_bytes: int
    """Memory for all weights, one sequence of the planned length and the system"""
    fits: bool
    decode_low: float
    """Tokens a second of one sequence to expect at least, with all weights in memory"""
    decode_high: float
    commands: tuple[str, ...]
    """Commands that run the model this way, were it to fit; none for weights that are published
    with fewer bits, which is how they run"""
    from_disk: tuple[float, float] | None
    """Tokens a second if experts that do not fit were read from disk, which Fulmen cannot do yet;
    None if all fit, or if even the rest does not"""

    @property
    def title(self) -> str:
        """Name of the precision for people."""
        return TITLES[self.precision]


def ways_in_memory(
    config: Config,
    name: str,
    rows: Iterable[Reading],
    *,
    ram_bytes: int,
    memory: float,
    disk: float,
) -> tuple[Way, ...]:
    """Return the ways in which Fulmen can run a model on a machine without GPUs.

    name          the model as it was named on the command line
    rows          a reading for each precision
    memory, disk  bytes a second that they read
    """
    stored = stored_precision(config)
    ways = []
    for row in rows:
        if row.precision not in _offered(config, stored):
            continue
        needed = row.weights.total + row.sequence_bytes + SYSTEM_BYTES
        whole = forecast_machine(row, ram_bytes=needed, memory=memory, disk=None)
        here = forecast_machine(row, ram_bytes=ram_bytes, memory=memory, disk=disk)
        ways.append(
            Way(
                precision=row.precision,
                is_published=row.precision == stored,
                needed_bytes=needed,
                fits=needed <= ram_bytes,
                decode_low=whole.decode_low or 0.0,
                decode_high=whole.decode_high or 0.0,
                commands=_commands(name, row, stored),
                from_disk=_from_disk(here),
            )
        )
    return tuple(ways)


def stored_precision(config: Config) -> str:
    """Return the precision in which a checkpoint's weights are stored."""
    quantization = config.quantization_config
    if isinstance(quantization, Fp8Config):
        return "fp8"
    if isinstance(quantization, PackedConfig):
        return {"8": "int8", "4": "int4"}.get(str(quantization.bits), "fp8")
    return "bf16"


def _offered(config: Config, stored: str) -> tuple[str, ...]:
    """Return the precisions that are worth a line: what is rounded already is not rounded again."""
    if isinstance(config.quantization_config, PackedConfig):
        return (stored,)
    return ("bf16", *_ROUNDING)


def _from_disk(here: Forecast) -> tuple[float, float] | None:
    if here.expert_share == 1 or here.decode_low is None or here.decode_high is None:
        return None
    return here.decode_low, here.decode_high


def _commands(name: str, row: Reading, stored: str) -> tuple[str, ...]:
    flags = ""
    if row.sequence_bytes > _CACHE_BYTES:
        flags = f" --kv-cache {math.ceil(row.sequence_bytes / 2**30)}GiB"
    typed = shlex.quote(name)
    if row.precision == stored:
        return (f"fulmen chat --model {typed}{flags}",)
    rounded = shlex.quote(f"{name.rstrip('/').split('/')[-1]}-{row.precision}")
    if row.precision not in _ROUNDING:
        return ()
    return (
        f"fulmen quantize {typed} {rounded} {_ROUNDING[row.precision]}",
        f"fulmen chat --model {rounded}{flags}",
    )
