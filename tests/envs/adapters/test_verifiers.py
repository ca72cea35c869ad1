"""The library verifiers: its tasksets as our environments, and ours as its tasksets."""

import asyncio
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fulmen.agent import Answer, Result, Step, Trajectory
from fulmen.chat import Message, ToolCall
from fulmen.envs import load_environment
from fulmen.envs.adapters import VerifiersEnvironment
from fulmen.envs.workers import WorkerError
from fulmen.evaluate import self_check
from fulmen.sampling import SamplingParams
from tests.envs.test_environments import scored

pytestmark = pytest.mark.skipif(find_spec("verifiers") is None, reason="verifiers")


@pytest.fixture(scope="module")
def vf() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        from verifiers import v1
    return v1


def reversing(vf: Any, **data: Any) -> Any:
    """Return a taskset of three words to be turned around, as a user of the library writes it."""

    class Data(vf.TaskData):  # type: ignore[misc]
        word: str

    class Reverse(vf.Task[Data]):  # type: ignore[misc]
        @vf.reward(weight=0.75)  # type: ignore[untyped-decorator]
        async def right(self, trace: Any) -> float:
            if trace.last_reply == "fail":
                raise RuntimeError("a fault")
            return float(trace.last_reply == self.data.word[::-1])

        @vf.reward(weight=0.25)  # type: ignore[untyped-decorator]
        async def in_small_letters(self, trace: Any) -> float:
            return float(trace.last_reply == self.data.word[::-1])

        @vf.metric  # type: ignore[untyped-decorator]
        async def length(self, trace: Any) -> float:
            return float(len(trace.last_reply))

        @vf.metric  # type: ignore[untyped-decorator]
        async def answers(self, trace: Any) -> float:
            return float(len(trace.assistant_messages))

    class Words(vf.Taskset[Reverse, vf.TasksetConfig]):  # type: ignore[misc]
        def load(self) -> Iterator[Any]:
            for word in ("tree", "stone", "river"):
                row = {"prompt": f"Turn around: {word}", "system_prompt": "Be brief.", **data}
                yield Reverse(Data(word=word, **row))

    return Words(vf.TasksetConfig())


def test_a_taskset_is_an_environment(vf: Any) -> None:
    environment = VerifiersEnvironment(reversing(vf))
    assert environment.num_tasks == 3
    task = environment.task(1)
    assert [(one.role, one.content) for one in task.messages] == [
        ("system", "Be brief."),
        ("user", "Turn around: stone"),
    ]
    assert scored(task, "enots")[0] == 1
    assert scored(task, "stone")[0] == 0
    assert task.key != environment.task(0).key
    assert asyncio.run(self_check(environment, range(3), making_seconds=1)) == []
    with pytest.raises(ValueError, match="task 3 was asked for, 3 are known"):
        environment.task(3)
    assert VerifiersEnvironment(reversing(vf).take(2)).num_tasks == 2


def test_a_reward_that_fails_is_an_error(vf: Any) -> None:
    with pytest.raises(WorkerError, match="a reward failed"):
        scored(VerifiersEnvironment(reversing(vf)).task(0), "fail")


def test_tasks_that_need_more_are_refused(vf: Any) -> None:
    with pytest.raises(ValueError, match="Reverse needs a user who speaks first"):
        VerifiersEnvironment(reversing(vf, prompt=None)).task(0)
    with pytest.raises(ValueError, match="Reverse needs a container"):
        VerifiersEnvironment(reversing(vf, image="debian")).task(0)


def test_a_reward_that_needs_a_container_is_not_left_out(vf: Any) -> None:
    class Run(vf.Task[vf.TaskData]):  # type: ignore[misc]
        @vf.reward  # type: ignore[untyped-decorator]
        async def passed(self, trace: Any, runtime: Any) -> float:
            return 1.0

        @vf.reward  # type: ignore[untyped-decorator]
        async def polite(self, trace: Any, runtime: Any = None) -> float:
            return 0.0

    with pytest.raises(ValueError, match="Run needs a runtime"):
        VerifiersEnvironment([Run(vf.TaskData(prompt="Go."))]).task(0)


