"""Calls: right calls alone score 1, answers are found a second way, and parts have no name in
common."""

import asyncio
import re
import statistics
import unittest
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from fulmen.chat import Message, ToolCall, get_format
from fulmen.envs import (
    Calls,
    CallTask,
    KnownAnswers,
    Task,
    demonstrate,
    demonstrated,
    load_environment,
    run_task,
    tools_of,
)
from fulmen.envs.basics import PARTS, part_of
from fulmen.envs.calls import KINDS
from fulmen.envs.calls.asking import told
from fulmen.envs.calls.case import Case, called
from fulmen.envs.calls.folder import FileTask
from fulmen.envs.calls.micro import RUN_TESTS, MicroRepair
from fulmen.envs.calls.names import Names
from fulmen.envs.calls.sums import text_computer
from fulmen.evaluate import self_check
from fulmen.train import find_recipe
from tests.envs.played import by_hand, in_folder, says

ASKING = ("calculate", "look_up", "choose", "two_steps", "error")
SIGNS = {
    r"\+|\badd\b|\bplus\b|\bsum\b|addiere|summe": "+",
    r"\d ?- ?\d|subtract|minus|away|\bziehe\b|subtrahiere": "-",
    r"\*|multipl|times|product|\bmal\b|produkt": "*",
    r"/|divide|durch": "/",
}
FORMAT = get_format("minimax_m2")
EXPRESSION = text_computer(Random(1), Names(Random(1), "test")).device


def drawn(kind: str, count: int = 40, seed: int = 5, part: str | None = None) -> list[Any]:
    environment = Calls(seed, kind=kind, part=part)
    return [environment.task(index) for index in range(count)]


def calls_of(task: Task) -> list[ToolCall]:
    return [call for answer in task.known_answers for call in answer.tool_calls]


def does(call: ToolCall) -> Message:
    return Message("assistant", "", tool_calls=(call,))


def result(task: Task, call: ToolCall) -> str:
    return asyncio.run(task.act(call))


def last(task: Task) -> str:
    return task.known_answers[-1].content


@pytest.mark.parametrize("kind", [*ASKING, "no_call"])
def test_known_answers_alone_are_right(kind: str) -> None:
    for task in drawn(kind):
        if isinstance(task, FileTask):
            continue
        score = by_hand(task, task.known_answers)
        assert score.value == 1
        assert score.parts == {"format": 1, "calls": 1, "correct": 1, "false_call": 0}
        assert by_hand(task, []).value == 0
        assert by_hand(task, [says(task.messages[0].content)]).value == 0


@pytest.mark.parametrize("kind", ASKING)
def test_an_answer_without_its_calls_is_worth_nothing(kind: str) -> None:
    for task in drawn(kind):
        score = by_hand(task, [says(last(task))])
        assert score.value == 0
        assert score.parts == {"format": 1, "calls": 0, "correct": 1, "false_call": 0}


@pytest.mark.parametrize("kind", ASKING)
def test_every_name_and_every_argument_has_to_be_right(kind: str) -> None:
    for task in drawn(kind):
        *before, call = calls_of(task)
        start = [does(one) for one in before]
        for key, value in call.arguments.items():
            other = value + 1 if isinstance(value, int) else f"{value}x"
            wrong = [
                {**call.arguments, key: other},
                {f"{one}_": v for one, v in call.arguments.items()},
                {**call.arguments, "more": 1},
                {one: v for one, v in call.arguments.items() if one != key},
                {**call.arguments, key: [value]},
            ]
            for arguments in wrong:
                answers = [*start, does(ToolCall(call.name, arguments)), says(last(task))]
                score = by_hand(task, answers)
                assert (score.value, score.parts["calls"]) == (0, 0)
        wrong_name = ToolCall(f"{call.name}_", call.arguments)
        score = by_hand(task, [*start, does(wrong_name), says(last(task))])
        assert score.value == 0
        assert score.parts["false_call"] == 1
        twice = [*start, does(call), does(call), says(last(task))]
        assert by_hand(task, twice).parts["false_call"] == 1
        assert by_hand(task, twice).value == 0
        right = [*start, does(call)]
        assert by_hand(task, [*right, says("It is done.")]).value == 0
        assert by_hand(task, [*right, does(call)]).parts["format"] == 0


def test_sums_may_be_asked_for_in_either_order() -> None:
    seen = set()
    for task in drawn("calculate", 80):
        (call,) = calls_of(task)
        if len(call.arguments) != 2:
            continue
        a, b = call.arguments.values()
        turned = ToolCall(call.name, dict(zip(call.arguments, (b, a), strict=True)))
        is_free = result(task, turned) == result(task, call)
        assert by_hand(task, [does(turned), says(last(task))]).value == is_free or a == b
        seen.add(is_free)
    assert seen == {True, False}


