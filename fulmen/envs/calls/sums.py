"""Tools that compute: one of an operation with two numbers, or one of an expression as text."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Final

from fulmen.envs.calls.case import Arguments, Device, chosen, device
from fulmen.envs.calls.names import Names

_NUMBERS: Final = ("a", "b", "x", "y", "n", "first", "second", "left", "right", "number", "value")
_TEXTS: Final = ("expression", "formula", "text", "input", "sum", "term", "query", "e", "exp")
_EXPRESSION: Final = re.compile(r"\s*(-?\d{1,12})\s*([-+*/])\s*(-?\d{1,12})\s*")
_LARGEST: Final = 10**12


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation on two numbers, and the words of those who ask for it."""

    sign: str
    words: tuple[str, ...]
    """English words for names of tools"""
    descriptions: tuple[str, ...]
    """Sentences with the parameters {a} and {b}"""
    asked: Mapping[str, tuple[str, ...]]
    """Questions by language"""


OPERATIONS: Final = (
    Operation(
        "+",
        ("add", "sum", "plus", "total", "addition"),
        ("Add {a} and {b}.", "Returns {a} plus {b}."),
        {
            "en": (
                *("What is {a} + {b}?", "Add {a} and {b}.", "How much is {a} plus {b}?"),
                *("{a} + {b}", "What is the sum of {a} and {b}?", "Please compute {a}+{b}."),
            ),
            "de": (
                *("Was ist {a} + {b}?", "Addiere {a} und {b}.", "Wie viel ist {a} plus {b}?"),
                *("Rechne {a}+{b}.", "Was ist die Summe von {a} und {b}?"),
            ),
        },
    ),
    Operation(
        "-",
        ("subtract", "minus", "difference", "less"),
        ("Subtract {b} from {a}.", "Returns {a} minus {b}."),
        {
            "en": (
                *("What is {a} - {b}?", "Subtract {b} from {a}.", "How much is {a} minus {b}?"),
                *("{a} - {b}", "Take {b} away from {a}.", "Please compute {a}-{b}."),
            ),
            "de": (
                *("Was ist {a} - {b}?", "Ziehe {b} von {a} ab.", "Wie viel ist {a} minus {b}?"),
                *("Rechne {a}-{b}.", "Subtrahiere {b} von {a}."),
            ),
        },
    ),
    Operation(
        "*",
        ("multiply", "times", "product", "mul"),
        ("Multiply {a} by {b}.", "Returns {a} times {b}."),
        {
            "en": (
                *("What is {a} * {b}?", "Multiply {a} by {b}.", "How much is {a} times {b}?"),
                *("{a} * {b}", "What is the product of {a} and {b}?", "Please compute {a}*{b}."),
            ),
            "de": (
                *("Was ist {a} * {b}?", "Multipliziere {a} mit {b}.", "Wie viel ist {a} mal {b}?"),
                *("Rechne {a}*{b}.", "Was ist das Produkt von {a} und {b}?"),
            ),
        },
    ),
    Operation(
        "/",
        ("divide", "quotient", "ratio", "share"),
        ("Divide {a} by {b}.", "Returns {a} divided by {b}."),
        {
            "en": ("What is {a} / {b}?", "Divide {a} by {b}.", "How much is {a} divided by {b}?"),
            "de": ("Was ist {a} / {b}?", "Teile {a} durch {b}.", "Wie viel ist {a} durch {b}?"),
        },
    ),
)
"""All operations"""
_ANY_WORDS: Final = ("compute", "calculator", "calculate", "calc", "math", "evaluate", "reckon")


@dataclass(frozen=True, slots=True)
class Computer:
    """A tool that computes, and how it is given two numbers."""

    device: Device
    is_text: bool
    """True if it takes an expression, False if two numbers"""
    is_turned: bool = False
    """True if its second parameter is the first number"""

    def thought(self, a: int, b: int) -> str:
        """Return the thought that chooses it and gives its parameters their numbers."""
        if self.is_text:
            return chosen(self.device)
        keys = list(self.device.tool.parameters["properties"])
        first, second = reversed(keys) if self.is_turned else keys
        return f"{chosen(self.device)} So {first} is {a} and {second} is {b}."

    def values(self, a: int, sign: str, b: int) -> tuple[str | int, ...]:
        """Return the values of its parameters, in their order."""
        if self.is_text:
            return (f"{a}{sign}{b}",)
        return (b, a) if self.is_turned else (a, b)


def text_computer(draw: Random, names: Names) -> Computer:
    """Return a tool that computes an expression of two numbers."""
    about = draw.choice(
        ("Compute an expression such as 3+4.", "Calculator for text such as 12*7.", "Computes 8-5.")
    )
    key = names.parameter(_TEXTS)
    return Computer(device(names.tool(_ANY_WORDS), about, _work, {key: "string"}, _text_form), True)


def number_computer(draw: Random, names: Names, operation: Operation) -> Computer:
    """Return a tool of one operation. Its description says which parameter is which number."""
    a, b = names.parameter(_NUMBERS), names.parameter(_NUMBERS)
    is_turned = draw.random() < 0.5
    order = (b, a) if is_turned else (a, b)

    def work(arguments: Arguments) -> str:
        return shown(value_of(arguments[a], operation.sign, arguments[b]))

    def form(arguments: Arguments) -> object:
        return _form(arguments[a], operation.sign, arguments[b])

    about = draw.choice(operation.descriptions).format(a=a, b=b)
    name = names.tool(operation.words)
    parameters = dict.fromkeys(order, "integer")
    return Computer(device(name, about, work, parameters, form), False, is_turned)


def make_numbers(draw: Random, sign: str) -> tuple[int, int]:
    """Return two numbers that an operation can take; quotients are whole."""
    a, b = (draw.randrange(1, 10 ** draw.randint(1, 4)) for _ in range(2))
    if sign == "/":
        b = draw.randint(2, 99)
        return b * draw.randint(2, 999), b
    return (max(a, b), min(a, b)) if sign == "-" else (a, b)


def value_of(a: int, sign: str, b: int) -> Fraction:
    """Return the value of an operation. Raises ValueError for what has none, or for large
    numbers."""
    if max(abs(a), abs(b)) > _LARGEST:
        raise ValueError("the numbers are too large")
    if sign == "/" and b == 0:
        raise ValueError("nothing can be divided by 0")
    one, other = Fraction(a), Fraction(b)
    if sign == "/":
        return one / other
    return one + other if sign == "+" else one - other if sign == "-" else one * other


def shown(value: Fraction) -> str:
    """Return a value as tools show it: a whole number, or with four digits after the point."""
    return str(value) if value.denominator == 1 else f"{float(value):.4f}"


def _read(text: str) -> tuple[int, str, int]:
    """Return the parts of an expression. Raises ValueError for another text."""
    found = _EXPRESSION.fullmatch(text[:60])
    if found is None:
        raise ValueError("write two numbers and a sign, such as 3+4 or 12*7")
    return int(found[1]), found[2], int(found[3])


def _work(arguments: Arguments) -> str:
    (text,) = arguments.values()
    return shown(value_of(*_read(text)))


def _text_form(arguments: Arguments) -> object:
    (text,) = arguments.values()
    try:
        return _form(*_read(text))
    except ValueError:
        return text


def _form(a: int, sign: str, b: int) -> object:
    """Return an operation with the numbers in an order that does not matter where it does not."""
    return [sign, sorted((a, b))] if sign in "+*" else [sign, [a, b]]