def test_a_metric_does_not_take_the_place_of_a_reward(vf: Any) -> None:
    class Twice(vf.Task[vf.TaskData]):  # type: ignore[misc]
        @vf.reward  # type: ignore[untyped-decorator]
        async def judged(self, trace: Any) -> dict[str, float]:
            return {"right": 0.0}

        @vf.metric  # type: ignore[untyped-decorator]
        async def counted(self, trace: Any) -> dict[str, float]:
            return {"right": 7.0}

    assert scored(VerifiersEnvironment([Twice(vf.TaskData(prompt="Go."))]).task(0), "yes")[0] == 0


def test_given_answers_are_not_the_models_and_a_call_of_no_tool_is_no_fault(vf: Any) -> None:
    given = [
        *(vf.UserMessage(content="Turn around: moon"), vf.AssistantMessage(content="noom")),
        vf.UserMessage(content="Turn around: tree"),
    ]
    task = VerifiersEnvironment(reversing(vf, prompt=given)).task(0)
    call = Message("assistant", tool_calls=(ToolCall("turn", {"word": "tree"}, "1"),))
    asked, said = (
        Answer(message=one, finish_reason="stop", params=SamplingParams())
        for one in (call, Message("assistant", "eert"))
    )
    steps = [Step(task.messages[1:], asked, (Result(0, "no tool", True),)), Step((), said)]
    score = asyncio.run(task.score(Trajectory(task.messages[:1], steps, end="done")))
    assert (score.value, score.parts["answers"]) == (1.0, 2.0)


MODULE = """from fulmen.envs.adapters.taskset import FulmenEnv, FulmenTaskset
__all__ = ["FulmenEnv", "FulmenTaskset"]
"""


@pytest.fixture
def identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module of two lines, as the library's commands need it."""
    (tmp_path / "ours_for_verifiers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "ours_for_verifiers"


def ours(vf: Any, identity: str, name: str, **fields: Any) -> Any:
    """Return our taskset as the library loads it."""
    config = vf.taskset_config_type(identity)(id=identity, environment=name, **fields)
    return vf.load_taskset(config)


def test_our_questions_are_a_taskset(vf: Any, identity: str) -> None:
    taskset = ours(vf, identity, "arithmetic", seed=4, num_tasks=5)
    tasks = list(taskset)
    assert len(tasks) == 5
    task = load_environment("arithmetic", seed=4).task(2)
    assert tasks[2].data.prompt == task.messages[0].content
    # There and back: the library's scoring of our task, by our reader of its tasks.
    back = VerifiersEnvironment(taskset).task(2)
    known = task.known_answers[0].content
    assert scored(back, known)[0] == 1
    assert scored(back, "no")[0] == 0
    data = type(tasks[2].data).model_validate_json(tasks[2].data.model_dump_json())
    assert type(tasks[2])(data).ours().messages == task.messages


@dataclass
class Talk:
    """A seat of the library whose model says what is known to be right."""

    vf: Any
    known: list[str]
    seen: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def interaction(self, task: Any) -> Any:
        place = self.vf.TraceTask(type="FulmenTask", data=task.data)
        agent = self.vf.AgentInfo(config=self.vf.AgentConfig())
        self.trace = self.vf.Trace(task=place, agent=agent)
        yield self
        await task.score(self.trace)

    async def turn(self, words: str) -> Any:
        self.seen.append(words)
        return SimpleNamespace(terminated=False, last_reply=self.known.pop(0))


def test_our_episodes_are_played_by_the_library(vf: Any, identity: str) -> None:

    name = "tools:2:library"
    (task,) = ours(vf, identity, name, num_tasks=1)
    known = [
        json.dumps([{"name": call.name, "arguments": call.arguments} for call in one.tool_calls])
        if one.tool_calls
        else one.content
        for one in load_environment(name, seed=0).task(0).known_answers
    ]
    kind = vf.environment_class(identity)
    assert kind.__name__ == "FulmenEnv"
    environment = object.__new__(kind)
    environment.config = SimpleNamespace(num_turns=20)
    for answers, value in ((known, 1.0), (["No."] * 20, 0.0)):
        talk = Talk(vf, list(answers))
        asyncio.run(environment.run(task, SimpleNamespace(agent=talk)))
        assert talk.trace.reward == value
        assert '"name"' in talk.seen[0]


def test_the_page_shows_our_taskset_as_it_is(vf: Any, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs/environments.md").read_text(encoding="utf-8")
    shown = re.search(r"^```py\n(.*?)^```\n\s*prints\s*```text\n(.*?)^```", page, re.M | re.S)
    assert shown is not None
    exec(compile(shown[1], "block", "exec"), {})
    assert capsys.readouterr().out == shown[2]
