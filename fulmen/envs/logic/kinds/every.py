"""All kinds of puzzles, by name."""

from collections.abc import Mapping
from typing import Final

from fulmen.envs.logic.kinds.boolean_expressions import BOOLEAN_EXPRESSIONS
from fulmen.envs.logic.puzzle import PuzzleKind

KINDS: Final[Mapping[str, PuzzleKind]] = {kind.name: kind for kind in (BOOLEAN_EXPRESSIONS,)}
