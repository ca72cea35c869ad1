"""Numbers of examples that hypothesis makes in the suite, which must stay quick on two cores."""

import os
from typing import Final

SHARE: Final = float(os.environ.get("FULMEN_EXAMPLES", "0.2"))
"""Part of each property's examples that is made; FULMEN_EXAMPLES=1 makes all of them"""


def examples(number: int) -> int:
    """Return how many of a property's examples are made, at least three."""
    return max(round(number * SHARE), min(number, 3))
