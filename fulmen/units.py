"""Numbers with units as people write them: 40k tokens, 20GiB, 3GB/s."""

import math
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # a command's help comes without it
    pass


_UNITS: Final = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)},
}


def parse_bytes(text: str) -> int:
    """Reads `24GiB` (1024^3) or `24GB` (10^9)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or float(found[1]) == 0:
        raise ValueError(f"{text} is not a size, it must be like 24GiB or 24GB")
    return int(float(found[1]) * unit)


def parse_rate(text: str) -> float:
    """Reads `3GB/s`, in bytes a second."""
    size, slash, per = text.strip().partition("/")
    if not slash or per.strip().lower() != "s":
        raise ValueError(f"{text} is not a rate, it must be like 3GB/s")
    try:
        return float(parse_bytes(size))
    except ValueError:
        raise ValueError(f"{text} is not a rate, it must be like 3GB/s") from None


def parse_count(text: str) -> int:
    """A number of tokens as people write it: 512, 40k, 1.5M, 80,000."""
    found = re.fullmatch(r"([\d,]+|\d+\.\d+)([kKmM]?)", text.strip())
    number = float(found[1].replace(",", "") or "nan") if found else float("nan")
    count = number * {"": 1, "k": 1000, "m": 1000000}[found[2].lower() if found else ""]
    if not math.isfinite(count) or count != int(count):
        raise ValueError(f"{text!r} is no number of tokens, it must look like 512 or 40k")
    return int(count)
