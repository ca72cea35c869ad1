"""Forms of values: what a value is called, and how it stands on standard input and output."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Form:
    """A form of values that programs take or give."""

    words: str
    """Noun for people, such as `a list of whole numbers`"""
    stdin: str
    """Place on stdin, as words"""
    stdout: str
    """Way in which it is printed, as words"""
    read: str
    """Python expression that reads it"""
    show: str
    """Python statement that prints it, with `{}` for the value"""
    written: Callable[[Any], str]
    """Lines that it is on stdin or stdout, without the last line's end"""


def _spaced(values: Any) -> str:
    return " ".join(map(str, values))


def _rows(rows: Any) -> str:
    return "\n".join([str(len(rows)), *map(_spaced, rows)])


def _lines(lines: Any) -> str:
    return "\n".join([str(len(lines)), *lines])


def _counts(counts: Any) -> str:
    return "\n".join(f"{key} {counts[key]}" for key in sorted(counts))


_NUMBERS: Final = "[int(one) for one in input().split()]"
FORMS: Final[Mapping[str, Form]] = {
    "number": Form(
        "a whole number", "a line with the number", "the number", "int(input())", "print({})", str
    ),
    "text": Form("a text", "a line, which may be empty", "the text", "input()", "print({})", str),
    "numbers": Form(
        "a list of whole numbers",
        "a line with the numbers, a space between them; it is empty if there are none",
        "the numbers on one line, with a space between them",
        _NUMBERS,
        "print(*{})",
        _spaced,
    ),
    "words": Form(
        "a list of words",
        "a line with the words, a space between them; it is empty if there are none",
        "the words on one line, with a space between them",
        "input().split()",
        "print(*{})",
        _spaced,
    ),
    "rows": Form(
        "a list of lists of whole numbers",
        "a line that says how many there are, then a line for each with its numbers, a space "
        "between them",
        "a line that says how many lists there are, then a line for each with its numbers, a "
        "space between them",
        f"[{_NUMBERS} for _ in range(int(input()))]",
        "print(len({0}))\nfor row in {0}:\n    print(*row)",
        _rows,
    ),
    "lines": Form(
        "a list of texts",
        "a line that says how many there are, then each on a line of its own",
        "a line that says how many there are, then each on a line of its own",
        "[input() for _ in range(int(input()))]",
        'print(len({0}))\nprint(*{0}, sep="\\n")',
        _lines,
    ),
    "counts": Form(
        "a dictionary of whole numbers by texts",
        "lines with a key and its number",
        "a line for each key, with the key, a space and its number, in the order in which Python "
        "sorts the keys",
        "{}",
        "for key in sorted({0}):\n    print(key, {0}[key])",
        _counts,
    ),
}
"""All forms by name; `counts` are only given, never taken"""
