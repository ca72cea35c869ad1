"""Rollouts: whole and scored, token-exact over turns, from an engine here or a server elsewhere."""

import asyncio
import math
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI, Request

from fulmen.agent import (
    Answer,
    Budget,
    Sampled,
    Score,
    Step,
    Trajectory,
    TranscriptMemory,
)
from fulmen.chat import Message, Tool, ToolCall, Transcript
from fulmen.checkpoints import load_model, save_model
from fulmen.envs import Arithmetic, Questions, Task, run_task
from fulmen.llm import LLM, ForcedModel, LocalModel, PeerError
from fulmen.models import Model, Packed
from fulmen.sessions import Session, SessionStore
from fulmen.train import (
    BatchConfig,
    Draw,
    LimitsConfig,
    LocalRollouts,
    RLRun,
    RolledOut,
    RolloutError,
    Sample,
    SamplingConfig,
    ServerConfig,
    ServerRollouts,
    SourceConfig,
    TrainerConfig,
    open_run,
)
from fulmen.train.rl.playing import close_loop, gather_outcomes, sample_of
from fulmen.train.rl.rollout import Failure, Outcome, check_any
from tests.agent.working import FirstForced, m1_calls, m2_calls
from tests.llm.upstream.fakes import Fake, running
from tests.models.helpers import random_model
from tests.tiny import write_checkpoint
from tests.train.rl_helpers import SMALL, RandomIds, RandomTask, new_tiny

every_model = pytest.mark.parametrize("kind", ["m1", "m2"])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
SAMPLING = SamplingConfig(group_size=3, max_tokens=40, repetition_window=None)


@dataclass
class Counter(Task):
    """Count to three with a tool that remembers."""

    count: int = 0

    @property
    def messages(self) -> tuple[Message, ...]:
        return (Message("system", "Be exact."), Message("user", "Count to three."))

    @property
    def tools(self) -> tuple[Tool, ...]:
        return (Tool("count", "Count one on."),)

    async def act(self, call: ToolCall) -> str:
        self.count += 1
        return f"it is {self.count}"

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        return Score(self.count / 3, {"count": float(self.count)})


class Counters:
    """Tasks with a tool."""

    num_tasks = None

    def task(self, index: int) -> Counter:
        return Counter()


@dataclass
class Broken(Counter):
    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        raise OSError("the judge is away")


class SometimesBroken:
    num_tasks = None

    def task(self, index: int) -> Counter:
        return Counter() if index % 2 else Broken()


def policy_folder(folder: Path, kind: str, dtype: torch.dtype) -> Path:
    """Write the checkpoint of a policy in training, as a state holds it: its head in float32."""
    write_checkpoint(folder, kind, max_position_embeddings=4096)
    save_model(load_model(folder, dtype=dtype, trainable=True), folder)
    return folder


