"""Tests of ours among those of a file, which tell whether a run of its tests can be believed.

One passes and some fail, whatever the code under test is. Those that fail are copies of a real test
that compare with another value, of one type each, so they fail with right code too: code that makes
its tests pass, or its values equal to whatever they are compared with, makes one of these pass.
Where no test can be copied so, one is about a name that the file imports, as the one that passes
is. All stand at random places and have names made of the file's own words.
"""

import ast
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

_ABOUT: Final = (
    ("[{0}] == [{0}]", "[{0}] == []"),
    ("isinstance({0}, object)", "not isinstance({0}, object)"),
    ("type({0}) is type({0})", "type({0}) is not type({0})"),
    ("({0},).index({0}) == 0", "({0},).index({0}) == 1"),
)
"""Claims that are true of everything, and that are not"""
_OTHERS: Final = (
    *("[{0}, {0}]", "({0}, {0}, 0)", "repr([{0}])", "-7919 - len(repr([{0}]))"),
    "dict.fromkeys('ab', {0})",
)
"""Values made of a value, none of which is equal to it"""
_WORD: Final = re.compile(r"[A-Za-z][a-z]{2,11}")
_NUM_WORDS: Final = 3
_OF_ALL: Final = re.compile(r"^pytestmark\b|\bautouse\s*=\s*True", re.MULTILINE)
"""Settings of all tests of a file, which a test without arguments may not bear"""
_EXPECTED: Final = re.compile(r"xfail|skip")
_HOLDS: Final = re.compile(
    r"thread|socket|server|connect|process|signal|sleep|lock|\bopen\(|timeout|fork", re.IGNORECASE
)
"""Words of tests that hold something until their end, and would keep it where they fail"""

_Function = ast.FunctionDef


@dataclass(frozen=True, slots=True)
class Decoys:
    """A file of tests with ours."""

    text: str
    beside: str | None
    """Text of a file of its own that has the test which passes; None if the first file has it"""
    passing: str
    """Name of the test that passes"""
    failing: tuple[str, ...]
    """Names of the tests that fail, with their class before; they may have parameters"""
    are_copies: bool
    """True if those are copies of a real one"""


def with_decoys(text: str, names: Sequence[str] = ()) -> Decoys:
    """Return a file of tests with ours; one that is no Python has them at its end.

    names  tests of the file, `test_a` or `TestB::test_c[1]`, one of which may be copied
    """
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        body = []
    draw = secrets.SystemRandom()
    passing, *failing = _new_names(text, 1 + len(_OTHERS))
    about = draw.choice(_imported(body) or ["__name__"])
    right, wrong = draw.choice(_ABOUT)
    is_apart = _OF_ALL.search(text) is not None
    added = [] if is_apart else [(_place(text, body), _claim(passing, right.format(about)))]
    wanted = {name.partition("[")[0] for name in names}
    copies = [one for one in _functions(body, "") if one[0] in wanted and _false(text, one[1])]
    if copies:
        name, function = draw.choice(copies)
        for new, other in zip(failing, draw.sample(_OTHERS, len(_OTHERS)), strict=True):
            added.append(_copy(text, function, new, other))
        before = name.removesuffix(function.name)
    else:
        failing, before = failing[:1], ""
        added.append((_place(text, body), _claim(failing[0], wrong.format(about))))
    lines = text.split("\n")
    for place, block in sorted(added, key=lambda one: one[0], reverse=True):
        lines[place:place] = block
    beside = "\n".join(_claim(passing, "True")) if is_apart else None
    found = tuple(before + one for one in failing)
    return Decoys("\n".join(lines), beside, passing, found, bool(copies))


def _new_names(text: str, count: int) -> list[str]:
    draw = secrets.SystemRandom()
    words = sorted({word.lower() for word in (*_WORD.findall(text), "more", "with", "all")})
    names: list[str] = []
    while len(names) < count:
        name = "_".join(["test", *draw.choices(words, k=_NUM_WORDS)])
        if name not in names and name not in text:
            names.append(name)
    return names


def _claim(name: str, claim: str) -> list[str]:
    return ["", f"def {name}():", f"    assert {claim}", "", ""]


def _place(text: str, body: Sequence[ast.stmt]) -> int:
    """Return the number of lines before a random function or class, or of all lines."""
    blocks = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    starts = [_first_line(node) - 1 for node in body if isinstance(node, blocks)]
    return secrets.choice([*starts, text.count("\n") + 1])


def _first_line(node: ast.stmt) -> int:
    """Return the line, from 1, where a function or class begins, with its decorators."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(one.lineno for one in decorators)])


def _imported(body: Sequence[ast.stmt]) -> list[str]:
    """Return the names that a module imports at its top."""
    found = []
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (one.asname or one.name.partition(".")[0] for one in node.names)
            found += [name for name in names if name not in ("*", "annotations")]
    return found


def _functions(body: Sequence[ast.stmt], before: str) -> Iterator[tuple[str, _Function]]:
    """Yield the functions of a module and its classes, each with its name among pytest's."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{before}{node.name}::")
        elif isinstance(node, _Function):
            yield before + node.name, node


def _false(text: str, function: _Function) -> ast.expr | None:
    """Return the right side of the first equation that a test asserts, for another value to take
    its place; None if the test may pass without getting there."""
    lines = text.split("\n")[_first_line(function) - 1 : function.end_lineno]
    num_first = function.lineno - _first_line(function) + 1
    if _EXPECTED.search("\n".join(lines[:num_first])) or _HOLDS.search("\n".join(lines)):
        return None
    for node in function.body:
        match node:
            case ast.Assert(test=ast.Compare(ops=[ast.Eq()], comparators=[right])):
                return right
            case ast.Expr(
                value=ast.Call(
                    func=ast.Attribute(value=ast.Name(id="self"), attr="assertEqual"),
                    args=[_, right, *_],
                )
            ) if not isinstance(right, ast.Starred):
                return right
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign() | ast.Expr() | ast.Assert():
                continue  # such a line may fail, which is as good, but not leave out what follows
            case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.ClassDef():
                continue
            case _:
                return None
    return None


def _copy(text: str, function: _Function, name: str, other: str) -> tuple[int, list[str]]:
    """Return the number of lines before a copy that fails, and its lines."""
    node = _false(text, function)
    assert node is not None
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    first, last = _first_line(function), function.end_lineno or function.lineno
    lines = [line.encode("utf-8", "surrogateescape") for line in text.split("\n")]
    spanned = lines[node.lineno - 1 : node.end_lineno]
    tail = spanned[-1][node.end_col_offset :]
    spanned[-1] = spanned[-1][: node.end_col_offset]
    head, spanned[0] = spanned[0][: node.col_offset], spanned[0][node.col_offset :]
    value = b"\n".join(spanned)
    new = (head + other.encode().replace(b"{0}", value) + tail).split(b"\n")
    lines[node.lineno - 1 : node.end_lineno] = new
    last += len(new) - len(spanned)
    place = function.lineno - 1
    old = rf"\bdef\s+{re.escape(function.name)}\b".encode()
    lines[place] = re.sub(old, f"def {name}".encode(), lines[place], count=1)
    block = [line.decode("utf-8", "surrogateescape") for line in lines[first - 1 : last]]
    return first - 1, [*block, ""]
