"""Tasks of known difficulty, and a script that is right, wrong, or ends in every other way."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import repeat
from pathlib import Path
from typing import Any, Final

from fulmen.agent import Score, Trajectory
from fulmen.chat import ChatRequest, Message, ModelError, Tool, ToolCall, get_format
from fulmen.envs import Environment, NumberTask, Task
from fulmen.evaluate import EvalConfig, Pass, Results, open_results, play_all, read_results
from fulmen.llm import ScriptedAnswer, ScriptedModel
from fulmen.sampling import SamplingParams

M2: Final = get_format("minimax_m2")
SETTINGS: Final[Mapping[str, Any]] = {"weights": "script", "seed": 0, "temperature": 1.0}
HOT: Final = SamplingParams(temperature=1.0)


class Sums:
    """Questions after the number that follows another one."""

    num_tasks = None

    def task(self, index: int) -> NumberTask:
        return NumberTask(f"Which number is one more than {index}?", Fraction(index + 1))


@dataclass(frozen=True)
class Button(Task):
    """A task with a tool, solved once it was called."""

    @property
    def messages(self) -> tuple[Message, ...]:
        return (Message("user", "Press the button, then say done."),)

    @property
    def tools(self) -> tuple[Tool, ...]:
        return (Tool("press", "Press the button."),)

    async def act(self, call: ToolCall) -> str:
        return "pressed"

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        pressed = sum(len(step.results) for step in trajectory.steps)
        return Score(float(pressed == 1), {"pressed": float(pressed)})


class Buttons:
    num_tasks = 3

    def task(self, index: int) -> Button:
        return Button()


class BrokenGrader(Sums):
    """Questions whose grader gives what is no score."""

    def __init__(self, value: float) -> None:
        self.value = value

    def task(self, index: int) -> NumberTask:
        value = self.value

        class Broken(NumberTask):
            async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
                return Score(1 / value if value == 0 else value)

        return Broken("How many?", Fraction(1))


def says(text: str) -> str:
    return f"Hm.\n</think>\n\n{text}"


PRESS: Final = (
    'Hm.\n</think>\n\n<minimax:tool_call>\n<invoke name="press">\n</invoke>\n</minimax:tool_call>'
)


def number_of(request: ChatRequest) -> int:
    """Return the number that a question of `Sums` is about."""
    (message,) = request.messages
    assert isinstance(message, Message)
    return int(message.content.rstrip("?").split()[-1])


def every_kind(request: ChatRequest) -> Any:
    """Be right at tasks 0, 1, 6, 7 ..., and at the others end in another way each."""
    index = number_of(request)
    match index % 6:
        case 2:
            return says("The answer is 1000.")
        case 3:
            return says("I do not know.")
        case 4:
            return ScriptedAnswer(says("It is 1, 2"), finish_reason="length")
        case 5 if index % 12 == 5:
            return ScriptedAnswer(says("so so so"), finish_reason="repetition")
        case 5:
            return ModelError("the machine is on fire")
    return says(f"The answer is {index + 1}.")


def by_seed(request: ChatRequest) -> str:
    """Be right by a chance that the seed decides."""
    assert request.params is not None
    seed = request.params.seed
    assert seed is not None
    index = number_of(request)
    return says(f"With {seed} it is {index + 1 + seed % 2}.")


def played(
    path: Path,
    environments: Mapping[str, Environment],
    script: Callable[[ChatRequest], Any] = every_kind,
    *,
    settings: Mapping[str, Any] = SETTINGS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    **config: Any,
) -> tuple[Results, str | None]:
    """Play with a script; return what is kept then, and why it stopped."""
    model = ScriptedModel(M2, repeat(script))
    with open_results(path, settings, {"model": "script"}) as results:
        work = play_all(
            *(model, environments, results, EvalConfig(**config)),
            params=HOT,
            on_progress=on_progress,
        )
        stopped = asyncio.run(asyncio.wait_for(work, 100))
    return read_results(path), stopped


def timeless(results: Results) -> list[tuple[Pass, Trajectory]]:
    """Return everything that is kept but for seconds, and tokens that a cache happened to hold."""
    return [
        (replace(one, seconds=0.0), _timeless(results.trajectory(one))) for one in results.passes
    ]


def _timeless(trajectory: Trajectory) -> Trajectory:
    found = trajectory.copy()
    found.steps = [
        replace(
            step,
            answer=replace(step.answer, seconds=0.0, num_cached_tokens=0),
            results=tuple(replace(one, seconds=0.0) for one in step.results),
        )
        for step in found.steps
    ]
    return found


def failures(results: Results) -> Iterator[tuple[int, str | None]]:
    for one in results.passes:
        yield one.index, one.failure
