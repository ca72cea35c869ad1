"""Sentences that docs/troubleshooting.md quotes are those that the code says."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from fulmen.cli.options import ENGINE_CONFIG, _fields, in_flags
from fulmen.sampling import SamplingParams

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
HOLE = "\0"
"""Character that stands for a part of a sentence which differs from case to case."""
QUOTED = [
    line
    for block in re.findall(r"^```text\n(.*?)^```", PAGE, re.M | re.S)
    for line in block.splitlines()
]


def literal(node: ast.expr) -> str | None:
    """Return the text of a literal, with holes where a value or a %s goes; None for others."""
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"%(\.\d+)?[sdfg]", HOLE, text)
        case ast.JoinedStr(values=parts):
            return "".join(literal(part) or HOLE for part in parts)
        case _:
            return None


@cache
def sentences() -> frozenset[str]:
    """Return all texts in the package, holes and all, those about a field also as the command line
    says them."""
    flags = {
        field.name: field.flag
        for config in (ENGINE_CONFIG, SamplingParams)
        for field in _fields(config)
    }
    return frozenset(
        said
        for file in (ROOT / "fulmen").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.expr) and (text := literal(node)) is not None
        for said in (text, in_flags(text, flags))
    )


def pattern(quoted: str) -> re.Pattern[str]:
    """Return what a text of the code must match to be the quoted one: holes where it has `...`.

    An ellipsis at either end may stand for more than one hole, even for another sentence.
    """
    inner = quoted.removeprefix("... ").removesuffix("...")
    inner = inner.removeprefix("...")
    middle = f"{HOLE}+".join(map(re.escape, inner.split("...")))
    return re.compile(rf"{'.*' if quoted.startswith('...') else ''}{middle}.*", re.S)


def is_said(quoted: str) -> bool:
    return any(pattern(quoted).fullmatch(text) for text in sentences())


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_sentence_is_said_by_the_code(quoted: str) -> None:
    assert is_said(quoted)


@pytest.mark.parametrize(
    "wrong",
    [
        "session ... is in use by another program, fulmen sessions fork makes a second one of it",
        "is in use by another process, fulmen sessions fork makes a second one of it",
        "kv_cache_bytes is 5, this machine has ... of memory",
    ],
)
def test_a_sentence_that_nothing_says_is_noticed(wrong: str) -> None:
    assert not is_said(wrong)