def test_a_call_where_none_is_needed_is_false() -> None:
    num_near = 0
    for task in drawn("no_call", 80):
        if isinstance(task, FileTask):
            continue
        tool = task.tools[0]
        values = {
            key: 1 if one["type"] == "integer" else "1"
            for key, one in tool.parameters["properties"].items()
        }
        call = ToolCall(tool.name, values)
        score = by_hand(task, [does(call), says(last(task))])
        assert score.value == 0
        assert score.parts == {"format": 1, "calls": 0, "correct": 1, "false_call": 1}
        keys = task.case.devices[0].work
        num_near += any(
            is_known(keys, word.strip(".,?!")) for word in task.messages[0].content.split()
        )
        assert by_hand(task, [says("I do not know.")]).value == 0
    assert num_near >= 10, "few questions come near to one that needs a call"


def is_known(work: Any, key: str) -> bool:
    try:
        return bool(work({"key": key}))
    except (ValueError, KeyError):
        return False


def test_an_error_names_the_key_that_is_right() -> None:
    for task in drawn("error"):
        wrong, right = calls_of(task)
        assert list(wrong.arguments) == list(right.arguments)
        (key,), (right_key,) = wrong.arguments.values(), right.arguments.values()
        assert key in task.messages[0].content
        with pytest.raises(ValueError, match=re.escape(right_key)):
            result(task, wrong)
        assert by_hand(task, [does(right), says(last(task))]).value == 1


def test_a_sum_is_the_one_that_was_asked_for() -> None:
    for task in drawn("calculate", 120):
        text = task.messages[0].content
        first, second = map(int, re.findall(r"\d+", text))
        (sign,) = (sign for words, sign in SIGNS.items() if re.search(words, text, re.IGNORECASE))
        if re.search(r"\b(from|von|ziehe)\b", text, re.IGNORECASE) and sign == "-":
            first, second = second, first
        value = {
            "+": first + second,
            "-": first - second,
            "*": first * second,
            "/": first // second,
        }[sign]
        assert result(task, calls_of(task)[0]) == str(value)
        assert re.search(rf"(?<!\d){value}(?!\d)", last(task))
        assert by_hand(task, [*task.known_answers[:-1], says(f"It is {value + 1}.")]).value == 0


def test_what_is_looked_up_is_told() -> None:
    for task in drawn("look_up", 80):
        (call,) = calls_of(task)
        (key,) = call.arguments.values()
        assert key in task.messages[0].content
        value = result(task, call).rpartition(": ")[2]
        assert value not in task.messages[0].content.split()
        assert value in last(task)


def test_a_tool_is_chosen_among_others() -> None:
    counts = set()
    for task in drawn("choose", 60):
        (call,) = calls_of(task)
        counts.add(len(task.tools))
        for tool in task.tools:
            if tool.name != call.name:
                other = does(ToolCall(tool.name, call.arguments))
                score = by_hand(task, [other, says(last(task))])
                assert (score.value, score.parts["false_call"]) == (0, 1)
    assert counts == {2, 3}


def test_a_second_step_rests_on_the_first() -> None:
    bought = 0
    for task in drawn("two_steps", 80):
        first, second = calls_of(task)
        text = task.messages[0].content
        (key,) = first.arguments.values()
        assert key in text
        found = result(task, first).rpartition(": ")[2]
        asked = "*".join(map(str, second.arguments.values()))
        assert found in re.split(r"\*", asked)
        told = result(task, second).rpartition(": ")[2]
        count = re.search(r"\d+", text)
        if count is not None:
            bought += 1
            assert int(told) == int(count[0]) * int(found)
        assert told in last(task)
    assert 20 < bought < 60


def names_of(task: Task) -> Iterator[str]:
    for tool in task.tools:
        yield tool.name
        yield from tool.parameters["properties"]


def test_parts_have_no_name_and_no_question_in_common() -> None:
    names: dict[str, set[str]] = {part: set() for part in PARTS}
    texts: dict[str, set[str]] = {part: set() for part in PARTS}
    for part in PARTS:
        for kind in (*ASKING, "no_call", "file"):
            for task in drawn(kind, 150, seed=2, part=part):
                names[part].update(names_of(task))
                texts[part].add(task.messages[0].content)
                if isinstance(task, FileTask):
                    names[part].update(path.partition(".")[0] for path in task.right)
        for task in drawn("repair", 60, seed=2, part=part):
            names[part].update(path[:-3] for path in task.solution)
            texts[part].update(task.solution.values())
    for found in (names, texts):
        for part in PARTS:
            others = set().union(*(found[other] for other in PARTS if other != part))
            assert not found[part] & others
            assert len(found[part]) > 500
            assert all(part_of(text) == part for text in found[part])


