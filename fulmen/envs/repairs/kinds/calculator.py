"""Expressions: tokens, a parser, and a sheet of cells."""

import random

from fulmen.envs.repairs.kind import Kind, Probe, probe

_LEXER = '''"""Tokens of an expression such as "2 * (a + 10)"."""

SIGNS = "+-*/%()"


def tokens_of(text):
    """Return the tokens of a text: whole numbers, names and signs; ValueError for anything else."""
    tokens, place = [], 0
    while place < len(text):
        char = text[place]
        if char == " ":
            place += 1
        elif char in SIGNS:
            tokens.append(char)
            place += 1
        elif char.isalnum():
            end = place
            while end < len(text) and text[end].isalnum():
                end += 1
            tokens.append(read_word(text[place:end]))
            place = end
        else:
            raise ValueError("an unknown sign")
    return tokens


def read_word(word):
    """Return the number that a word of digits is, and a name as it stands; ValueError for 2a."""
    if word.isdigit():
        return int(word)
    if word[0].isdigit():
        raise ValueError("a name cannot begin with a digit")
    return word


def names_in(text):
    """Return the different names in a text, in the order of the alphabet."""
    words = [token for token in tokens_of(text) if isinstance(token, str) and token not in SIGNS]
    return sorted(set(words))


def strength(sign):
    """Return 2 for a sign that binds first (*, / and %), 1 for + and -, 0 for anything else."""
    if sign in ("*", "/", "%"):
        return 2
    return 1 if sign in ("+", "-") else 0
'''

_PARSER = '''"""The value of an expression."""

from .lexer import names_in, strength, tokens_of


def apply(sign, left, right):
    """Return left and right combined; / and % round down, and by 0 they are a ValueError."""
    if sign in ("/", "%") and right == 0:
        raise ValueError("a division by 0")
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    if sign == "*":
        return left * right
    return left // right if sign == "/" else left % right


def postfix(text):
    """Return the tokens of an expression with each sign behind what it combines.

    Signs of the same strength combine from the left. ValueError for brackets that do not match.
    """
    found, waiting = [], []
    for token in tokens_of(text):
        if token == "(":
            waiting.append(token)
        elif token == ")":
            while waiting and waiting[-1] != "(":
                found.append(waiting.pop())
            if not waiting:
                raise ValueError("a bracket too many")
            waiting.pop()
        elif strength(token):
            while waiting and strength(waiting[-1]) >= strength(token):
                found.append(waiting.pop())
            waiting.append(token)
        else:
            found.append(token)
    if "(" in waiting:
        raise ValueError("a bracket too few")
    return found + waiting[::-1]


def evaluate(text, values=None):
    """Return the value of an expression with values for its names; ValueError if it has none."""
    values = values or {}
    missing = [name for name in names_in(text) if name not in values]
    if missing:
        raise ValueError("no value for " + missing[0])
    stack = []
    for token in postfix(text):
        if strength(token):
            if len(stack) < 2:
                raise ValueError("a number too few")
            right, left = stack.pop(), stack.pop()
            stack.append(apply(token, left, right))
        else:
            stack.append(values.get(token, token))
    if len(stack) != 1:
        raise ValueError("a sign too few")
    return stack[0]


def depends_on(text):
    """Return the names that an expression needs, as one text with commas."""
    return ",".join(names_in(text))
'''

_SHEET = '''"""A sheet: cells with formulas that use each other."""

from .parser import depends_on, evaluate


class Sheet:
    """Cells by name, each an expression."""

    def __init__(self, cells):
        self.cells = dict(cells)

    def needs(self, name):
        """Return the cells that a cell uses, directly or not, in the order of the alphabet."""
        found, waiting = [], [name]
        while waiting:
            for other in depends_on(self.cells[waiting.pop()]).split(","):
                if other and other not in found and other in self.cells:
                    found.append(other)
                    waiting.append(other)
        return sorted(found)

    def value(self, name):
        """Return the value of a cell; ValueError if it needs itself."""
        needed = self.needs(name)
        if name in needed:
            raise ValueError("a cell that needs itself")
        values = {other: self.value(other) for other in needed}
        return evaluate(self.cells[name], values)

    def table(self):
        """Return "name = value" of all cells in the order of their names, ? where there is none."""
        lines = []
        for name in sorted(self.cells):
            try:
                lines.append(f"{name} = {self.value(name)}")
            except ValueError:
                lines.append(f"{name} = ?")
        return lines


def series(text, count):
    """Return the values of an expression in x for x = 1, 2, 3 and so on, so many of them."""
    return [evaluate(text, {"x": x}) for x in range(1, count + 1)]


def first_above(text, limit):
    """Return the smallest x from 1 to 50 for which an expression is above a limit, else None."""
    for x, value in enumerate(series(text, 50), 1):
        if value > limit:
            return x
    return None
'''


