"""Tiny functions, each with a docstring that says what is right, and wrong forms of its one
expression.

    form with {a}, {k} ... -> names and numbers put in -> docstring, expression, wrong ones, probes
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from fulmen.envs.logic.words import WORDS

_NUMBER_NAMES: Final = ("a", "b", "x", "y", "n", "m", "count", "price", "size", "age")
_TEXT_NAMES: Final = ("text", "word", "name", "line", "s", "title")
_LIST_NAMES: Final = ("items", "numbers", "values", "rows", "xs")
_NUM_PROBES: Final = 8


@dataclass(frozen=True, slots=True)
class Form:
    """A function yet without names and numbers.

    {a} and {b} are numbers that it is given, {s} is a text, {v} a list of numbers; {k} is a number
    in it, {m} a larger one, {w} a word; {j} and {l} are numbers near {k}.
    """

    says: tuple[str, ...]
    """Ways in which its docstring may say it"""
    right: str
    wrong: tuple[str, ...]


FORMS: Final = (
    Form(
        ("Return {a} plus {k}.", "Add {k} to {a}."),
        "{a} + {k}",
        ("{a} - {k}", "{a} * {k}", "{a} + {j}", "{a} + {l}"),
    ),
    Form(
        ("Return {a} minus {k}.", "Take {k} from {a}."),
        "{a} - {k}",
        ("{a} + {k}", "{a} - {j}", "{k} - {a}"),
    ),
    Form(
        ("Return {a} times {k}.", "Multiply {a} by {k}."),
        "{a} * {k}",
        ("{a} + {k}", "{a} * {j}", "{a} * {l}", "{a} - {k}"),
    ),
    Form(
        ("Return {a} plus {b}.", "Return the sum of {a} and {b}."),
        "{a} + {b}",
        ("{a} - {b}", "{a} * {b}", "{a} + {a}"),
    ),
    Form(("Return {a} minus {b}.",), "{a} - {b}", ("{b} - {a}", "{a} + {b}", "{a} - {a}")),
    Form(
        ("Return {a} times {b}.", "Return the product of {a} and {b}."),
        "{a} * {b}",
        ("{a} + {b}", "{a} - {b}", "{a} * {a}"),
    ),
    Form(
        ("Return {a} times {b}, plus {k}.",),
        "{a} * {b} + {k}",
        ("{a} + {b} + {k}", "{a} * {b} - {k}", "{a} * {b} + {j}"),
    ),
    Form(
        ("Return {a} plus {b}, minus {k}.",),
        "{a} + {b} - {k}",
        ("{a} + {b} + {k}", "{a} - {b} - {k}", "{a} + {b} - {j}"),
    ),
    Form(
        ("Return the larger of {a} and {b}.", "Return the maximum of {a} and {b}."),
        "max({a}, {b})",
        ("min({a}, {b})", "max({a}, {a})"),
    ),
    Form(
        ("Return the smaller of {a} and {b}.", "Return the minimum of {a} and {b}."),
        "min({a}, {b})",
        ("max({a}, {b})", "min({b}, {b})"),
    ),
    Form(
        ("Return {a}, but at least {k}.",),
        "max({a}, {k})",
        ("min({a}, {k})", "max({a}, {j})", "max({a}, {l})"),
    ),
    Form(
        ("Return {a}, but at most {k}.",),
        "min({a}, {k})",
        ("max({a}, {k})", "min({a}, {j})", "min({a}, {l})"),
    ),
    Form(
        ("Return True if {a} is larger than {k}.", "Tell if {a} is above {k}."),
        "{a} > {k}",
        ("{a} < {k}", "{a} >= {k}", "{a} > {j}"),
    ),
    Form(
        ("Return True if {a} is smaller than {k}.", "Tell if {a} is below {k}."),
        "{a} < {k}",
        ("{a} > {k}", "{a} <= {k}", "{a} < {j}"),
    ),
    Form(
        ("Return True if {a} is at least {k}.",),
        "{a} >= {k}",
        ("{a} > {k}", "{a} <= {k}", "{a} >= {j}"),
    ),
    Form(
        ("Return True if {a} is at most {k}.",),
        "{a} <= {k}",
        ("{a} < {k}", "{a} >= {k}", "{a} <= {j}"),
    ),
    Form(
        ("Return True if {a} is from {k} to {m}.",),
        "{k} <= {a} <= {m}",
        ("{k} < {a} <= {m}", "{k} <= {a} < {m}", "{j} <= {a} <= {m}"),
    ),
    Form(("Return True if {a} equals {b}.",), "{a} == {b}", ("{a} != {b}", "{a} >= {b}")),
    Form(("Return True if {a} is not {b}.",), "{a} != {b}", ("{a} == {b}", "{a} < {b}")),
    Form(("Tell if {a} is even.",), "{a} % 2 == 0", ("{a} % 2 == 1", "{a} % 3 == 0")),
    Form(("Tell if {a} is odd.",), "{a} % 2 == 1", ("{a} % 2 == 0", "{a} // 2 == 1")),
    Form(
        ("Return the rest of {a} by {k}.",),
        "{a} % {k}",
        ("{a} // {k}", "{a} % {j}", "{a} - {k}"),
    ),
    Form(
        ("Return how often {k} fits into {a}.",),
        "{a} // {k}",
        ("{a} % {k}", "{a} // {j}", "{a} * {k}"),
    ),
    Form(("Return {a} without its sign.",), "abs({a})", ("-{a}", "int({a})")),
    Form(
        ("Return {b} if {a} is above {k}, else 0.",),
        "{b} if {a} > {k} else 0",
        ("{b} if {a} < {k} else 0", "{a} if {a} > {k} else 0", "{b} if {a} > {k} else 1"),
    ),
    Form(("Return {s} in upper case.",), "{s}.upper()", ("{s}.lower()", "{s}.title()")),
    Form(("Return {s} in lower case.",), "{s}.lower()", ("{s}.upper()", "{s}.title()")),
    Form(
        ("Return {s} without spaces around it.",),
        "{s}.strip()",
        ("{s}.lstrip()", "{s}.rstrip()", "{s}.lower()"),
    ),
    Form(("Return the length of {s}.",), "len({s})", ("len({s}) + 1", "len({s}) - 1")),
    Form(
        ("Return the length of {s} plus {k}.",),
        "len({s}) + {k}",
        ("len({s}) - {k}", "len({s}) + {j}", "len({s}) * {k}"),
    ),
    Form(("Return the first letter of {s}.",), "{s}[0]", ("{s}[1]", "{s}[-1]")),
    Form(("Return the last letter of {s}.",), "{s}[-1]", ("{s}[0]", "{s}[-2]")),
    Form(
        ("Return the first {k} letters of {s}.",),
        "{s}[:{k}]",
        ("{s}[{k}:]", "{s}[:{j}]", "{s}[:-{k}]"),
    ),
    Form(
        ("Return {s} without its first {k} letters.",),
        "{s}[{k}:]",
        ("{s}[:{k}]", "{s}[{j}:]", "{s}[-{k}:]"),
    ),
    Form(("Return {s} {k} times.",), "{s} * {k}", ("{s} * {j}", "{s} * {l}", "{s} * 1")),
    Form(('Return {s} and then "{w}".',), '{s} + "{w}"', ('"{w}" + {s}', "{s} + {s}")),
    Form(('Return "{w}" and then {s}.',), '"{w}" + {s}', ('{s} + "{w}"', "{s} + {s}")),
    Form(("Return {s} from back to front.",), "{s}[::-1]", ("{s}[::1]", "{s}[:-1]")),
    Form(
        ('Tell if {s} begins with "{w}".',),
        '{s}.startswith("{w}")',
        ('{s}.endswith("{w}")', '{s} == "{w}"'),
    ),
    Form(
        ('Tell if {s} ends with "{w}".',),
        '{s}.endswith("{w}")',
        ('{s}.startswith("{w}")', '{s} == "{w}"'),
    ),
    Form(('Tell if "{w}" is in {s}.',), '"{w}" in {s}', ('"{w}" not in {s}', '{s} == "{w}"')),
    Form(("Return the sum of {v}.",), "sum({v})", ("max({v})", "len({v})", "sum({v}) + 1")),
    Form(("Return the largest of {v}.",), "max({v})", ("min({v})", "sum({v})", "len({v})")),
    Form(("Return the smallest of {v}.",), "min({v})", ("max({v})", "sum({v})", "len({v})")),
    Form(("Return how many {v} there are.",), "len({v})", ("sum({v})", "max({v})", "len({v}) + 1")),
    Form(("Return the first of {v}.",), "{v}[0]", ("{v}[1]", "{v}[-1]")),
    Form(("Return the last of {v}.",), "{v}[-1]", ("{v}[0]", "{v}[1]")),
    Form(
        ("Return {v} in order.",),
        "sorted({v})",
        ("sorted({v}, reverse=True)", "sorted({v}[1:])"),
    ),
    Form(
        ("Return {v}, the largest first.",),
        "sorted({v}, reverse=True)",
        ("sorted({v})", "sorted({v}, reverse=False)"),
    ),
    Form(
        ("Return the first {k} of {v}.",),
        "{v}[:{k}]",
        ("{v}[{k}:]", "{v}[:{j}]", "{v}[-{k}:]"),
    ),
)
"""All forms"""


@dataclass(frozen=True, slots=True)
class Function:
    """A function with names and numbers, and what it may be asked."""

    name: str
    parameters: tuple[str, ...]
    says: str
    right: str
    wrong: tuple[str, ...]
    local: str | None
    """Name that its result has before it is returned; None: it is returned at once"""
    calls: tuple[str, ...]
    """Calls with values, all of which the right function answers"""

    def lines(self, expression: str | None = None) -> list[str]:
        """Return its lines, with another expression in the place of the right one if given."""
        value = self.right if expression is None else expression
        end = [self.body(value)] + ([f"    return {self.local}"] if self.local else [])
        return [f"def {self.name}({', '.join(self.parameters)}):", f'    """{self.says}"""', *end]

    def body(self, expression: str) -> str:
        """Return the line with the expression."""
        return f"    {self.local} = {expression}" if self.local else f"    return {expression}"


def make_function(draw: Random, form: Form, name: str) -> Function:
    """Return a form with names and numbers that were drawn."""
    a, b = draw.sample(_NUMBER_NAMES, 2)
    s, v = draw.choice(_TEXT_NAMES), draw.choice(_LIST_NAMES)
    k = draw.randint(2, 9) if "{s}" in form.right or "{v}" in form.right else draw.randint(2, 99)
    if "{s}[" in form.right or "{v}[" in form.right:
        k = draw.randint(2, 4)
    j, m = k + draw.choice((-1, 1)), k + draw.randint(3, 90)
    given = {"a": a, "b": b, "s": s, "v": v, "k": k, "m": m, "j": j, "l": 2 * k - j}
    given["w"] = word = draw.choice(WORDS)[:4]
    right = form.right.format(**given)
    used = [key for key in "absv" if f"{{{key}}}" in form.right]
    parameters = tuple(str(given[key]) for key in used)
    local = draw.choice(("result", "value", "found", "answer")) if draw.random() < 0.3 else None
    calls = [
        f"{name}({', '.join(repr(_value(draw, key, place, k, m, word)) for key in used)})"
        for place in range(_NUM_PROBES)
    ]
    return Function(
        name,
        parameters,
        draw.choice(form.says).format(**given),
        right,
        tuple(one.format(**given) for one in form.wrong),
        local,
        tuple(dict.fromkeys(calls)),
    )


def _value(draw: Random, kind: str, place: int, k: int, m: int, word: str) -> object:
    """Return a value for a parameter. The first places are where comparisons differ."""
    if kind == "s":
        start, end = draw.choice(WORDS), draw.choice(WORDS)
        texts: Sequence[str] = (
            *(f"{word}{end}", f"{start}{word}", f" {start} {end} ", f"{start.title()}{end}"),
            *(f"{end}{start}", f"{start}{word}{end}", f"{start}ABC", f"{word}"),
        )
        return texts[place % len(texts)].ljust(5, "e")
    if kind == "v":
        return draw.sample(range(1, 99), draw.randint(5, 6))
    near = (k, k + 1, k - 1, m, m + 1, -draw.randint(1, 99))
    if kind == "a" and place < len(near):
        return near[place]
    return draw.randint(0, 120)
