"""Tasks of code as they are made: their references are right, and their tests tell them apart."""

import io
import sys
from collections import Counter
from contextlib import redirect_stdout
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.envs import Code, CodeTask
from fulmen.envs.code.block import last_program
from fulmen.envs.code.environment import LEVELS
from fulmen.envs.code.families import FAMILIES
from fulmen.envs.code.runner import spelled
from tests.examples import examples

NUM_FAMILIES = len(FAMILIES)


def outputs_of(task: CodeTask, program: str) -> list[str]:
    """Return what a program of ours gives for a task's inputs, as texts, in this process."""
    found = []
    for test in (*task.visible, *task.hidden):
        space: dict[str, Any] = {"__name__": "__main__"}
        if task.function is not None:
            exec(program, space)
            found.append(spelled(space[task.function](*test.given)))
            continue
        assert isinstance(test.given, str)
        out, before = io.StringIO(), sys.stdin
        sys.stdin = io.StringIO(test.given)
        try:
            with redirect_stdout(out):
                exec(program, space)
        finally:
            sys.stdin = before
        found.append(out.getvalue().rstrip())
    return found


def test_there_are_families_for_all_that_was_asked() -> None:
    assert NUM_FAMILIES >= 20


@pytest.mark.parametrize("style", ["stdin", "function"])
@pytest.mark.parametrize("level", LEVELS)
def test_references_give_the_right_outputs(level: int, style: Any) -> None:
    environment = Code(11, level=level, style=style)
    for index in range(NUM_FAMILIES):
        task = environment.task(index)
        assert (task.function is None) == (style == "stdin")
        rights = [test.right.rstrip() for test in (*task.visible, *task.hidden)]
        assert outputs_of(task, task.program) == rights, task.question


@pytest.mark.parametrize("level", LEVELS)
def test_hidden_tests_are_others_and_no_constant_or_input_passes_them(level: int) -> None:
    environment = Code(12, level=level)
    for index in range(NUM_FAMILIES):
        task = environment.task(index)
        inputs = [str(test.given) for test in (*task.visible, *task.hidden)]
        assert len(set(inputs)) == len(inputs)
        assert len(task.hidden) >= 9
        counts = Counter(test.right for test in task.hidden)
        assert len(counts) >= 4
        assert max(counts.values()) <= len(task.hidden) // 2
        assert any(
            test.right not in map(spelled, test.given)
            if isinstance(test.given, list)
            else test.right.strip() != test.given.strip()
            for test in task.hidden
        )


def test_questions_show_the_examples_and_hold_no_program() -> None:
    environment = Code(13)
    for index in range(2 * NUM_FAMILIES):
        task = environment.task(index)
        assert last_program(task.question) is None
        for test in task.visible:
            assert test.right in task.question
        if task.function is not None:
            assert f"`{task.function}(" in task.question
        else:
            assert "standard input" in task.question
        for test in task.hidden:
            if isinstance(test.given, list):
                shown = f"({', '.join(map(repr, test.given))}) returns"
            else:
                shown = f":\n{test.given}Output"
            assert shown not in task.question


def test_a_seed_gives_the_same_tasks_and_another_one_others() -> None:
    first, same, other = Code(1), Code(1), Code(2)
    count = 3 * NUM_FAMILIES
    tasks = [first.task(index) for index in range(count)]
    assert tasks == [same.task(index) for index in range(count)]
    assert len({task.question for task in tasks}) == count
    programs = {task.program for task in tasks}
    assert len(programs) > 0.9 * count
    assert len(programs & {other.task(index).program for index in range(count)}) < 0.2 * count
    assert {task.level for task in tasks} == {1, 2, 3}
    assert {task.function is None for task in tasks} == {True, False}


@pytest.mark.slow
def test_a_thousand_tasks_are_made() -> None:
    environment = Code(21)
    tasks = [environment.task(index) for index in range(1000)]
    for task in tasks:
        rights = [test.right.rstrip() for test in (*task.visible, *task.hidden)]
        assert outputs_of(task, task.program) == rights, task.question
    for level in LEVELS[1:]:  # of the first one there are few programs
        of_level = [task.program for task in tasks if task.level == level]
        assert len(set(of_level)) > 0.9 * len(of_level)


LEAF = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = st.text(max_size=3) | st.integers()
    lists = st.lists(inner, max_size=4)
    return lists | lists.map(tuple) | st.dictionaries(keys, inner, max_size=4)


PLAIN = LEAF | nested(LEAF | nested(LEAF))


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal, and of the same types all through."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        keys = sorted(one, key=spelled), sorted(other, key=spelled)
        return same(*keys) and all(same(one[a], other[b]) for a, b in zip(*keys, strict=True))
    return bool(one == other) and str(one) == str(other)


@settings(max_examples=examples(500), deadline=None)
@given(PLAIN, PLAIN)
def test_values_are_spelled_alike_if_they_are_the_same(one: Any, other: Any) -> None:
    assert (spelled(one) == spelled(other)) == same(one, other)


def test_order_of_keys_does_not_matter_and_types_do() -> None:
    assert spelled({"a": 1, "b": 2}) == spelled({"b": 2, "a": 1})
    assert spelled({2, 1}) == spelled({1, 2})
    assert len({spelled(one) for one in (1, True, 1.0, "1", [1], (1,), {1}, None)}) == 8
    with pytest.raises(ValueError, match="object is no plain type"):
        spelled([object()])
