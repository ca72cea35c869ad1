"""boolean and brackets: an expression that is rewritten until it is a value, brackets to close."""

import re
from random import Random
from typing import Final

from fulmen.envs.basics.question import BasicKind, Question, placed, read_line
from fulmen.envs.logic.brackets import PARTNERS, balanced
from fulmen.envs.logic.reading import bare

_BOOLEAN: Final = (
    "What is {text}?",
    "Is this True or False: {text}",
    "Evaluate {text}.",
    "{text} =",
    "Is {text} True or False?",
    "Ist das True oder False: {text}",
)
_BRACKETS: Final = (
    "Close the brackets: {text}",
    "Complete the brackets: {text}",
    "Which brackets are missing after {text}",
    "Which brackets close {text}",
    "Schließe die Klammern: {text}",
)
_INNERMOST: Final = re.compile(r"\((True|False) (and|or) (True|False)\)|not (True|False)")
_KINDS: Final = "([{"


def _boolean(draw: Random) -> Question:
    text = _expression(draw, draw.randint(2, 4))
    steps = [text]
    while steps[-1] not in ("True", "False"):
        steps.append(_INNERMOST.sub(_value, steps[-1], count=1))
    asked = draw.choice(_BOOLEAN).format(text=text)
    return Question(asked, " = ".join(steps), steps[-1], _read_value)


def _expression(draw: Random, num_operators: int) -> str:
    if num_operators == 0:
        return draw.choice(("True", "False"))
    if draw.random() < 0.3:
        return f"not {_expression(draw, num_operators - 1)}"
    num_left = draw.randrange(num_operators)
    left = _expression(draw, num_left)
    right = _expression(draw, num_operators - 1 - num_left)
    return f"({left} {draw.choice(('and', 'or'))} {right})"


def _value(found: re.Match[str]) -> str:
    """Return the value of an expression with one operator."""
    left, operator, right, negated = found.groups()
    if negated is not None:
        return str(negated == "False")
    values = (left == "True", right == "True")
    return str(all(values) if operator == "and" else any(values))


def _read_value(reply: str) -> str | None:
    said = (read_line(reply) or "").lower()
    return said if said in ("true", "false") else None


def _brackets(draw: Random) -> Question:
    """Return brackets of which some are open; the thought has the open ones after each of them."""
    num_open = draw.randint(1, 4)
    is_open = [draw.choice(_KINDS) for _ in range(num_open)]
    places = [draw.randint(0, num_open) for _ in range(draw.randint(0, 3))]
    sequence = balanced(draw, places.count(0), _KINDS)
    for place, bracket in enumerate(is_open, start=1):
        sequence += [bracket, *balanced(draw, places.count(place), _KINDS)]
    steps, stack = [], ""
    for bracket in sequence:
        stack = stack + bracket if bracket in PARTNERS else stack[:-1]
        steps.append(f"{bracket}:{stack or '-'}")
    answer = "".join(PARTNERS[bracket] for bracket in reversed(stack))
    asked = draw.choice(_BRACKETS).format(text="".join(sequence))
    return Question(asked, " ".join(steps), answer, _read_brackets)


def _read_brackets(reply: str) -> str | None:
    return bare(placed(reply) or "").replace(" ", "").replace(",", "") or None


LOGIC: Final = (
    BasicKind("boolean", _boolean, chance=0.65),
    BasicKind("brackets", _brackets, chance=0.15),
)
