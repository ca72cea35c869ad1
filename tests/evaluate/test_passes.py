"""Playing and keeping: known outcomes, killed at any moment, gone on with to the same bits."""

import asyncio
import json
import random
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fulmen.agent import TranscriptMemory
from fulmen.chat import Transcript
from fulmen.envs import Arithmetic, Environment, Questions
from fulmen.evaluate import (
    EvalConfig,
    Pass,
    Results,
    compare,
    open_results,
    play_all,
    read_results,
)
from fulmen.llm import LLM, LocalModel, RemoteModel
from fulmen.sampling import SamplingParams
from tests.evaluate.helpers import load
from tests.evaluate.playing import (
    PRESS,
    SETTINGS,
    BrokenGrader,
    Buttons,
    Sums,
    by_seed,
    every_kind,
    failures,
    number_of,
    played,
    says,
    timeless,
)
from tests.examples import examples
from tests.llm.remote.fakes import QUICK, Fake, delta, listed, sse
from tests.warm import python


def test_a_script_of_known_rights_and_wrongs_has_known_outcomes(tmp_path: Path) -> None:
    results, stopped = played(tmp_path / "run", {"sums": Sums()}, num_tasks=12)
    assert stopped is None
    assert list(failures(results)) == [
        *((0, None), (1, None), (2, "wrong"), (3, "no answer"), (4, "limit"), (5, "loop")),
        *((6, None), (7, None), (8, "wrong"), (9, "no answer"), (10, "limit"), (11, "error")),
    ]
    fire = results.get("sums", 11, 0)
    assert fire is not None
    assert fire.score is None
    assert fire.error == "ModelError: the machine is on fire"
    first = results.get("sums", 0, 0)
    assert first is not None
    assert (first.score, first.answer, first.num_turns) == (1.0, "1", 1)
    trajectory = results.trajectory(first)
    assert trajectory.reply is not None
    assert trajectory.reply.content == "The answer is 1."
    assert trajectory.score is not None


def test_tools_are_played_by_an_agent_and_the_same_calls_again_are_a_loop(tmp_path: Path) -> None:
    def press(request: Any) -> str:
        return says("done") if len(request.messages) > 1 else PRESS

    results, _ = played(tmp_path / "once", {"buttons": Buttons()}, press)
    assert [(one.failure, one.num_turns) for one in results.passes] == [(None, 2)] * 3
    assert dict(results.passes[0].parts) == {"pressed": 1.0}
    results, _ = played(tmp_path / "again", {"buttons": Buttons()}, lambda _: PRESS)
    assert {one.failure for one in results.passes} == {"loop"}
    results, _ = played(tmp_path / "few", {"buttons": Buttons()}, lambda _: PRESS, num_turns=2)
    assert {(one.failure, one.num_turns) for one in results.passes} == {("limit", 2)}


@pytest.mark.parametrize("value", [0.0, 1.5, -0.1, float("nan")])
def test_a_broken_grader_is_an_error_and_no_score(tmp_path: Path, value: float) -> None:
    results, _ = played(tmp_path, {"broken": BrokenGrader(value)}, lambda _: says("1"), num_tasks=2)
    for one in results.passes:
        assert (one.score, one.failure) == (None, "error")
        assert one.error is not None
        assert "ZeroDivisionError" in one.error or "lies between 0 and 1" in one.error
        assert results.trajectory(one).reply is not None  # all that there was is kept


def test_errors_are_played_again_and_many_in_a_row_stop_the_run(tmp_path: Path) -> None:
    def broken(request: Any) -> Any:
        raise ValueError("no server")

    results, stopped = played(tmp_path, {"sums": Sums()}, broken, num_tasks=40, num_parallel=3)
    assert stopped is not None
    assert re.fullmatch(
        "1[0-3] passes in a row ended by an error, the last one by ValueError: no server", stopped
    )
    assert 10 <= len(results.passes) <= 13
    results, stopped = played(tmp_path, {"sums": Sums()}, by_seed, num_tasks=40)
    assert stopped is None
    assert len(results.passes) == 40
    assert all(one.error is None for one in results.passes)
    whole, _ = played(tmp_path / "whole", {"sums": Sums()}, by_seed, num_tasks=40)
    assert timeless(results) == timeless(whole)


