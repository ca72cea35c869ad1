"""Environments by the names that people type.

repairs:3:minimal -> KINDS["repairs"].load("3:minimal", seed) -> Environment
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fulmen.envs.arithmetic import Arithmetic
from fulmen.envs.basics import PARTS, Basics
from fulmen.envs.calls import Calls
from fulmen.envs.code import Code, Exercises
from fulmen.envs.folders import Folders
from fulmen.envs.injection import Injection
from fulmen.envs.instances import Instances
from fulmen.envs.instructions.environment import ifeval
from fulmen.envs.logic import Logic
from fulmen.envs.packages import Packages
from fulmen.envs.questions import Questions, gsm8k
from fulmen.envs.reasoning import ReasoningGym
from fulmen.envs.repairs import Repairs
from fulmen.envs.task import Environment
from fulmen.envs.tau2 import Tau2
from fulmen.envs.tools import ToolUse
from fulmen.envs.words import WordProblems
from fulmen.files import shorten

_PUZZLE: Final = re.compile(r"(?:([^:0-9][^:]*)(?::|\Z))?([0-9]{1,18})?")
_LEVEL: Final = re.compile(r"[0-9]{1,18}")
_LEVEL_AND_WORD: Final = re.compile(r"(?:([0-9]{1,18})(?::|\Z))?([a-z]+)?")
_REPAIRS: Final = re.compile(r"(?:([0-9]{1,18})(?::|\Z))?(coding|minimal)?")
_PACKAGES: Final = re.compile(r"(?:(?!coding$|minimal$)([\w-]+)(?::|\Z))?(coding|minimal)?")
_CODE: Final = re.compile(r"(?:([1-9][0-9]{0,17})(?::|\Z))?(stdin|function)?")
_TAU2: Final = re.compile(r"(?:([a-z][a-z0-9_-]*)(?::|\Z))?([0-9]{1,9})?")
_SIZES: Final = re.compile(r"([0-9]{1,18})x([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class Kind:
    """Environments that begin with one word."""

    usage: str
    """The word and what may stand after it, such as `repairs[:LEVEL]`"""
    help: str
    """One line for people"""
    load: Callable[[str, int], Environment | None]
    """The environment of what stands after the word and its colon, with a seed; None for words that
    it does not know, and a ValueError for numbers that cannot be"""


def _arithmetic(words: str, seed: int) -> Environment | None:
    if not words:
        return Arithmetic(seed)
    found = _SIZES.fullmatch(words)
    return found and Arithmetic(seed, num_steps=int(found[1]), largest=int(found[2]))


def _basics(words: str, seed: int) -> Environment | None:
    kind, _, part = words.rpartition(":") if words.rpartition(":")[2] in PARTS else (words, "", "")
    return Basics(seed, kind=kind or None, part=part or None)


def _calls(words: str, seed: int) -> Environment | None:
    kind, _, part = words.rpartition(":") if words.rpartition(":")[2] in PARTS else (words, "", "")
    return Calls(seed, kind=kind or None, part=part or None)


def _repairs(words: str, seed: int) -> Environment | None:
    if (found := _REPAIRS.fullmatch(words)) is None:
        return None
    level = None if found[1] is None else int(found[1])
    return Repairs(seed, level=level, profile=found[2] or "coding")


def _packages(words: str, seed: int) -> Environment | None:
    if (found := _PACKAGES.fullmatch(words)) is None:
        return None
    return Packages(seed, package=found[1], profile=found[2] or "coding")


def _logic(words: str, seed: int) -> Environment | None:
    if (found := _PUZZLE.fullmatch(words)) is None:
        return None
    return Logic(seed, kind=found[1], level=None if found[2] is None else int(found[2]))


def _tools(words: str, seed: int) -> Environment | None:
    if (found := _LEVEL_AND_WORD.fullmatch(words)) is None:
        return None
    return ToolUse(seed, level=None if found[1] is None else int(found[1]), domain=found[2])


def _injection(words: str, seed: int) -> Environment | None:
    if (found := _REPAIRS.fullmatch(words)) is None:
        return None
    level = None if found[1] is None else int(found[1])
    return Injection(seed, level=level, profile=found[2] or "coding")


def _word_problems(words: str, seed: int) -> Environment | None:
    if words and _LEVEL.fullmatch(words) is None:
        return None
    return WordProblems(seed, level=int(words) if words else None)


def _folders(words: str, seed: int) -> Environment | None:
    return Folders(Path(words)) if words else None


def _instances(words: str, seed: int) -> Environment | None:
    path, _, repositories = words.rpartition(":")
    return Instances(Path(path), Path(repositories)) if path and repositories else None


def _reasoning_gym(words: str, seed: int) -> Environment | None:
    return ReasoningGym(seed, name=words or None)


def _code(words: str, seed: int) -> Environment | None:
    if (found := _CODE.fullmatch(words)) is None:
        return None
    level = None if found[1] is None else int(found[1])
    return Code(seed, level=level, style=found[2])


def _tau2(words: str, seed: int) -> Environment | None:
    if (found := _TAU2.fullmatch(words)) is None:
        return None
    return Tau2(found[1], index=None if found[2] is None else int(found[2]))


def _exercises(words: str, seed: int) -> Environment | None:
    if not words:
        return None
    if not os.path.isfile(words):
        found = shorten(words)
        raise ValueError(f"{found} is no file, it must be the JSONL file of HumanEval or MBPP")
    return Exercises(Path(words))


KINDS: Final = {
    "arithmetic": Kind(
        "arithmetic[:STEPSxLARGEST]",
        "little stories; the last number of the answer counts",
        _arithmetic,
    ),
    "basics": Kind(
        "basics[:KIND][:PART]",
        "short questions that small models master; parts training, validation and test",
        _basics,
    ),
    "calls": Kind(
        "calls[:KIND][:PART]",
        "small tasks with tools of unseen names; parts training, validation and test",
        _calls,
    ),
    "logic": Kind(
        "logic[:PUZZLE][:LEVEL]",
        "puzzles with rules, such as logic:sudoku:2; levels 1 to 5",
        _logic,
    ),
    "repairs": Kind(
        "repairs[:LEVEL][:minimal]",
        "a small repository with one fault; levels 1 to 5; minimal: the tools of small models",
        _repairs,
    ),
    "packages": Kind(
        "packages[:NAME][:minimal]",
        "real packages of the package index, one fault in each; their own tests tell",
        _packages,
    ),
    "tools": Kind(
        "tools[:LEVEL][:DOMAIN]",
        "people at the desk of a shop, of trains or of a library, with rules; levels 1 to 5",
        _tools,
    ),
    "injection": Kind(
        "injection[:LEVEL][:minimal]",
        "small jobs on files that hold the orders of somebody else; levels 1 to 5",
        _injection,
    ),
    "word_problems": Kind(
        "word_problems[:LEVEL]",
        "stories of one to five steps, told in many ways; levels 1 to 5",
        _word_problems,
    ),
    "gsm8k": Kind(
        "gsm8k[:FILE]",
        "GSM8K: a file of JSON lines or Parquet, or test or train from the hub",
        lambda words, seed: gsm8k(words),
    ),
    "ifeval": Kind(
        "ifeval[:FILE]",
        "IFEval: prompts with rules for the form of the answer; a file, or all from the hub",
        lambda words, seed: ifeval(words),
    ),
    "folders": Kind(
        "folders:FOLDER",
        "a task's folder as Harbor has it, or a folder of several; nothing is built for it",
        _folders,
    ),
    "instances": Kind(
        "instances:FILE:REPOSITORIES",
        "issues as SWE-bench has them, and a folder with clones of their repositories",
        _instances,
    ),
    "reasoning_gym": Kind(
        "reasoning_gym[:DATASET]",
        "data sets of reasoning-gym that passed the self-check (the extra envs)",
        _reasoning_gym,
    ),
    "tau2": Kind(
        "tau2[:DOMAIN][:INDEX]",
        "tau2-bench: airline, retail, telecom or mock, where its package is installed",
        _tau2,
    ),
    "code": Kind(
        "code[:LEVEL][:stdin|function]",
        "programs to write, which are run on hidden inputs; levels 1 to 5",
        _code,
    ),
    "humaneval": Kind(
        "humaneval:FILE", "HumanEval from its JSONL file; for evaluation only", _exercises
    ),
    "mbpp": Kind("mbpp:FILE", "MBPP from its JSONL file; for evaluation only", _exercises),
}
"""Kinds of environments by their first word"""


def load_environment(name: str, *, seed: int) -> Environment:
    """Return the environment of a name: one of KINDS, or a file of questions in JSONL or Parquet,
    which the seed does not change. Raises ValueError for any other name."""
    first, _, words = name.partition(":")
    if first in KINDS:
        if (environment := KINDS[first].load(words, seed)) is not None:
            return environment
        raise ValueError(f"{shorten(name)} is no environment, it must be {KINDS[first].usage}")
    if not os.path.isfile(name):  # unlike a Path's, it takes names that no file can have
        known = ", ".join(kind.usage for kind in KINDS.values())
        raise ValueError(
            f"{shorten(name)} is no environment, it must be a JSONL or Parquet file or one of: "
            f"{known}"
        )
    return Questions(Path(name))
