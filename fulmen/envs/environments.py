"""Names, as people type them, to environments."""

import re
from pathlib import Path

from fulmen.envs.arithmetic import Arithmetic
from fulmen.envs.questions import Questions
from fulmen.envs.task import Environment

_ARITHMETIC = re.compile(r"arithmetic(?::(\d+)x(\d+))?")


def load_environment(name: str, *, seed: int) -> Environment:
    """arithmetic; arithmetic:3x20, of three steps with numbers up to 20; or a JSONL file of
    questions, which no seed changes."""
    if (found := _ARITHMETIC.fullmatch(name)) is not None:
        if found[1] is None:
            return Arithmetic(seed)
        return Arithmetic(seed, num_steps=int(found[1]), largest=int(found[2]))
    path = Path(name)
    if not path.is_file():
        raise ValueError(
            f"{name} is no task source, it must be arithmetic, arithmetic:STEPSxLARGEST as "
            "arithmetic:3x20, or a JSONL file"
        )
    return Questions(path)
