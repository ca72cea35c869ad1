"""Runs on disk: what is read back is what happened, whatever ended the process."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.agent import Answer, Result, Run, RunFacts, Runs, Sampled, Trajectory
from fulmen.agent.trajectory import answer_record, apply, result_record, said_record
from fulmen.chat import Message, ToolCall
from fulmen.sampling import SamplingParams
from tests.examples import examples

SYSTEM = (Message("system", "You work."),)


def facts(name: str = "one", **changes: Any) -> RunFacts:
    """Return what a run was begun with."""
    made = RunFacts(
        name=name, folder="/w", seen_as="/w", model="m", tools="coding", system=SYSTEM, start="s0"
    )
    return replace(made, **changes)


def answer(number: int, num_calls: int) -> Answer:
    """Return an answer with so many calls."""
    calls = tuple(
        ToolCall("bash", {"command": f"{number} {i}"}, id=f"c{i}") for i in range(num_calls)
    )
    return Answer(
        message=Message("assistant", f"answer {number} é\u2028", thinking="hm", tool_calls=calls),
        finish_reason="stop",
        params=SamplingParams(seed=number, stop=("a", "b")),
        num_prompt_tokens=number,
        num_new_tokens=3,
        sampled=Sampled(
            prompt_ids=(1, 2), answer_ids=(3, number), logprobs=(-0.5, None), forced=(1,)
        ),
    )


def draw_record(draw: random.Random, trajectory: Trajectory) -> dict[str, Any]:
    """Return a record that can follow."""
    last = trajectory.steps[-1] if trajectory.steps else None
    if last is not None and not last.is_whole and draw.random() < 0.9:
        known = {result.call for result in last.results}
        free = [i for i in range(len(last.answer.message.tool_calls)) if i not in known]
        number = draw.choice(free)
        snapshot = draw.choice([None, f"s{draw.randrange(9)}"])
        return result_record(Result(number, f"out {number}", draw.random() < 0.3, 0.5, snapshot))
    if last is not None and draw.random() < 0.15:
        return {"type": "rewound", "num_steps": draw.randint(0, len(trajectory.steps))}
    if last is not None and last.is_whole and draw.random() < 0.15:
        count = len(trajectory.steps)
        fields = {"text": "so far", "num_tokens_before": 9, "num_tokens_after": 3}
        return {
            **{"type": "compacted", "num_steps": draw.randint(1, count), "num_seen": count},
            **fields,
        }
    if last is not None and last.is_whole and draw.random() < 0.1:
        return {"type": "found", "snapshot": f"f{draw.randrange(9)}"}
    if trajectory.compactions and draw.random() < 0.2:
        return {"type": "expanded"}
    if last is None or last.is_whole:
        if draw.random() < 0.7:
            return answer_record(answer(draw.randrange(99), draw.randint(0, 3)))
        return said_record([Message("user", f"word {draw.randrange(99)}")])
    return {"type": "rewound", "num_steps": len(trajectory.steps) - 1}


@given(st.integers(0, 10**6), st.integers(1, 30), st.floats(0, 1))
@settings(max_examples=examples(150), deadline=None)
def test_a_log_that_is_cut_anywhere_says_what_had_happened(
    tmp_path_factory: pytest.TempPathFactory, seed: int, num_records: int, part: float
) -> None:
    draw = random.Random(seed)
    runs = Runs(tmp_path_factory.mktemp("runs"))
    states: list[Trajectory] = []
    ends: list[int] = []
    with runs.create(facts()) as run:
        log = run.path / "log.jsonl"
        states.append(run.trajectory.copy())
        ends.append(0)
        for _ in range(num_records):
            run.append(draw_record(draw, run.trajectory))
            states.append(run.trajectory.copy())
            ends.append(log.stat().st_size)
    assert runs.open("one").trajectory == states[-1]
    content = log.read_bytes()
    length = int(part * len(content))
    log.write_bytes(content[:length])
    num_whole = max(i for i, end in enumerate(ends) if end <= length)
    assert runs.open("one").trajectory == states[num_whole]
    with runs.open("one") as run:  # and it goes on from there
        assert run.trajectory == states[num_whole]
        record = draw_record(draw, run.trajectory)
        run.append(record)
        after = states[num_whole].copy()
        apply(after, record)
        assert run.trajectory == after
    assert runs.open("one").trajectory == after


@given(st.integers(0, 10**6), st.integers(1, 25), st.data())
@settings(max_examples=examples(60), deadline=None)
def test_a_fork_has_the_steps_up_to_it_and_their_bytes(
    tmp_path_factory: pytest.TempPathFactory, seed: int, num_records: int, data: st.DataObject
) -> None:
    draw = random.Random(seed)
    runs = Runs(tmp_path_factory.mktemp("runs"))
    with runs.create(facts()) as run:
        for _ in range(num_records):
            run.append(draw_record(draw, run.trajectory))
        num_steps = data.draw(st.integers(0, len(run.trajectory.steps)))
        rewound = run.trajectory.copy()
        if num_steps < len(rewound.steps):
            apply(rewound, {"type": "rewound", "num_steps": num_steps})
        before = (run.path / "log.jsonl").read_bytes()
        made = runs.fork(run, num_steps, name="two", folder="/v")
        assert (run.path / "log.jsonl").read_bytes() == before
    assert made.facts == replace(
        run.facts, name="two", folder="/v", parent="one", num_inherited=num_steps,
        created=made.facts.created,
    )  # fmt: skip
    found = runs.open("two").trajectory
    assert found.steps == rewound.steps
    assert found.messages == rewound.messages


def test_a_record_that_cannot_follow_changes_nothing(tmp_path: Path) -> None:
    with Runs(tmp_path).create(facts()) as run:
        run.append(answer_record(answer(1, 1)))
        before, size = run.trajectory.copy(), (run.path / "log.jsonl").stat().st_size
        for record, why in [
            (answer_record(answer(2, 0)), "calls are open"),
            (result_record(Result(1, "x")), "no such call"),
            ({"type": "rewound", "num_steps": 2}, "fewer steps"),
            ({"type": "expanded"}, "cannot follow"),
            ({"type": "ended", "reason": "boredom"}, "no such reason"),
            ({"type": "result", "call": 0}, "cannot follow"),
            ({"type": "dance"}, "'dance'"),
            ({}, "None"),
        ]:
            with pytest.raises(ValueError, match=why):
                run.append(record)
        assert run.trajectory == before
        assert (run.path / "log.jsonl").stat().st_size == size


def test_two_processes_never_go_on_with_one_run(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    with runs.create(facts()):
        with pytest.raises(ValueError, match="going on in another process"), runs.open("one"):
            pass
        assert runs.open("one").facts == facts()  # but it may be looked at
    with pytest.raises(ValueError, match="reading only"):
        runs.open("one").append({"type": "note"})


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "A", "a\0", "-x", "x" * 81, "é"])
def test_a_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no name of a run"):
        Runs(tmp_path).create(facts(name))
    with pytest.raises(ValueError, match="no name of a run"):
        Runs(tmp_path).open(name)


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("run.json", "{", "JSON"),
        ("run.json", "{}", "format"),
        ("run.json", '{"format": 2}', "format 2, 1 is known"),
        ("run.json", '{"format": 1, "name": "one"}', "describes no run"),
        ("log.jsonl", "[]\n", "line 1"),
        ("log.jsonl", '{"type": "answer"}\n', "line 1"),
        ("log.jsonl", "[" * 100_000 + "\n", "line 1"),
        ("log.jsonl", '{"type": "said", "messages": [{"role": "x"}]}\n', "line 1"),
    ],
)
def test_damage_is_one_sentence(tmp_path: Path, file: str, content: str, why: str) -> None:
    run: Run = Runs(tmp_path).create(facts())
    (run.path / file).write_text(content)
    with pytest.raises(ValueError, match=why) as error:
        Runs(tmp_path).open("one")
    assert "\n" not in str(error.value)


def test_runs_are_listed_the_last_used_first(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "none yet")
    assert runs.names() == []
    for name in ("a", "b"):
        with runs.create(facts(name)) as run:
            run.append(said_record([Message("user", "x")]))
    (runs.root / "stray").mkdir()
    assert sorted(runs.names()) == ["a", "b"]
    with pytest.raises(ValueError, match="there is a run a already"):
        runs.create(facts("a"))
    with pytest.raises(ValueError, match="there is no run c; the last ones are"):
        runs.open("c")
    assert json.loads((runs.root / "a" / "run.json").read_text())["model"] == "m"


def prompted(number: int, prompt: tuple[int, ...]) -> Answer:
    """Return an answer to a prompt of ids."""
    made = answer(number, 0)
    assert made.sampled is not None
    return replace(made, sampled=replace(made.sampled, prompt_ids=prompt))


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 9), max_size=6)), max_size=8))
@settings(max_examples=examples(100), deadline=None)
def test_a_prompt_is_told_by_the_last_one_and_read_back(
    tmp_path_factory: pytest.TempPathFactory, ways: list[tuple[int, list[int]]]
) -> None:
    runs = Runs(tmp_path_factory.mktemp("runs"))
    prompts: list[tuple[int, ...]] = []
    with runs.create(facts()) as run:
        for number, (way, ids) in enumerate(ways):
            before = prompts[-1] if prompts else ()
            said = (3, number - 1) if prompts else ()
            whole = (*before, *said)
            start = (whole, whole[: len(whole) // 2], (), before)[way]
            prompts.append((*start, *ids))
            run.append(answer_record(prompted(number, prompts[-1]), run.trajectory.steps))
    steps = runs.open("one").trajectory.steps
    assert [step.answer.sampled and step.answer.sampled.prompt_ids for step in steps] == prompts
    assert steps == run.trajectory.steps
    made = runs.fork(run, len(steps) // 2, name="two")
    assert made.trajectory.steps == steps[: len(steps) // 2]


def test_a_log_grows_with_what_is_new(tmp_path: Path) -> None:
    """A prompt of a hundred thousand ids costs the log once, and each step what it adds."""
    prompt: tuple[int, ...] = tuple(range(100_000))
    with Runs(tmp_path).create(facts()) as run:
        log, sizes = run.path / "log.jsonl", []
        for number in range(5):
            run.append(answer_record(prompted(number, prompt), run.trajectory.steps))
            sizes.append(log.stat().st_size)
            prompt = (*prompt, 3, number, *range(10))
    assert sizes[0] > 500_000
    assert sizes[-1] - sizes[0] < 10_000


@pytest.mark.parametrize("written", [{"num_known": 3, "ids": []}, {"num_known": -1, "ids": []}, {}])
def test_a_prompt_that_cannot_be_told_is_refused(tmp_path: Path, written: dict[str, Any]) -> None:
    record = answer_record(answer(1, 0))
    record["sampled"]["prompt_ids"] = written
    with Runs(tmp_path).create(facts()) as run, pytest.raises(ValueError, match="cannot follow"):
        run.append(record)


def test_a_record_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with Runs(tmp_path).create(facts()) as run:
        run.append(said_record([Message("user", "x")]))
        before = (run.path / "log.jsonl").read_bytes()
        with pytest.raises(ValueError, match="at most 67,108,864 can be kept"):
            run.append(said_record([Message("user", "y" * 2**26)]))
        assert (run.path / "log.jsonl").read_bytes() == before
    assert Runs(tmp_path).open("one").trajectory.said == [Message("user", "x")]


def test_a_list_reads_no_log_that_did_not_go_on(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    with runs.create(facts()) as run:
        run.append(said_record([Message("user", "Do\n this. " + "x" * 500)]))
        run.append(answer_record(answer(1, 0)))
        run.append({"type": "ended", "reason": "done"})
        outline = run.outline
        assert runs.outline("one") == outline  # from the log
    assert (outline.num_steps, outline.end, outline.facts) == (1, "done", run.facts)
    assert outline.task.startswith("Do this. x")
    assert len(outline.task) == 200
    log = run.path / "log.jsonl"
    content = log.read_bytes()
    log.write_bytes(b"x" * len(content))
    assert runs.outline("one") == outline
    log.write_bytes(content)
    with log.open("ab") as file:
        file.write(b'{"type": "rewound", "num_steps": 0}\n')
    assert runs.outline("one").num_steps == 0
    log.write_bytes(content)
    (run.path / "outline.json").write_text('{"num_bytes": 5}')
    assert runs.outline("one") == outline


def test_a_run_is_nobody_elses_to_read(tmp_path: Path) -> None:
    """A log holds what the agent read and printed."""
    runs = Runs(tmp_path / "fulmen/agents")
    run = runs.create(facts())
    assert [path.stat().st_mode & 0o777 for path in (runs.root, run.path)] == [0o700] * 2
    run.path.chmod(0o755)  # one of before
    with run:
        pass
    assert run.path.stat().st_mode & 0o777 == 0o700
