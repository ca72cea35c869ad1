"""Arithmetic formulas as text: + - * / and brackets over whole numbers, valued exactly.

The parser keeps its own stacks, so that no text is too deep for it.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from fulmen.envs.logic.reading import bare

_TOKEN: Final = re.compile(r"[0-9]{1,12}|[-+*/()]")
_MOST_TOKENS: Final = 200
_ASCII: Final = str.maketrans({"\u00d7": "*", "·": "*", "÷": "/", "\u2212": "-", "\u2013": "-"})
_RANKS: Final = {"(": 0, ")": 1, "+": 2, "-": 2, "*": 3, "/": 3}


def plain_formula(text: str) -> str:
    """Return a formula in its bare form, with the operators of a keyboard."""
    return bare(text).translate(_ASCII)


def tokens_of(formula: str) -> list[str] | None:
    """Return the numbers, operators and brackets of a formula; None if it has anything else, or
    more of them than a formula may have. Two numbers with a space between them stay two."""
    tokens = _TOKEN.findall(formula)
    if len(tokens) > _MOST_TOKENS or _TOKEN.sub("", formula).strip(" "):
        return None
    return tokens


def value_of(tokens: Sequence[str]) -> Fraction | None:
    """Return the value of a formula; None if it is none, or divides by zero. There are no signs:
    `-` stands between two values."""
    values: list[Fraction] = []
    operators: list[str] = []
    needs_value = True
    for token in tokens:
        if needs_value != (token not in _RANKS or token == "("):
            return None
        if token == "(":
            operators.append(token)
        elif token not in _RANKS:
            values.append(Fraction(token))
            needs_value = False
        else:
            while operators and _RANKS[operators[-1]] >= _RANKS[token]:
                if not _apply(operators.pop(), values):
                    return None
            if token != ")":
                operators.append(token)
                needs_value = True
            elif not operators:
                return None
            else:
                operators.pop()  # its opening bracket
    while operators and not needs_value:
        if operators[-1] == "(" or not _apply(operators.pop(), values):
            return None
    return None if needs_value else values[0]


def _apply(operator: str, values: list[Fraction]) -> bool:
    """Put the result of the last two values in their place; return False if there is none."""
    right, left = values.pop(), values.pop()
    if operator == "/" and right == 0:
        return False
    if operator == "/":
        values.append(left / right)
    elif operator == "*":
        values.append(left * right)
    else:
        values.append(left + right if operator == "+" else left - right)
    return True
