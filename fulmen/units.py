"""Numbers with units as people write them: 40k tokens, 20GiB, 3GB/s.

Arithmetic is exact, and every result is bounded: whatever is typed becomes a number that the code
behind it can hold, or one sentence at once.
"""

import re
from fractions import Fraction
from typing import Final

LARGEST_COUNT: Final = 10**12
"""Most tokens that a count may name; no model and no disk holds as many."""
LARGEST_SIZE: Final = 2**60
"""Most bytes that a size may name, or that a rate may name for a second."""

_COUNT: Final = re.compile(r"([0-9]+(?:,[0-9]+)*|[0-9]+\.[0-9]+)([kKmM]?)")
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)[ \t]*([A-Za-z]+)")
_NUMBER: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]+)?)[ \t]*[A-Za-z]*(?:/.*)?")
"""Number that lacks a unit, or has one that is none"""
_LONGEST_TEXT: Final = 32
"""Characters of a number that is worth reading; longer ones are refused before any arithmetic."""

_COUNT_UNITS: Final = {"": 1, "k": 1000, "m": 1000**2}
_SIZE_UNITS: Final = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)},
}


def parse_count(text: str) -> int:
    """Read a number of tokens: 512, 40k, 1.5M, 80,000."""
    found = _match(_COUNT, text)
    count = Fraction(-1)
    if found is not None:
        count = Fraction(found[1].replace(",", "")) * _COUNT_UNITS[found[2].lower()]
    if count < 0 or count.denominator != 1:
        raise ValueError(f"{_quoted(text)} is no number of tokens, it must look like 512 or 40k")
    if count > LARGEST_COUNT:
        raise ValueError(
            f"{_quoted(text)} is too large a number of tokens, it must be at most {LARGEST_COUNT:,}"
        )
    return int(count)


def parse_bytes(text: str) -> int:
    """Read a size of at least one byte: 24GiB (1024^3) or 24GB (10^9)."""
    return int(_size(text, text, "a size", "{0}GiB or {0}GB", "24"))


def parse_rate(text: str) -> float:
    """Read a rate in bytes a second: 3GB/s."""
    size, slash, per = text.partition("/")
    is_per_second = bool(slash) and per.strip().lower() == "s"
    return float(_size(text, size if is_per_second else "", "a rate", "{0}GB/s", "3"))


def _size(text: str, size: str, what: str, example: str, number: str) -> Fraction:
    """Read `size`, a part of `text`; errors quote the text.

    example  a value that is right, of any number
    number   the example's, where the text has none
    """
    found = _match(_SIZE, size)
    unit = _SIZE_UNITS.get(found[2].upper()) if found is not None else None
    num_bytes = Fraction(0)
    if found is not None and unit is not None:
        num_bytes = Fraction(found[1]) * unit
    if num_bytes < 1:
        typed = _match(_NUMBER, text)
        if typed is not None and unit is None and Fraction(typed[1]) >= 1:
            number = typed[1]
        raise ValueError(
            f"{shortened(text)} is not {what}, it must be like {example.format(number)}"
        )
    if num_bytes > LARGEST_SIZE:
        most = LARGEST_SIZE // _SIZE_UNITS["TIB"]
        raise ValueError(f"{shortened(text)} is too large for {what}, the most is {most}TiB")
    return num_bytes


def _match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    text = text.strip()
    return pattern.fullmatch(text) if len(text) <= _LONGEST_TEXT else None


def _quoted(text: str) -> str:
    return repr(shortened(text))


def shortened(text: str) -> str:
    """Return a number as typed for an error: on one line, and no longer than a number can be."""
    start = " ".join(text[:_LONGEST_TEXT].split())
    return start if len(text) <= _LONGEST_TEXT else f"{start}..."