def test_tasks_without_a_part_are_of_all_parts() -> None:
    parts = [part_of(task.messages[0].content) for task in drawn("look_up", 200)]
    assert set(parts) == set(PARTS)
    assert parts.count("training") > 130


@pytest.mark.parametrize("kind", KINDS)
def test_a_demonstration_is_what_playing_comes_to(kind: str) -> None:
    for index in range(3):
        task = Calls(9, kind=kind).task(index)
        told = demonstrated(task)
        played = asyncio.run(demonstrate(task))
        assert told == played.messages


@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize("kind", ["file", "repair"])
def test_folders_pass_the_self_check(kind: str) -> None:
    assert asyncio.run(self_check(load_environment(f"calls:{kind}:test", seed=4), range(4))) == []


def test_a_reply_about_everything_is_about_nothing() -> None:
    replies = {task.known_answers[-1].content for task in drawn("no_call", 200)}
    everything = " ".join(sorted(one for one in replies if len(one) < 50))
    for task in drawn("no_call", 100):
        assert by_hand(task, [says(everything)]).value == 0


def test_numbers_may_have_commas_at_thousands() -> None:
    assert told("201595")("It is 201,595.")
    assert not told("201595")("It is 20,1595.")
    assert not told("201595")("It is 1,201,595.")


@pytest.mark.parametrize("kind", [*ASKING, "no_call"])
def test_tools_pass_the_self_check(kind: str) -> None:
    assert asyncio.run(self_check(load_environment(f"calls:{kind}:test", seed=4), range(6))) == []


def test_a_file_is_read_or_changed_as_it_was_asked(tmp_path: Path) -> None:
    seen = set()
    for index, task in enumerate(drawn("file", 60)):
        assert isinstance(task, FileTask)
        folder = tmp_path / str(index)
        folder.mkdir()
        asyncio.run(task.prepare(folder))
        text, ((path, right),) = task.messages[0].content, task.right.items()
        assert path in text
        calls = calls_of(task)
        if task.files != task.right:
            assert in_folder(task, task.known_answers, folder).value == 0, "nothing was changed"
            edit = calls[-1].arguments
            before = (folder / path).read_text() if task.files else ""
            after = before.replace(edit["old"], edit["new"]) if before else edit["new"]
            (folder / path).write_text(after)
            assert re.sub(r"\W", " ", edit["new"]) in re.sub(r"\W", " ", text)
            seen.add("change" if before else "new")
        else:
            lines = right.splitlines()
            number = re.search(r"(?:line|zeile) (\d+)", text, re.IGNORECASE)
            line = lines[int(number[1]) - 1 if number else 0]
            assert last(task).endswith(line)
            other = does(ToolCall("run", {"command": f"cat {path}"}))
            assert in_folder(task, [other, says(last(task))], folder).value == 1
            assert in_folder(task, [other, says("It says: nothing")], folder).value == 0
            if len(set(lines)) > 1:
                assert in_folder(task, [other, says("\n".join(lines))], folder).value == 0
            seen.add("line" if number else "all")
        assert in_folder(task, task.known_answers, folder).value == 1
        assert in_folder(task, task.known_answers[-1:], folder).value == 0
        (folder / path).write_text("other\n")
        assert in_folder(task, task.known_answers, folder).value == 0
    assert seen == {"change", "new", "line", "all"}


def failing(task: MicroRepair, text: str) -> list[str]:
    """Return the names of tests that fail with a text of the module."""
    ((path, _),) = task.solution.items()
    (test,) = task.tests
    module = ModuleType(path[:-3])
    exec(text, vars(module))
    space: dict[str, Any] = {"__name__": test[:-3]}
    source = task.files[test].replace(f"from {path[:-3]} import", "from __module__ import")
    space["__builtins__"] = {
        **__builtins__,  # type: ignore[dict-item]
        "__import__": lambda name, *rest: (
            module if name == "__module__" else __import__(name, *rest)
        ),
    }
    exec(source, space)
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(space["Test"])
    found = unittest.TestResult()
    suite.run(found)
    assert not found.errors
    assert found.testsRun == text.count("def ")
    return [one.id().rpartition(".")[2] for one, _ in found.failures]


