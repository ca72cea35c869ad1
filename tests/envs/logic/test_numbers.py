"""Formulas are valued as Python values them, and puzzles of numbers agree with simple solvers."""

import ast
import itertools
import re
from collections.abc import Iterator
from fractions import Fraction
from math import prod
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.envs.logic import Puzzle
from fulmen.envs.logic.formula import tokens_of, value_of
from fulmen.envs.logic.kinds import KINDS
from fulmen.envs.logic.kinds.texts.game_of_24 import _formula
from fulmen.envs.logic.puzzle import LEVELS
from tests.examples import examples


def puzzles(name: str, levels: range = LEVELS, num: int = 12) -> Iterator[Puzzle]:
    for level in levels:
        for index in range(num):
            yield KINDS[name].make(Random(f"solved {name} {level} {index}"), level)


def valued(formula: str) -> Fraction | None:
    """The value of a formula as Python reads it, without signs; None if it has none."""
    try:
        return _of_node(ast.parse(formula.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _of_node(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if not isinstance(node, ast.BinOp):
        raise ValueError("not a formula")
    left, right = _of_node(node.left), _of_node(node.right)
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.Mult):
        return left * right
    if isinstance(node.op, ast.Div):
        return left / right
    raise ValueError("not a formula")


def ours(formula: str) -> Fraction | None:
    tokens = tokens_of(formula)
    return None if tokens is None else value_of(tokens)


FORMULAS = st.recursive(
    st.integers(0, 30).map(str),
    lambda part: st.tuples(part, st.sampled_from("+-*/"), part, st.booleans()).map(
        lambda one: f"({one[0]} {one[1]}{one[2]})" if one[3] else f"{one[0]}{one[1]} {one[2]}"
    ),
    max_leaves=12,
)


@given(FORMULAS)
@settings(max_examples=examples(500), deadline=None)
def test_a_formula_has_the_value_that_python_gives_it(formula: str) -> None:
    assert ours(formula) == valued(formula)


@given(st.text("123+-*/() ", max_size=12))
@settings(max_examples=examples(1000), deadline=None)
def test_a_text_is_a_formula_only_if_python_can_value_it(text: str) -> None:
    assert ours(text) == valued(text)


def test_formulas_have_bounds() -> None:
    assert ours("1" + " + 1" * 99) == 100
    assert ours("1" + " + 1" * 100) is None
    assert ours("(" * 99 + "1" + ")" * 99) == 1
    assert ours("9" * 13) is None
    assert ours("1 2") is ours("2 ** 3") is ours("٣") is ours("-1") is ours("1)+(2") is None


def reached(numbers: dict[str, Fraction]) -> Iterator[tuple[str, Fraction]]:
    """Every formula of all the numbers, two of which are joined at a time."""
    if len(numbers) == 1:
        yield from numbers.items()
    for one, other in itertools.permutations(numbers, 2):
        rest = {text: value for text, value in numbers.items() if text not in (one, other)}
        for sign in "+-*/":
            if sign == "/" and numbers[other] == 0:
                continue
            text = f"({one} {sign} {other})"
            a, b = numbers[one], numbers[other]
            value = {"+": a + b, "-": a - b, "*": a * b}.get(sign)
            yield from reached({**rest, text: a / b if value is None else value})


@pytest.mark.parametrize("level", [1, 2])
def test_every_formula_of_the_numbers_with_the_value_is_right(level: int) -> None:
    for puzzle in puzzles("game_of_24", range(level, level + 1)):
        target, *numbers = re.findall(r"\d+", puzzle.question.partition(".")[0])
        named = {f"{number}{' ' * i}": Fraction(number) for i, number in enumerate(numbers)}
        verdicts = [(puzzle.is_right(text), value == int(target)) for text, value in reached(named)]
        assert all(verdict == is_target for verdict, is_target in verdicts)
        assert any(verdict for verdict, _ in verdicts)


def test_only_a_formula_of_just_the_numbers_is_right() -> None:
    for puzzle in puzzles("game_of_24"):
        target, *numbers = re.findall(r"\d+", puzzle.question.partition(".")[0])
        assert valued(puzzle.answer) == int(target)
        assert sorted(re.findall(r"\d+", puzzle.answer)) == sorted(numbers)
        assert puzzle.is_right(f"({puzzle.answer}) = {target}")
        for text in (
            target,
            f"{puzzle.answer} * 1",
            f"{puzzle.answer} + 0",
            f"-({puzzle.answer})",
            f"{puzzle.answer} = {int(target) + 1}",
            f"{puzzle.answer} = ",
            f"{puzzle.answer} = {target} = {target}",
            f"{target} + {' + '.join(numbers)} - {' - '.join(numbers)}",
        ):
            assert not puzzle.is_right(text)


def test_a_game_without_luck_is_a_sum() -> None:
    formula = _formula(Random(0), 24, 4, 0)
    assert formula == "6 + 6 + 6 + 6".split()  # noqa: SIM905


def test_letters_stand_for_digits() -> None:
    for puzzle in puzzles("cryptarithm"):
        equation = puzzle.question.split("\n\n")[1]
        digits = dict(re.findall(r"([A-Z])=(\d)", puzzle.answer))
        assert is_solution(puzzle, digits)
        assert set(digits) == set(re.findall("[A-Z]", equation))
        assert not puzzle.is_right(", ".join(puzzle.answer.split(", ")[1:]))
        assert not puzzle.is_right(f"{puzzle.answer}, {puzzle.answer[:3]}")


def is_solution(puzzle: Puzzle, digits: dict[str, str]) -> bool:
    """Check digits against what the question says."""
    equation = puzzle.question.split("\n\n")[1]
    hints = dict(re.findall(r"([A-Z]) is (\d)", puzzle.question))
    numbers = re.sub("[A-Z]", lambda letter: digits[letter[0]], equation)
    if re.search(r"\b0\d", numbers) or len(set(digits.values())) < len(digits):
        return False
    left, right = numbers.split(" = ")
    factors = [int(number) for number in re.findall(r"\d+", left)]
    result = prod(factors) if "*" in left else sum(factors)
    return digits.items() >= hints.items() and result == int(right)


def test_all_solutions_of_letters_are_right_and_nothing_else_is() -> None:
    num_solutions = []
    easy, hard = (
        puzzles("cryptarithm", range(1, 3), num=4),
        puzzles("cryptarithm", range(3, 4), num=1),
    )
    for puzzle in itertools.chain(easy, hard):
        letters = sorted(set(re.findall("[A-Z]", puzzle.question.split("\n\n")[1])))
        hints = dict(re.findall(r"([A-Z]) is (\d)", puzzle.question))
        unknown = [letter for letter in letters if letter not in hints]
        num_solutions.append(0)
        for chosen in itertools.product("0123456789", repeat=len(unknown)):
            digits = {**hints, **dict(zip(unknown, chosen, strict=True))}
            is_right = puzzle.is_right(" ".join(f"{a}={b}" for a, b in digits.items()))
            if is_right or len(set(chosen)) == len(chosen):
                assert is_right == is_solution(puzzle, digits)
            num_solutions[-1] += is_right
    assert min(num_solutions) == 1


def operated(expression: str, definitions: dict[str, str]) -> int:
    """The value of an expression by the words of its operators' definitions."""
    tokens = re.findall(r"\d+|\S", expression)

    def part() -> int:
        if (token := tokens.pop(0)) == "(":
            value = whole()
            assert tokens.pop(0) == ")"
            return value
        return int(token)

    def whole() -> int:
        value = part()
        while tokens and tokens[0] != ")":
            value = defined(definitions[tokens.pop(0)], value, part())
        return value

    value = whole()
    assert not tokens
    return value


def defined(words: str, a: int, b: int) -> int:
    if words.startswith("the remainder"):
        formula, divisor = words.removeprefix("the remainder of ").split(" divided by ")
        return defined(formula, a, b) % int(divisor)
    if "times the distance" in words:
        times, less = re.findall(r"\d+", words)
        return int(times) * (max(a, b) - min(a, b)) - int(less)
    if " if " in words:
        first, condition, second = re.split(
            " if |, and ", words.removesuffix(" if it is not"), maxsplit=2
        )
        second = second.removesuffix(" if it is odd")
        is_first = a > b if condition == "a is greater than b" else (a + b) % 2 == 0
        return defined(first if is_first else second, a, b)
    value = valued(words.replace("a", f"(0{a:+})").replace("b", f"(0{b:+})"))
    assert value is not None
    return int(value)


def test_operators_do_what_they_are_defined_to() -> None:
    for puzzle in puzzles("operation", num=20):
        definitions = dict(re.findall(r"^a (\S) b is (.+)\.$", puzzle.question, re.MULTILINE))
        (expression,) = re.findall(r"What is the value of (.+)\?", puzzle.question)
        value = operated(expression, definitions)
        assert puzzle.answer == str(value)
        assert [i for i in range(value - 50, value + 50) if puzzle.is_right(str(i))] == [value]


def test_every_true_equation_of_the_pattern_is_right() -> None:
    for puzzle in puzzles("math_path", range(1, 4), num=4):
        equation = puzzle.question.split("\n\n")[1]
        assert 1 <= equation.count("?") <= 3
        for digits in itertools.product("0123456789", repeat=equation.count("?")):
            filled = equation.replace("?", "{}").format(*digits)
            left, right = filled.split(" = ")
            is_true = not re.search(r"\b0\d", filled) and valued(left) == int(right)
            assert puzzle.is_right(filled) == is_true


def test_an_equation_of_another_pattern_is_wrong() -> None:
    for puzzle in puzzles("math_path"):
        equation = puzzle.question.split("\n\n")[1]
        left, right = puzzle.answer.split(" = ")
        assert valued(left) == int(right)
        assert re.fullmatch(re.escape(equation).replace(r"\?", r"\d"), puzzle.answer)
        for text in (
            equation,
            left,
            f"{right} = {left}",
            f"{left} = {right} = {right}",
            f"{left} + 0 = {right}",
            f"{left} = 0{right}",
            puzzle.answer.replace("=", "=="),
            puzzle.answer.replace(" ", "", 1).replace(right, " ".join(right)) + "1",
        ):
            assert not puzzle.is_right(text)