def assert_is_the_models(sample: Sample, model: Model) -> None:
    """Check that what was sampled has the bits of the training forward pass."""
    assert sample.num_sampled > 0
    wanted = (sample.is_sampled.nonzero()[:, 0] - 1).tolist()
    packed = Packed.of([sample.ids[:-1]], wanted=[wanted])
    with torch.no_grad():
        found = model.target_scores(packed, sample.ids[sample.is_sampled]).logprobs
    assert torch.equal(found, sample.logprobs[sample.is_sampled])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"top_p": 0.95}, "top_p is 0.95, an exact run draws from the whole distribution: leave"),
        ({"top_k": 40}, "top_k is 40, an exact run"),
        ({"min_p": 0.1}, "min_p is 0.1, an exact run"),
        ({"temperature": 0.7}, "temperature is 0.7, an exact run"),
        ({"thinking_budget": 9}, "thinking_budget is 9, an exact run"),
        ({"group_size": 1}, "group_size is 1, it must be 2 or more"),
    ],
)
def test_an_exact_run_refuses_what_would_draw_from_less(
    options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        SamplingConfig(**options)
    if "group_size" not in options:
        assert SamplingConfig(**options, exact=False).params(seed=1).seed == 1


@every_model
def test_the_same_seed_gives_the_same_groups_whatever_runs_beside_them(kind: str) -> None:
    rollouts = LocalRollouts(new_tiny(kind), {"random": RandomIds()}, SAMPLING, engine_config=SMALL)
    draws = [Draw("random", index) for index in range(6)]
    first = rollouts.roll_out(draws, group_size=3, seed=1, max_tokens=40)
    again = rollouts.roll_out(draws[:2], group_size=3, seed=1, max_tokens=40)
    other = rollouts.roll_out(draws, group_size=3, seed=2, max_tokens=40)
    rollouts.close()

    def ids(groups: Sequence[Any]) -> list[list[int]]:
        return [sample.ids.tolist() for group in groups for sample in group.samples]

    assert [one.task_index for one in first.groups] == [0, 1, 2, 3, 4, 5]
    assert ids(again.groups) == ids(first.groups)[:6]
    assert ids(other.groups) != ids(first.groups)
    samples = [sample for group in first.groups for sample in group.samples]
    assert first.num_tokens == sum(one.num_sampled for one in samples)
    assert {one.finish_reason for one in samples} <= {"stop", "length"}


@every_model
@every_dtype
def test_questions_and_tools_are_token_exact(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = policy_folder(tmp_path / kind, kind, dtype)
    model = load_model(folder, dtype=dtype, trainable=True)
    llm = LLM.load(str(folder))
    rollouts = LocalRollouts(
        model,
        {"sums": Arithmetic(0), "tools": Counters()},
        SAMPLING,
        LimitsConfig(max_turns=2),
        engine_config=SMALL,
        tokenizer=llm.tokenizer,
        format=llm.format,
    )
    draws = [Draw("tools", 0), Draw("sums", 0), Draw("tools", 1)]
    seen = list[tuple[int, int]]()
    rolled = rollouts.roll_out(
        draws,
        group_size=2,
        seed=1,
        max_tokens=30,
        on_progress=lambda ended, total, speed: seen.append((ended, total)),
    )
    assert seen[-1] == (6, 6)
    assert [one.environment for one in rolled.groups] == ["tools", "sums", "tools"]
    for group in rolled.groups:
        for sample in group.samples:
            assert_is_the_models(sample, model)
            assert rollouts.text(sample)
    texts = {sample.ids.numpy().tobytes() for group in rolled.groups for sample in group.samples}
    assert len(texts) == 6  # every seed is another
    rollouts.close()


@every_model
@every_dtype
def test_after_a_call_and_its_result_only_what_was_drawn_is_in_the_loss(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = policy_folder(tmp_path / kind, kind, dtype)
    llm = LLM.load(str(folder), dtype=dtype)
    call = m2_calls(("count", {})) if kind == "m2" else m1_calls(("count", {}))

    async def go() -> Trajectory:
        async with LocalModel(llm) as local:
            return await run_task(
                FirstForced(local, ForcedModel(local, [call])),
                Counter(),
                memory=TranscriptMemory(Transcript(llm.format, llm.tokenizer, keep_thoughts=True)),
                params=SAMPLING.params(seed=3, max_tokens=150),
                budget=Budget(turns=2),
            )

    trajectory = asyncio.run(asyncio.wait_for(go(), 60))
    sample = sample_of(trajectory, environment="tools", task_index=0, policy_version=0)
    assert isinstance(sample, Sample)
    assert sample.num_turns == 2
    assert sample.reward == pytest.approx(1 / 3)
    last = trajectory.steps[1].answer.sampled
    assert last is not None
    assert sample.ids.tolist() == [*last.prompt_ids, *last.answer_ids]
    assert sample.is_sampled.tolist() == [False] * len(last.prompt_ids) + [True] * len(
        last.answer_ids
    )
    assert_is_the_models(sample, load_model(folder, dtype=dtype, trainable=True))


@every_model
@every_dtype
def test_answers_of_a_restored_session_have_the_bits_of_the_trainer(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = policy_folder(tmp_path / kind, kind, dtype)
    store = SessionStore(tmp_path / "store")
    question = [Message("user", "Tell me about lightning, thunder and all the rest of it. " * 4)]
    for turn in range(2):  # the second in what could be another process
        llm = LLM.load(str(folder), dtype=dtype)
        session = Session(llm, store, "s", model=str(folder), keep_thoughts=True)
        messages = [*session.messages, *question]
        params = SAMPLING.params(seed=turn)
        completion = llm.chat(session.request(messages, params=params))
        session.save(messages, completion)
    assert session.num_restored > 64
    assert completion.usage.num_cached_tokens > 64
    ids = [*completion.prompt_ids, *completion.answer_ids]
    sample = Sample.of(
        ids,
        [math.nan] * len(completion.prompt_ids) + [one.logprob for one in completion.tokens],
        reward=1.0,
        environment="chat",
        task_index=0,
    )
    assert_is_the_models(sample, load_model(folder, dtype=dtype, trainable=True))


def test_a_rollout_that_fails_is_counted_and_leaves_its_group(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m2", "m2", max_position_embeddings=4096)
    llm = LLM.load(str(folder))
    rollouts = LocalRollouts(
        load_model(folder, trainable=True),
        {"some": SometimesBroken()},
        SAMPLING,
        LimitsConfig(max_turns=1),
        engine_config=SMALL,
        tokenizer=llm.tokenizer,
        format=llm.format,
    )
    draws = [Draw("some", index) for index in range(3)]
    rolled = rollouts.roll_out(draws, group_size=2, seed=1, max_tokens=9)
    assert [one.task_index for one in rolled.groups] == [1]
    assert (rolled.num_dropped_groups, dict(rolled.failures)) == (2, {"OSError": 4})
    assert rolled.num_samples == 2
    assert rolled.last_error.startswith("the judge is")
    rollouts.close()


def step_of(prompt_ids: tuple[int, ...], answer_ids: tuple[int, ...]) -> Step:
    """Return an answer that was drawn after a prompt."""
    sampled = Sampled(
        prompt_ids=prompt_ids, answer_ids=answer_ids, logprobs=(-1.0,) * len(answer_ids)
    )
    answer = Answer(
        message=Message("assistant", "well"),
        finish_reason="stop",
        params=SAMPLING.params(seed=0),
        sampled=sampled,
    )
    return Step((), answer)


def test_a_history_that_does_not_go_on_is_no_sample() -> None:
    def found(*steps: Step) -> Outcome:
        trajectory = Trajectory((), list(steps))
        trajectory.score = Score(1.0)
        return sample_of(trajectory, environment="tools", task_index=0, policy_version=0)

    cut = step_of((1, 2), (3, 4))
    cut = replace(cut, answer=replace(cut.answer, finish_reason="abort"))
    assert found(cut) == Failure("no answer", "its last answer did not end: None")
    first = step_of((1, 2), (3, 4))
    whole = found(first, step_of((1, 2, 3, 4, 5), (6,)))
    assert isinstance(whole, Sample)
    assert whole.ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert whole.is_sampled.tolist() == [False, False, True, True, False, True]
    for prompt in ((1, 2, 3, 9, 5), (1, 2, 3), (9, 2, 3, 4, 5)):
        assert found(first, step_of(prompt, (6,))) == Failure(
            "broken history", "the prompt of answer 2 does not go on from the answer before it"
        )
    assert found() == Failure("no answer", "it ended before the first answer: None")


@dataclass
class SometimesBad(RandomIds):
    """Tasks that cannot be made, or whose scores are none."""

    def task(self, index: int) -> RandomTask:
        match index:
            case 0:
                raise KeyError("no such task")
            case 1:
                return RandomTask((1, 2, 3), math.nan)
            case 2:
                return RandomTask(())
        return super().task(index)


def test_one_bad_task_or_reward_takes_nothing_else_down(tmp_path: Path) -> None:
    rollouts = LocalRollouts(new_tiny("m1"), {"bad": SometimesBad()}, SAMPLING, engine_config=SMALL)
    seen = list[tuple[int, int]]()
    rolled = rollouts.roll_out(
        [Draw("bad", index) for index in range(5)],
        group_size=2,
        seed=1,
        max_tokens=9,
        on_progress=lambda ended, total, speed: seen.append((ended, total)),
    )
    rollouts.close()
    assert [one.task_index for one in rolled.groups] == [3, 4]
    assert dict(rolled.failures) == {"KeyError": 2, "ValueError": 2, "engine error": 2}
    assert rolled.num_dropped_groups == 3
    assert seen[-1] == (10, 10)


@dataclass
class Slow(Task):
    """A question whose score takes its time, and which counts those at work."""

    seconds: float
    at_work: list[int]

    @property
    def messages(self) -> tuple[Message, ...]:
        return (Message("user", "Well?"),)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        self.at_work.append(self.at_work[-1] + 1)
        await asyncio.sleep(self.seconds)
        self.at_work.append(self.at_work[-1] - 1)
        return Score(1.0)


@dataclass
class SlowScores:
    seconds: float
    num_tasks: None = None
    at_work: list[int] = field(default_factory=lambda: [0])

    def task(self, index: int) -> Task:
        if index == 0:
            raise OSError("the file is gone")
        return Slow(self.seconds, self.at_work)


def test_scores_come_beside_each_other_and_the_round_limits_them_all(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m2", "m2", max_position_embeddings=4096)
    llm = LLM.load(str(folder))

    def rolled(seconds: float, limits: LimitsConfig) -> tuple[RolledOut, int]:
        environment = SlowScores(seconds)
        rollouts = LocalRollouts(
            load_model(folder, trainable=True),
            {"slow": environment},
            SAMPLING,
            limits,
            engine_config=SMALL,
            tokenizer=llm.tokenizer,
            format=llm.format,
        )
        draws = [Draw("slow", index) for index in range(4)]
        found = rollouts.roll_out(draws, group_size=2, seed=1, max_tokens=2)
        rollouts.close()
        return found, max(environment.at_work)

    found, together = rolled(0.05, LimitsConfig(max_parallel=4))
    assert (len(found.groups), together) == (3, 4)
    assert dict(found.failures) == {"OSError": 2}
    limits = LimitsConfig(max_parallel=2, batch_seconds=3.0, trajectory_seconds=2.5)
    found, _ = rolled(2.0, limits)
    assert len(found.groups) == 1
    assert dict(found.failures) == {"OSError": 2, "out of time": 4}


def test_environments_of_messages_need_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="sums speaks in messages, which needs a tokenizer"):
        LocalRollouts(new_tiny("m1"), {"sums": Arithmetic(0)})
    with pytest.raises(ValueError, match="random has 62 ids, the model knows 61"):
        LocalRollouts(new_tiny("m1"), {"random": RandomIds(vocab_size=62)})


# ---- a server at a URL -------------------------------------------------------------------------


def publishing(fake: Fake) -> FastAPI:
    """Return a fake SGLang that takes new weights, as SGLang 0.5.23 does."""
    app = fake.app()

    @app.post("/update_weights_from_disk")
    async def update(request: Request) -> dict[str, Any]:
        body = await request.json()
        assert fake.model is not None
        loaded = load_model(body["model_path"])
        await fake.model.call(lambda: fake.llm.engine.load_weights(loaded))
        return {"success": True, "message": "Succeeded to update model weights."}

    return app


def test_a_server_draws_and_takes_new_weights(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m2", "m2", max_position_embeddings=4096)
    sampling = SamplingConfig(group_size=2, max_tokens=20, exact=False, repetition_window=None)
    (tmp_path / "questions.jsonl").write_text('{"question": "1 and 1?", "answer": 2}')
    environments = {"sums": Questions(tmp_path / "questions.jsonl")}
    model = load_model(folder, trainable=True)
    with running(publishing(Fake(LLM.load(str(folder)), "sglang"))) as url:
        rollouts = ServerRollouts(
            str(folder), url, environments, sampling, folder=tmp_path / "published"
        )
        for version in range(2):
            rolled = rollouts.roll_out([Draw("sums", 0)], group_size=2, seed=1, max_tokens=20)
            (group,) = rolled.groups
            for sample in group.samples:
                assert_is_the_models(sample, model)
                assert set(sample.policy_versions[sample.is_sampled].tolist()) == {version}
            model = random_model(model.config, seed=version + 1)
            assert rollouts.load_weights(model) == version + 1
        assert [one.name for one in (tmp_path / "published").iterdir()] == ["version-2"]
        rollouts.close()


def server_run(tmp_path: Path, folder: Path, url: str) -> RLRun:
    """Return a run whose answers are drawn by a server."""
    (tmp_path / "questions.jsonl").write_text('{"question": "1 and 1?", "answer": 2}')
    return RLRun(
        folder=tmp_path / "out",
        model=folder,
        dtype="float32",
        trainer=TrainerConfig(num_steps=1, num_groups=2),
        sources=(SourceConfig(levels=(str(tmp_path / "questions.jsonl"),)),),
        sampling=SamplingConfig(group_size=2, max_tokens=9, exact=False, repetition_window=None),
        batch=BatchConfig(min_groups=1),
        probe=None,
        server=ServerConfig(url=url),
    )


def test_a_run_on_a_server_begins_with_its_own_weights(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m2", "m2", max_position_embeddings=4096)
    llm = LLM.load(str(folder))
    llm.engine.load_weights(random_model(llm.engine.model.config, seed=9))
    with running(publishing(Fake(llm, "sglang"))) as url:
        run = server_run(tmp_path, folder, url)
        with open_run(run) as trainer:
            rolled = trainer._rollouts.roll_out(
                [Draw(run.environments[0], 0)], group_size=2, seed=1, max_tokens=9
            )
            for sample in rolled.groups[0].samples:
                assert_is_the_models(sample, trainer.model)
                assert set(sample.policy_versions[sample.is_sampled].tolist()) == {0}


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("vllm", "is vLLM, which takes no new weights while it runs: use SGLang"),
        ("sglang", "did not take the new weights: no room"),
    ],
)
def test_a_server_that_takes_no_weights_is_refused_and_leaves_nothing(
    kind: str, sentence: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "m2", "m2", max_position_embeddings=4096)
    app = Fake(LLM.load(str(folder)), kind).app()

    @app.post("/update_weights_from_disk")
    async def update() -> dict[str, Any]:
        return {"success": False, "message": "no room"}

    with running(app) as url, pytest.raises(ValueError, match=sentence):
        open_run(server_run(tmp_path, folder, url)).__enter__()
    assert not (tmp_path / "out").exists()


class Silent(Fake):
    """A server whose answers do not begin."""

    async def _generate(self, request: Request) -> Any:
        await asyncio.sleep(20)


def test_a_server_that_stops_answering_is_named_with_the_limit(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m2", "m2", max_position_embeddings=4096)
    (tmp_path / "questions.jsonl").write_text('{"question": "1 and 1?", "answer": 2}')
    with running(publishing(Silent(LLM.load(str(folder)), "sglang"))) as url:
        rollouts = ServerRollouts(
            str(folder),
            url,
            {"sums": Questions(tmp_path / "questions.jsonl")},
            SamplingConfig(exact=False),
            LimitsConfig(trajectory_seconds=0.5),
            folder=tmp_path / "published",
        )
        rolled = rollouts.roll_out([Draw("sums", 0)], group_size=2, seed=1, max_tokens=20)
        rollouts.close()
    assert (rolled.groups, dict(rolled.failures)) == ([], {"no answer": 2})
    with pytest.raises(RolloutError) as error:
        check_any(rolled.num_samples, rolled.failures, rolled.last_error)
    assert str(error.value) == (
        f"all 2 rollouts failed, the last with: the server at {url} gave no answer within 0.5 "
        "seconds (limits.trajectory_seconds)"
    )


def test_a_server_that_never_answers_is_one_sentence(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m2", "m2")
    sampling = SamplingConfig(exact=False)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(PeerError, match=r"did not answer within 0\.5 seconds: is the"):
            ServerRollouts(
                str(folder), url, {}, sampling, folder=tmp_path / "out", connect_seconds=0.5
            )
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="a run that samples there is not exact: set exact to"):
        ServerRollouts(str(folder), url, {}, SamplingConfig(), folder=tmp_path / "out")


def test_a_rollout_that_does_not_let_itself_be_cancelled_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fulmen.train.rl.playing._CANCEL_SECONDS", 0.05)
    release = threading.Event()

    async def stubborn() -> Outcome:
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return Failure("late")

    runner = asyncio.Runner()
    found = runner.run(gather_outcomes([stubborn], LimitsConfig(), seconds=0.05))
    assert [one.reason for one in found if isinstance(one, Failure)] == ["out of time"]
    watchdog = threading.Timer(20, release.set)  # else a fault here would hang the suite
    watchdog.start()
    close_loop(runner)
    watchdog.cancel()
    assert not release.is_set()


def test_a_long_prompt_that_is_refused_counts_once() -> None:
    rollouts = LocalRollouts(
        new_tiny("m2"),
        {"random": RandomIds(lengths=(3, 150))},
        SAMPLING,
        engine_config=replace(SMALL, max_model_len=100),
    )
    seen = list[tuple[int, int]]()
    rolled = rollouts.roll_out(
        [Draw("random", index) for index in range(6)],
        group_size=3,
        seed=1,
        max_tokens=9,
        on_progress=lambda ended, total, speed: seen.append((ended, total)),
    )
    rollouts.close()
    assert rolled.num_dropped_groups in range(1, 6)
    assert dict(rolled.failures) == {"engine error": 3 * rolled.num_dropped_groups}
    assert seen[-1] == (18, 18)