def _expression(draw: random.Random, names: str, depth: int = 2) -> str:
    if depth == 0 or draw.random() < 0.2:
        return (
            draw.choice((str(draw.randint(0, 20)), *names)) if names else str(draw.randint(0, 20))
        )
    parts = [_expression(draw, names, depth - 1) for _ in range(draw.randint(2, 3))]
    text = parts[0]
    for part in parts[1:]:
        text += draw.choice((" {} ", "{}")).format(draw.choice("+-*/%+-*")) + part
    return f"({text})" if draw.random() < 0.4 else text


def _probes(draw: random.Random) -> list[Probe]:
    wrong = draw.choice(
        ("1 +", "(1", "1)", "1 2", "a + 1", "2a", "1 $ 2", "", "4 / 0", "4 % (2 - 2)")
    )
    values = {name: draw.randint(0, 9) for name in "ab"}
    cells = {
        "a": _expression(draw, "", 1),
        "b": _expression(draw, "a", 1),
        "c": _expression(draw, "ab", 2),
        "d": draw.choice(("e + 1", "c * 2", "d", "zz")),
        "e": draw.choice(("d", "3", "a / 0")),
    }
    sheet = f"sheet = Sheet({cells})"
    rising = draw.choice(("x * x", "x * 3 - 4", "x / 2 + x % 3", "2 * (x + 1) - x"))
    return [
        probe(2, f"tokens_of({_expression(draw, 'ab')!r})"),
        probe(2, f"tokens_of({draw.choice(('1 $ 2', '2a', 'x1 +y', ' ', '10%3'))!r})"),
        probe(2, f"names_in({_expression(draw, 'abz')!r})"),
        probe(2, f"strength({draw.choice('+-*/%(a')!r})"),
        probe(1, f"apply({draw.choice('+-*/%')!r}, {draw.randint(-9, 9)}, {draw.randint(-3, 4)})"),
        probe(1, f"postfix({_expression(draw, 'ab')!r})"),
        probe(1, f"postfix({wrong!r})"),
        probe(1, f"evaluate({_expression(draw, '')!r})"),
        probe(1, f"evaluate({_expression(draw, 'ab')!r}, {values})"),
        probe(1, f"evaluate({wrong!r})"),
        probe(
            1, f"evaluate('{draw.randint(9, 30)} - {draw.randint(1, 9)} - {draw.randint(1, 9)}')"
        ),
        probe(1, f"depends_on({_expression(draw, 'abz')!r})"),
        probe(0, sheet, f"sheet.needs({draw.choice('abcd')!r})"),
        probe(0, sheet, f"sheet.value({draw.choice('abcde')!r})"),
        probe(0, sheet, "sheet.table()"),
        probe(0, f"series({_expression(draw, 'x')!r}, {draw.randint(1, 4)})"),
        probe(0, f"first_above({rising!r}, {draw.randint(0, 60)})"),
    ]


KIND = Kind(
    "formulas",
    (("sheet", _SHEET), ("parser", _PARSER), ("lexer", _LEXER)),
    _probes,
    {
        "Sheet": ("Table", "Grid"),
        "needs": ("requires", "uses"),
        "series": ("values_of", "sequence"),
        "first_above": ("first_over", "crossing"),
        "evaluate": ("value_of", "compute"),
        "postfix": ("reordered", "to_postfix"),
        "strength": ("priority", "binding"),
        "names_in": ("variables_of", "names_of"),
        "tokens_of": ("tokenize", "split_tokens"),
    },
)
