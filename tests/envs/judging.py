"""Functions that judge rows, as a user writes them."""

from collections.abc import Mapping
from typing import Any


def is_wanted(reply: str, row: Mapping[str, Any]) -> float:
    """Return 1 for the text that a row wants."""
    return float(reply == row["wanted"])


def too_much(reply: str, row: Mapping[str, Any]) -> float:
    """Return a number that is no score."""
    return 2