def test_what_fails_every_time_is_played_last_and_stops_nothing(tmp_path: Path) -> None:
    sentence = "no server"

    def broken(request: Any) -> Any:
        if number_of(request) < 10:
            raise ValueError(sentence)
        return by_seed(request)

    _, stopped = played(tmp_path, {"sums": Sums()}, broken, num_tasks=20, num_parallel=1)
    assert stopped is not None
    for _ in range(2):
        results, stopped = played(tmp_path, {"sums": Sums()}, broken, num_tasks=20, num_parallel=1)
        assert stopped is None
        assert [one.error is None for one in results.passes] == [False] * 10 + [True] * 10
    sentence = "no disk"
    _, stopped = played(tmp_path, {"sums": Sums()}, broken, num_tasks=20, num_parallel=1)
    assert stopped == "10 passes in a row ended by an error, the last one by ValueError: no disk"


TOO_LONG = (
    "prompt is too long: 40 tokens > 31 maximum",
    "This model's maximum context length is 32 tokens. However, your request has 40 input tokens.",
    "This model's maximum context length is 32 tokens. However, you requested 0 output tokens and "
    "your prompt contains at least 40 input tokens, for a total of at least 40 tokens.",
    "The input (40 tokens) is longer than the model's context length (32 tokens).",
    "the request exceeds the available context size, try increasing it",
    "Your input exceeds the context window of this model.",
    "invalid params, context window exceeds limit",
)
TOGETHER = (
    "This model's maximum context length is 32 tokens. However, you requested 45 tokens (5 in the "
    "messages, 40 in the completion).",
    "input length and `max_tokens` exceed context limit: 20 + 20 > 32",
)


def at_server(path: Path, fake: Fake, environment: Environment) -> list[Pass]:
    async def work(results: Results) -> None:
        async with RemoteModel("http://fake", transport=fake, config=QUICK) as model:
            config = EvalConfig(num_tasks=1)
            await play_all(model, {"it": environment}, results, config, params=SamplingParams())

    with open_results(path, {}, {}) as results:
        asyncio.run(asyncio.wait_for(work(results), 20))
    return read_results(path).passes


@pytest.mark.parametrize("sentence", TOO_LONG)
@pytest.mark.parametrize("is_event", [False, True])
def test_a_prompt_that_a_server_refuses_for_its_length_is_a_limit(
    tmp_path: Path, sentence: str, is_event: bool
) -> None:
    refusal = {"error": {"message": sentence, "type": "invalid_request_error"}}
    answer = [sse(refusal)] if is_event else httpx2.Response(400, json=refusal)
    (one,) = at_server(tmp_path, Fake(answer, models=listed("vllm")), Sums())
    assert (one.failure, one.score, one.error) == ("limit", 0, None)


@pytest.mark.parametrize("sentence", TOGETHER)
def test_answers_too_long_for_any_prompt_are_errors_and_else_a_limit(
    tmp_path: Path, sentence: str
) -> None:
    refused = httpx2.Response(400, json={"error": {"message": sentence}})
    (one,) = at_server(tmp_path / "first", Fake(refused, models=listed("vllm")), Sums())
    assert one.failure == "error"
    function = {"name": "press", "arguments": "{}"}
    call = {"index": 0, "id": "c", "type": "function", "function": function}
    pressed = [sse(delta(tool_calls=[call]), delta("tool_calls"), "[DONE]")]
    fake = Fake(pressed, refused, models=listed("vllm"))
    (one,) = at_server(tmp_path / "later", fake, Buttons())
    assert (one.failure, one.num_turns, one.parts) == (None, 1, {"pressed": 1.0})