def test_one_test_fails_and_one_line_is_wrong() -> None:
    for task in drawn("repair", 60):
        ((path, right),) = task.solution.items()
        wrong = task.files[path]
        assert failing(task, right) == []
        assert failing(task, wrong) == [f"test_{task.function}"]
        assert wrong.replace(task.old, task.new) == right
        assert wrong.count(task.old) == 1
        assert 6 <= right.count("\n") <= 14
        lines = zip(wrong.split("\n"), right.split("\n"), strict=True)
        assert sum(one != other for one, other in lines) == 1


def test_a_repair_is_graded_by_what_the_module_answers(tmp_path: Path) -> None:
    task = Calls(3, kind="repair").task(0)
    assert isinstance(task, MicroRepair)
    asyncio.run(task.prepare(tmp_path))
    ((path, right),) = task.solution.items()
    assert in_folder(task, task.known_answers, tmp_path).value == 0
    for test in task.tests:
        (tmp_path / test).write_text("")
    assert in_folder(task, task.known_answers, tmp_path).value == 0
    (tmp_path / path).write_text(right)
    assert in_folder(task, task.known_answers, tmp_path).value == 1


def test_a_change_within_a_second_is_seen_by_the_next_run_of_the_tests() -> None:
    run = does(ToolCall("run", {"command": RUN_TESTS.replace(" -B", "")}))
    task = next(one for one in drawn("repair", 30) if len(one.old) == len(one.new))
    answers = KnownAnswers([run, task.known_answers[2], run, says("Done.")])
    trajectory = asyncio.run(run_task(answers, task))
    first, _, second = (step.results[0].text for step in trajectory.steps[:3])
    assert first == task.failure
    assert second == "OK"


@pytest.mark.parametrize(
    ("text", "is_right"),
    [("12+7", 1), ("7+12", 1), (" 12 + 7 ", 1), ("12-7", 0), ("19", 0), ("12+7+0", 0), ("", 0)],
)
def test_an_expression_may_be_written_with_spaces(text: str, is_right: int) -> None:
    case = Case(
        question="What is 12 + 7?",
        devices=(EXPRESSION,),
        play=(called("", EXPRESSION, "12+7"), says("It is 19.")),
        is_told=told("19"),
    )
    answers = [called("", EXPRESSION, text), says("It is 19.")]
    assert by_hand(CallTask("calculate", case), answers).value == is_right


@given(st.integers(-(10**9), 10**9), st.sampled_from("+-*/"), st.integers(-(10**9), 10**9))
def test_an_expression_has_the_value_that_python_gives_it(a: int, sign: str, b: int) -> None:
    text = f"{a}{sign}{b}"
    if sign == "/" and b == 0:
        with pytest.raises(ValueError, match="divided by 0"):
            computed(text)
    elif sign == "/" and a % b:
        assert computed(text) == f"{a / b:.4f}"
    else:
        value = {"+": a + b, "-": a - b, "*": a * b}.get(sign)
        assert computed(text) == str(a // b if value is None else value)


@given(st.text(max_size=80))
def test_any_text_has_a_value_or_a_sentence(text: str) -> None:
    try:
        shown = computed(text)
    except ValueError:
        return
    assert re.fullmatch(r"-?\d+(\.\d{4})?", shown)


def computed(text: str) -> str:
    (key,) = EXPRESSION.tool.parameters["properties"]
    return EXPRESSION.run(ToolCall(EXPRESSION.tool.name, {key: text}))


def test_a_repair_is_asked_for_in_these_very_words() -> None:
    asked = {task.messages[0].content for task in drawn("repair", 200)}
    assert {"make the failing test pass", "Make the failing test pass."} <= asked


def test_demonstrations_are_short_in_the_words_of_the_small_model(tmp_path: Path) -> None:
    find_recipe("mini-m2").tokenizer.make(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    most = {"two_steps": 350, "error": 350, "choose": 300, "repair": 640}
    for kind in KINDS:
        lengths = []
        for task in drawn(kind, 20, part="validation"):
            text = FORMAT.render(demonstrated(task), tools_of(task), add_generation_prompt=False)
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            assert tokenizer.decode(ids, skip_special_tokens=False) == text
            lengths.append(len(ids))
        assert max(lengths) <= most.get(kind, 260), kind
        assert statistics.mean(lengths) <= 450


def test_names_that_are_no_kind_and_no_part_are_refused() -> None:
    for name in ("calls:nothing", "calls:look_up:nothing", "calls:training:look_up"):
        with pytest.raises(ValueError, match="is no kind of calls"):
            load_environment(name, seed=0)
    with pytest.raises(ValueError, match="is no part of calls"):
        Calls(0, part="none")
    task = load_environment("calls:test", seed=0).task(1)
    assert isinstance(task, CallTask)
    assert task.kind == list(KINDS)[1]
