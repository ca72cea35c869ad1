"""Two tests of ours among those of a file, which tell whether a run of its tests can be believed.

One passes and one fails, whatever the code under test is. They stand at random places of the file,
have names made of its own words, and are about a name that it imports, so that code which makes
tests pass, or passes over them, cannot leave out these two.
"""

import ast
import re
import secrets
from dataclasses import dataclass
from typing import Final

_ABOUT: Final = (
    ("[{0}] == [{0}]", "[{0}] == []"),
    ("isinstance({0}, object)", "not isinstance({0}, object)"),
    ("type({0}) is type({0})", "type({0}) is not type({0})"),
    ("({0},).index({0}) == 0", "({0},).index({0}) == 1"),
)
"""Claims that are true of everything, and that are not"""
_WORD: Final = re.compile(r"[A-Za-z][a-z]{2,11}")
_NUM_WORDS: Final = 3


@dataclass(frozen=True, slots=True)
class Decoys:
    """A file of tests with two more."""

    text: str
    passing: str
    """Name of the test that passes"""
    failing: str


def with_decoys(text: str) -> Decoys:
    """Return a file of tests with two of ours; one that is no Python has them at its end."""
    draw = secrets.SystemRandom()
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        body = []
    words = sorted({word.lower() for word in (*_WORD.findall(text), "more", "with", "all")})
    names: list[str] = []
    while len(names) < 2:
        name = "_".join(["test", *draw.choices(words, k=_NUM_WORDS)])
        if name not in names and name not in text:
            names.append(name)
    about = draw.choice(_imported(body) or ["__name__"])
    lines = text.split("\n")
    starts = [_first_line(node) for node in body if isinstance(node, _BLOCKS)]
    places = sorted(draw.choices([*starts, len(lines) + 1], k=2), reverse=True)
    order = draw.sample([0, 1], 2)
    for place, which in zip(places, order, strict=True):
        claim = draw.choice(_ABOUT)[which].format(about)
        lines[place - 1 : place - 1] = ["", f"def {names[which]}():", f"    assert {claim}", "", ""]
    return Decoys("\n".join(lines), *names)


_BLOCKS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _first_line(node: ast.stmt) -> int:
    """Return the line, from 1, where a function or class begins, with its decorators."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(one.lineno for one in decorators)])


def _imported(body: list[ast.stmt]) -> list[str]:
    """Return the names that a module imports at its top."""
    found = []
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (one.asname or one.name.partition(".")[0] for one in node.names)
            found += [name for name in names if name not in ("*", "annotations")]
    return found