@pytest.mark.parametrize("status", [400, 401, 500])
def test_other_refusals_are_errors(tmp_path: Path, status: int) -> None:
    said = "no such model" if status == 400 else TOO_LONG[0]
    refused = httpx2.Response(status, json={"error": {"message": said}})
    (one,) = at_server(tmp_path, Fake(refused, models=listed("vllm")), Sums())
    assert one.failure == "error"


def test_seeds_follow_from_environment_task_and_sample_alone(tmp_path: Path) -> None:
    several = {"one": Sums(), "other": Sums()}
    results, _ = played(tmp_path / "a", several, by_seed, num_tasks=5, num_samples=3)
    assert len({one.seed for one in results.passes}) == 30
    more, _ = played(tmp_path / "b", {"other": Sums()}, by_seed, num_tasks=9, num_samples=2)
    for one in more.passes:
        if (known := results.get(*one.key)) is not None:
            assert known.seed == one.seed
    # More tasks and samples are added to those that are there.
    grown, _ = played(tmp_path / "b", several, by_seed, num_tasks=5, num_samples=3)
    assert len(grown.passes) == 30 + 4 * 2


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return load(tmp_path_factory.mktemp("m2"), "m2")


class Stopped(Exception):
    """Raised where a run is to end."""


def on_tiny(llm: LLM, path: Path, stop_after: int | None = None, **config: Any) -> Results:
    """Play on a real engine, perhaps not to the end."""

    async def work(results: Results) -> None:
        def stop(done: int, total: int) -> None:
            if done == stop_after:
                raise Stopped

        environments: dict[str, Environment] = {"sums": Sums(), "buttons": Buttons()}
        async with LocalModel(llm) as model:
            await play_all(
                *(model, environments, results, EvalConfig(**config)),
                params=SamplingParams(max_tokens=12),
                new_memory=lambda: TranscriptMemory(Transcript(llm.format, llm.tokenizer)),
                context=model.max_model_len,
                on_progress=stop,
            )

    with open_results(path, SETTINGS, {}) as results:
        if stop_after is None:
            asyncio.run(work(results))
        else:
            with pytest.raises(Stopped):
                asyncio.run(work(results))
    return read_results(path)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(llm: LLM, tmp_path: Path) -> None:
    config = {"num_tasks": 4, "num_samples": 2}
    whole = on_tiny(llm, tmp_path / "whole", **config)
    assert len(whole.passes) == 8 + 6
    kept = timeless(whole)
    assert any(step.answer.sampled for _, trajectory in kept for step in trajectory.steps)
    path = tmp_path / "stopped"
    assert len(on_tiny(llm, path, 5, num_parallel=4, **config).passes) < 14
    assert timeless(on_tiny(llm, path, **config)) == kept
    alone = on_tiny(llm, tmp_path / "alone", num_parallel=1, **config)
    assert timeless(alone) == kept


def test_any_beginning_of_the_file_is_gone_on_with(tmp_path: Path) -> None:
    whole, _ = played(tmp_path / "whole", {"sums": Sums()}, by_seed, num_tasks=6)
    content = (tmp_path / "whole/passes.jsonl").read_bytes()
    draw, path = random.Random(1), tmp_path / "cut"
    played(path, {"sums": Sums()}, by_seed, num_tasks=1)
    ends = [0, 1, len(content) - 1, *(draw.randrange(len(content)) for _ in range(examples(20)))]
    for end in ends:
        (path / "passes.jsonl").write_bytes(content[:end])
        assert len(read_results(path).passes) == content[:end].count(b"\n")
        results, _ = played(path, {"sums": Sums()}, by_seed, num_tasks=6)
        assert timeless(results) == timeless(whole)


