"""Hardware as a user writes it, `8xH800`, and what the data sheets say about it."""

import re
from dataclasses import dataclass
from typing import Final

from fulmen.units import shortened


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """A GPU by its data sheet; rates are dense, without structured sparsity."""

    name: str
    memory_bytes: int
    """Memory, with the data sheet's GB as 10^9 bytes; the driver shows a few per cent more."""
    bytes_per_second: float
    bf16_flops: float
    fp8_flops: float | None
    """Rate of FP8 products; None for a GPU without them."""


_DATA_SHEETS: Final = (
    # name, GB, TB/s, bf16 TFLOP/s, fp8 TFLOP/s
    ("H800", 80, 3.35, 989.4, 1978.9),
    ("H100", 80, 3.35, 989.4, 1978.9),
    ("H200", 141, 4.8, 989.4, 1978.9),
    ("H20", 96, 4.0, 148.0, 296.0),
    ("A100-80", 80, 2.039, 312.0, None),
    ("B200", 180, 8.0, 2250.0, 4500.0),
    ("L40S", 48, 0.864, 362.0, 733.0),
    ("RTX4090", 24, 1.008, 165.2, 330.3),
    ("RTX5090", 32, 1.792, 209.5, 419.0),
    ("MI300X", 192, 5.3, 1307.4, 2614.9),
    ("MI325X", 256, 6.0, 1307.4, 2614.9),
)
ACCELERATORS: Final = {
    name: Accelerator(
        name=name,
        memory_bytes=memory * 10**9,
        bytes_per_second=bandwidth * 1e12,
        bf16_flops=bf16 * 1e12,
        fp8_flops=None if fp8 is None else fp8 * 1e12,
    )
    for name, memory, bandwidth, bf16, fp8 in _DATA_SHEETS
}
"""Data sheets by name: of the SXM or OAM module, and for GeForce with float32 accumulation."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """Several GPUs of one kind."""

    count: int
    accelerator: Accelerator

    def __str__(self) -> str:
        return f"{self.count}x{self.accelerator.name}"


MOST_GPUS: Final = 10**6
_GPUS: Final = re.compile(r"(?:([0-9]{1,12})\s*[xX*]\s*)?(.{1,20})")


def parse_gpus(text: str) -> Gpus:
    """Read `8xH800`, or `H800` for one."""
    found = _GPUS.fullmatch(text.strip())
    wanted = re.sub(r"[\s_-]|gb$", "", found[2].lower()) if found else ""
    for name, accelerator in ACCELERATORS.items():
        known = name.replace("-", "").lower()
        if found is None or wanted not in (known, known.removeprefix("rtx")):
            continue
        count = int(found[1] or 1)
        if not 1 <= count <= MOST_GPUS:
            needed = "one or more" if count < 1 else f"at most {MOST_GPUS:,}"
            raise ValueError(f"{shortened(text)} asks for {count} GPUs, it must be {needed}")
        return Gpus(count, accelerator)
    raise ValueError(
        f"{shortened(text)} names no known GPUs, it must be like 8xH800 with one of "
        f"{', '.join(ACCELERATORS)}"
    )
