"""A kind of program that repositories are made of: three modules on top of each other, and probes.

    top -> middle -> helper

Each module imports the one below it and nothing else of its own, so a fault in the helper shows two
calls away, in the top. A probe is a use of a module's door; what the right program answers to it is
the truth that tests are made of.
"""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Probe:
    """A use of one module: statements, and an expression whose value is looked at."""

    layer: int
    """The module's place: 0 is the top, 2 the helper"""
    lines: tuple[str, ...]
    expression: str


def probe(layer: int, *lines: str) -> Probe:
    """Return the probe of some lines, of which the last is the expression."""
    return Probe(layer, lines[:-1], lines[-1])


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of program."""

    name: str
    """Name of the package"""
    modules: tuple[tuple[str, str], tuple[str, str], tuple[str, str]]
    """Name and text of top, middle and helper"""
    probes: Callable[[random.Random], list[Probe]]
    """Draws probes of all three modules"""
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Words that may be called otherwise, in texts and probes alike"""

    def called(self, draw: random.Random) -> Callable[[str], str]:
        """Return a function that puts other names into a text, the same ones each time."""
        chosen = {word: draw.choice((word, *others)) for word, others in self.words.items()}
        pattern = re.compile(rf"\b({'|'.join(map(re.escape, chosen))})\b") if chosen else None
        return lambda text: pattern.sub(lambda found: chosen[found[0]], text) if pattern else text