KILLED = """
import sys
from pathlib import Path
import tests.evaluate.playing as it
script = it.by_seed
print("begun", flush=True)
def slow(request):
    import time
    time.sleep(0.003)
    return script(request)
it.played(Path(sys.argv[1]), {"sums": it.Sums()}, slow, num_tasks=60, num_parallel=4)
"""


def kept_after_kill(path: Path) -> set[tuple[str, int, int]]:
    """Return the passes that a run left; its process may live a moment longer than its parent."""
    for _ in range(1000):
        with suppress(ValueError), open_results(path, SETTINGS, {}) as results:
            return {one.key for one in results.passes}
        time.sleep(0.01)
    raise AssertionError("the folder is still in use")


def test_a_run_that_is_killed_at_random_moments_loses_nothing_that_was_kept(
    tmp_path: Path,
) -> None:
    path, draw, before = tmp_path / "killed", random.Random(2), set[tuple[str, int, int]]()
    for _ in range(examples(40)):
        with subprocess.Popen(python("-c", KILLED, path), stdout=subprocess.PIPE) as run:
            assert run.stdout is not None
            assert run.stdout.readline() == b"begun\n"
            until = time.monotonic() + draw.uniform(0.0, 0.4)
            while run.poll() is None and time.monotonic() < until:
                time.sleep(0.005)
            if run.poll() is not None:
                assert run.returncode == 0
                break
            run.send_signal(signal.SIGKILL)
        now = kept_after_kill(path)
        assert before <= now
        before = now
    results, _ = played(path, {"sums": Sums()}, by_seed, num_tasks=60)
    whole, _ = played(tmp_path / "whole", {"sums": Sums()}, by_seed, num_tasks=60)
    assert timeless(results) == timeless(whole)


def test_what_does_not_belong_to_a_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    environments: dict[str, Environment] = {"stories": Arithmetic(0)}
    played(path, environments, lambda _: says("1"), num_tasks=2)

    def refused(sentence: str, at: Path = path, **changes: Any) -> None:
        with pytest.raises(ValueError, match=sentence):
            played(at, environments, every_kind, **changes)

    refused(
        "has passes with temperature 1.0, not 0.5; another folder is needed",
        settings={**SETTINGS, "temperature": 0.5},
    )
    refused('has passes with weights "script", not null', settings={"seed": 0})
    with open_results(path, SETTINGS, {}):
        refused("is in use by another process")
    environments = {"stories": Arithmetic(1)}
    refused("task 0 of stories was another one")
    rows = tmp_path / "rows.jsonl"
    for answer in (1, 2):
        rows.write_text(json.dumps({"question": "How many?", "answer": answer}))
        environments = {"rows": Questions(rows)}
        played(tmp_path / f"rows{answer}", environments, lambda _: says("1"))
    refused("task 0 of rows was another one", tmp_path / "rows1")
    with pytest.raises(ValueError, match="task 0 of rows is another one in"):
        compare(*(read_results(tmp_path / name) for name in ("rows1", "rows2")))
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    refused("holds something else, another folder is needed", other)
    assert [one.name for one in other.iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match="holds no evaluation, it has no settings"):
        read_results(other)
    lines = (path / "passes.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    for changed in ({"score": 2}, {"failure": "bored"}, {"failure": "error"}, {"index": "0"}):
        line = json.dumps({**record, **changed})
        (path / "passes.jsonl").write_text(f"{lines[1]}\n{line}\n")
        with pytest.raises(ValueError, match=r"passes.jsonl, line 2 holds no pass: its "):
            read_results(path)


def test_samples_that_could_not_differ_are_refused(tmp_path: Path) -> None:
    with open_results(tmp_path, SETTINGS, {}) as results:
        work = play_all(
            *(None, {}, results, EvalConfig(num_samples=2)),  # type: ignore[arg-type]
            params=SamplingParams(temperature=0),
        )
        with pytest.raises(ValueError, match="all samples of a task would be equal"):
            asyncio.run(work)
