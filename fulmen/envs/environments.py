"""Environments by the names that people type."""

import re
from pathlib import Path

from fulmen.envs.arithmetic import Arithmetic
from fulmen.envs.questions import Questions
from fulmen.envs.repairs import Repairs
from fulmen.envs.task import Environment

_REPAIRS = re.compile(r"repairs(?::([0-9]{1,18}))?(?::(coding|minimal))?")
_ARITHMETIC = re.compile(r"arithmetic(?::([0-9]{1,18})x([0-9]{1,18}))?")


def load_environment(name: str, *, seed: int) -> Environment:
    """Return the environment of a name.

    arithmetic        stories of two steps with numbers up to 9
    arithmetic:3x20   stories of three steps with numbers up to 20
    repairs           repositories with one fault, of all levels in turn
    repairs:3         those of level 3; levels go from 1 to 5
    repairs:minimal   with the tools of small models; so is repairs:3:minimal
    a file            questions from JSONL; the seed does not change them
    """
    if (found := _ARITHMETIC.fullmatch(name)) is not None:
        if found[1] is None:
            return Arithmetic(seed)
        return Arithmetic(seed, num_steps=int(found[1]), largest=int(found[2]))
    if (found := _REPAIRS.fullmatch(name)) is not None:
        level = None if found[1] is None else int(found[1])
        return Repairs(seed, level=level, profile=found[2] or "coding")
    path = Path(name)
    if not path.is_file():
        raise ValueError(
            f"{name} is no task source, it must be arithmetic, arithmetic:STEPSxLARGEST as "
            "arithmetic:3x20, repairs, repairs:LEVEL, repairs:LEVEL:minimal, or a JSONL file"
        )
    return Questions(path)
