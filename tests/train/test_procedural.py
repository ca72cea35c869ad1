"""Problems: their traces lead to their answers, checked apart from what made them."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.train.lm.procedural import GENERATORS, Problem, make_problem
from tests.examples import examples


def of_sum(problem: Problem) -> bool:
    found = re.fullmatch(r"(\d+)([-+*])(\d+)=", problem.prompt)
    assert found is not None
    first, sign, second = int(found[1]), found[2], int(found[3])
    value = {"+": first + second, "-": first - second, "*": first * second}[sign]
    *steps, digits = problem.trace.split()
    for step in steps:
        if sign != "-":
            left, _, right = step.partition("=")
            a, b, carry = (int(one) for one in re.split(r"[+*]", left))
            assert int(right) == (a + b if sign == "+" else a * b) + carry
    return problem.answer == str(value) and int(digits[::-1]) == value


def of_copy(problem: Problem) -> bool:
    return problem.prompt.split()[-1] == problem.answer


def of_reverse(problem: Problem) -> bool:
    marked = "".join(step[-1] for step in problem.trace.split())
    return problem.prompt.split()[-1][::-1] == problem.answer == marked


def of_sort(problem: Problem) -> bool:
    numbers = [int(one) for one in problem.prompt.split()[1:]]
    smallest = [int(step.split(">")[1]) for step in problem.trace.split("; ")]
    return problem.answer.split() == [str(one) for one in sorted(numbers)] and smallest == sorted(
        numbers
    )


def of_countdown(problem: Problem) -> bool:
    found = re.fullmatch(r"reach (-?\d+) from ([\d ]+)", problem.prompt)
    assert found is not None
    assert re.findall(r"\d+", problem.answer) == found[2].split()
    assert problem.trace.endswith(f"{problem.answer}={found[1]}")
    return sum(int(one) for one in re.findall(r"[-+]?\d+", problem.answer)) == int(found[1])


CHECKS: dict[str, Callable[[Problem], bool]] = {
    "copy": of_copy,
    "spell": of_copy,
    "reverse": of_reverse,
    "add": of_sum,
    "sub": of_sum,
    "mul": of_sum,
    "sort": of_sort,
    "countdown": of_countdown,
}


@settings(max_examples=examples(400), deadline=None)
@given(
    name=st.sampled_from(sorted(GENERATORS)),
    seed=st.integers(0, 9),
    index=st.integers(0, 10**6),
    size=st.integers(1, 8),
)
def test_the_answer_of_a_problem_is_right(name: str, seed: int, index: int, size: int) -> None:
    problem = make_problem(name, seed, index, 1, size)
    assert CHECKS[name](problem)
    assert problem == make_problem(name, seed, index, 1, size)


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_problems_differ_by_seed_and_index(name: str) -> None:
    prompts = {
        make_problem(name, seed, index, 4, 6).prompt for seed in range(3) for index in range(20)
    }
    assert len(prompts) > 50
