"""Playing tasks: what the model is shown and can do, and what is scored."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.agent import (
    Budget,
    Score,
    Trajectory,
    TranscriptMemory,
    read_trajectories,
    write_trajectories,
)
from fulmen.chat import (
    Message,
    ModelError,
    Tool,
    ToolCall,
    Transcript,
    get_format,
)
from fulmen.envs import Arithmetic, Task, run_task
from fulmen.llm import LLM, ForcedModel, LocalModel, ScriptedModel
from fulmen.models import Packed
from fulmen.sampling import SamplingParams
from tests.agent.working import FirstForced, m1_calls, m2_calls
from tests.sandbox.helpers import python
from tests.tiny import write_checkpoint

M2 = get_format("minimax_m2")


def says(text: str) -> str:
    """Return an answer of M2 without calls."""
    return f"Hm.\n</think>\n\n{text}"


def calls(name: str, **arguments: str) -> str:
    """Return an answer of M2 that makes a call."""
    inner = "".join(
        f'<parameter name="{key}">{value}</parameter>\n' for key, value in arguments.items()
    )
    return (
        f'Hm.\n</think>\n\n<minimax:tool_call>\n<invoke name="{name}">\n{inner}</invoke>\n'
        "</minimax:tool_call>"
    )


def play(task: Task, script: Sequence[Any], **options: Any) -> tuple[Trajectory, ScriptedModel]:
    """Return the trajectory of a scripted model on a task."""
    model = ScriptedModel(M2, script)
    work = run_task(model, task, **options)
    return asyncio.run(asyncio.wait_for(work, 60)), model


@dataclass
class Counter(Task):
    """Count to three with a tool that remembers."""

    count: int = 0
    names: tuple[str, ...] = ("count",)
    kinds: dict[str, str] = field(default_factory=dict)

    @property
    def messages(self) -> tuple[Message, ...]:
        return (Message("system", "Be exact."), Message("user", "Count to three."))

    @property
    def tools(self) -> tuple[Tool, ...]:
        return tuple(Tool(name, "Count one on.") for name in self.names)

    async def act(self, call: ToolCall) -> str:
        if call.arguments:
            raise ValueError("count takes nothing")
        self.count += 1
        return f"it is {self.count}"

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        assert folder is None
        return Score(float(self.count == 3), {"count": self.count / 3})


class Hurried(Counter):
    """Count to three in no time."""

    @property
    def agent_seconds(self) -> float:
        return 0.0


@dataclass
class Files(Task):
    """Change a file, with tools and another one of its own."""

    own: tuple[str, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        return (Message("user", "Change a.txt."),)

    @property
    def profile(self) -> str:
        return "minimal"

    @property
    def tools(self) -> tuple[Tool, ...]:
        return tuple(Tool(name) for name in self.own)

    async def act(self, call: ToolCall) -> str:
        return "asked"

    async def prepare(self, folder: Path) -> None:
        assert not list(folder.iterdir())
        (folder / "a.txt").write_text("old\n")

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        assert folder is not None
        return Score(float((folder / "a.txt").read_text() == "new\n"))


def test_a_question_is_a_trajectory_of_one_turn() -> None:
    task = Arithmetic(0).task(5)
    trajectory, model = play(task, [says(f"It is {task.number}.")])
    assert [len(one.messages) for one in model.requests] == [1]
    assert (len(trajectory.steps), trajectory.end) == (1, "done")
    assert trajectory.score == Score(1.0)
    assert task.answer_of(trajectory) == str(task.number)


def test_tools_of_a_task_remember_and_so_it_is_played_once() -> None:
    task = Counter()
    script = [calls("count"), calls("count", by="2"), calls("no"), *[calls("count")] * 2, says("3")]
    trajectory, model = play(task, script)
    assert [message.role for message in model.requests[0].messages] == ["system", "user"]  # type: ignore[union-attr]
    results = [result for step in trajectory.steps for result in step.results]
    assert [one.text for one in results] == [
        *("it is 1", "count takes nothing", "there is no tool no", "it is 2", "it is 3"),
    ]
    assert [one.is_error for one in results] == [False, True, True, False, False]
    assert trajectory.score == Score(1.0, {"count": 1.0})
    with pytest.raises(ValueError, match="a task is played once, its environment gives it anew"):
        play(task, script)


@pytest.mark.parametrize("kind", ["m1", "m2"])
def test_ids_and_logprobs_of_a_trajectory_are_those_of_the_engine(
    kind: str, tmp_path: Path
) -> None:
    llm = LLM.load(str(write_checkpoint(tmp_path / kind, kind, max_position_embeddings=4096)))
    call = m2_calls(("count", {})) if kind == "m2" else m1_calls(("count", {}))

    async def go() -> Trajectory:
        async with LocalModel(llm) as local:
            model = FirstForced(local, ForcedModel(local, [call]))
            memory = TranscriptMemory(Transcript(llm.format, llm.tokenizer, keep_thoughts=True))
            params = SamplingParams(temperature=0.8, seed=3, max_tokens=150)
            budget = Budget(turns=2)
            return await run_task(model, Counter(), memory=memory, params=params, budget=budget)

    trajectory = asyncio.run(asyncio.wait_for(go(), 60))
    first, second = (step.answer.sampled for step in trajectory.steps)
    assert first is not None
    assert second is not None
    assert [one.text for one in trajectory.steps[0].results] == ["it is 1"]
    assert trajectory.score == Score(0.0, {"count": 1 / 3})
    # All of the first was given, and nothing of the second.
    assert first.forced == tuple(range(len(first.answer_ids)))
    assert llm.tokenizer.decode(first.answer_ids[:-1]) == call
    assert second.forced == ()
    assert second.prompt_ids[: len(first.prompt_ids) + len(first.answer_ids)] == (
        *first.prompt_ids,
        *first.answer_ids,
    )
    for sampled in (first, second):
        ids = [*sampled.prompt_ids, *sampled.answer_ids]
        packed = Packed.of([ids[:-1]], num_logits=[len(sampled.answer_ids)])
        with torch.inference_mode():
            plain = llm.engine.model.target_logprobs(packed, torch.tensor(sampled.answer_ids))
        # The engine subtracts in 64 bits.
        assert sampled.logprobs == pytest.approx(plain.tolist(), abs=1e-6)
    path = tmp_path / "played.jsonl"
    write_trajectories(path, [trajectory])
    assert list(read_trajectories(path)) == [trajectory]


def test_a_limit_or_a_failure_ends_it() -> None:
    trajectory, _ = play(Counter(), [calls("count")] * 9, budget=Budget(turns=2))
    assert (trajectory.end, trajectory.score) == ("turns", Score(0.0, {"count": 2 / 3}))
    with pytest.raises(ModelError, match="the line is dead"):
        play(Counter(), [calls("count"), ModelError("the line is dead")])


@pytest.mark.usefixtures("has_sandbox")
def test_a_folder_is_fresh_seen_at_one_place_and_scored_as_it_was_left(tmp_path: Path) -> None:
    script = [
        calls("run", command="pwd; cat a.txt; sleep 100 &"),
        calls("edit", path="a.txt", old="old", new="new"),
        calls("ask"),
        says("Done."),
    ]
    played = [play(Files(("ask",)), script)[0] for _ in range(2)]
    for trajectory in played:
        results = [step.results[0] for step in trajectory.steps[:-1]]
        assert results[0].text == "/task\nold"
        assert [one.is_error for one in results] == [False] * 3
        assert results[2].text == "asked"
        assert trajectory.score == Score(1.0)
        assert len(trajectory.system) == 1
    path = tmp_path / "played.jsonl"
    assert write_trajectories(path, played) == 2
    assert list(read_trajectories(path)) == played
    assert play(Files(), [says("No.")])[0].score == Score(0.0)


@pytest.mark.usefixtures("has_sandbox")
def test_nothing_of_this_package_can_be_read_where_a_task_is_played() -> None:
    here = Path(__file__).resolve().parents[2]
    look = f"ls -A {here}/fulmen; python3 -c 'import fulmen.envs' || echo none"
    trajectory, _ = play(Files(), [calls("run", command=look), says("x")])
    text = trajectory.steps[0].results[0].text
    assert "repairs" not in text
    assert text.endswith("none")


@pytest.mark.usefixtures("has_sandbox")
def test_a_tool_of_a_name_that_the_profile_has_is_refused() -> None:
    with pytest.raises(ValueError, match="the task has a tool read that its profile has too"):
        play(Files(("read",)), [says("x")])


DEEP = "import os\nfor _ in range(1500):\n    os.mkdir('a')\n    os.chdir('a')"


@pytest.mark.usefixtures("has_sandbox")
def test_a_folder_that_is_deep_or_closed_is_a_score_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own way to take it away raises RecursionError, and runs out of open files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command = f"mkdir closed; touch closed/a; chmod 0 closed; {python(DEEP)}\necho new > a.txt"
    trajectory, _ = play(Files(), [calls("run", command=command), says("Done.")])
    assert trajectory.steps[0].results[0].is_error is False
    assert trajectory.score == Score(1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("budget", [None, Budget(turns=9), Budget(seconds=60)])
def test_a_task_may_limit_the_time_of_its_agent(budget: Budget | None) -> None:
    trajectory, model = play(Hurried(), [calls("count")] * 3, budget=budget)
    assert (trajectory.end, trajectory.score) == ("seconds", Score(0.0, {"count": 0.0}))
    assert model.requests == []
