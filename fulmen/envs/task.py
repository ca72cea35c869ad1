"""Tasks and environments: what an agent is given to do, and how a trajectory of it is scored.

    Environment.task(index) -> Task -> played by an agent (run.py) -> Trajectory -> Task.score

A question is the simplest task: no tools, no folder, and a trajectory of one turn. A task does not
run the model: its caller (a curve, an evaluation, training) decides how to sample. The same seed
gives the same tasks.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from fulmen.agent import Answer, Score, Step, Trajectory
from fulmen.chat import Message, Tool, ToolCall

FOLDER: Final = Path("/task")
"""A task's folder as the model sees it"""


class GraderError(Exception):
    """A grader that failed, not the one whose work it was to grade: there is no score."""


class Task(ABC):
    """Question or assignment whose trajectory can be scored.

    It is played once, since tools of its own may remember what was done with them; the environment
    gives it anew. A task without tools and folder remembers nothing: any number of answers to it
    may be scored.
    """

    @property
    @abstractmethod
    def messages(self) -> tuple[Message, ...]:
        """Messages that the model is shown."""

    @property
    def key(self) -> str:
        """Text that only this task has: its messages. One whose files differ adds them."""
        return "\n".join(f"{one.role}: {one.content}" for one in self.messages)

    @property
    def profile(self) -> str:
        """Name of the tools that the model has: none, minimal or coding, see `PROFILES`."""
        return "none"

    @property
    def tools(self) -> tuple[Tool, ...]:
        """Tools of its own, which `act` answers."""
        return ()

    @property
    def has_folder(self) -> bool:
        """True if it is played in a folder, which `prepare` fills."""
        return self.profile != "none"

    @property
    def seen_as(self) -> Path:
        """Path of the folder as the model sees it."""
        return FOLDER

    @property
    def variables(self) -> Mapping[str, str]:
        """Variables of the commands that the model runs in the folder."""
        return {}

    @property
    def hidden_paths(self) -> tuple[Path, ...]:
        """Files and folders of this machine that would tell the answer; the model cannot see them,
        and neither can what is graded."""
        return ()

    @property
    def agent_seconds(self) -> float | None:
        """Longest work of an agent on it; None: it has no limit of its own."""
        return None

    async def prepare(self, folder: Path) -> None:
        """Write the task's files into an empty folder; there is nothing to write by default."""
        return None

    async def act(self, call: ToolCall) -> str:
        """Return the result of a call of one of its own tools. A ValueError is a result too: its
        sentence tells the model what is wrong with the call."""
        raise ValueError(f"the task has no tool {call.name}")

    async def next_words(self, trajectory: Trajectory) -> str | None:
        """Return what the user says to an answer without a call; None ends the conversation, as it
        does by default. Users are scripts: they follow from the task and the trajectory alone."""
        return None

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """Answers of a model, one after the other, that score 1: for the self-check of environments
        and as a baseline. Empty where none is known, as for what a model judges."""
        return ()

    @property
    def known_results(self) -> tuple[str, ...] | None:
        """Results of the calls of the known answers, in their order, where the task can tell them
        without being played: demonstrations of it take no time. None where it cannot."""
        return None

    @abstractmethod
    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return the score of a trajectory: 0 for an empty one, 1 for the known answer. Raises
        GraderError where none can be told, whatever was done.

        folder  the folder as the agent left it, in which nothing runs any more; it is only read
        """

    def answer_of(self, trajectory: Trajectory) -> str | None:
        """Return the answer in one spelling, so that votes can be counted; None if there is none,
        or if answers cannot be compared."""
        return None

    @property
    def is_question(self) -> bool:
        """True if an answer without a call is all there can be."""
        return not (self.tools or self.has_folder)

    def begin(self) -> None:
        """Take the task to play it. Raises ValueError if it was played before."""
        if getattr(self, "_has_begun", False):
            raise ValueError("a task is played once, its environment gives it anew")
        object.__setattr__(self, "_has_begun", True)  # tasks may be frozen


class Environment(Protocol):
    """Source of tasks."""

    @property
    def num_tasks(self) -> int | None:
        """Return the number of tasks; None means no end."""

    def task(self, index: int) -> Task:
        """Return the task at an index, always the same one; raise ValueError beyond the last."""


def answered(messages: Sequence[Message], answer: Answer) -> Trajectory:
    """Return the trajectory of one turn that an answer to messages is."""
    first = next((i for i, one in enumerate(messages) if one.role != "system"), len(messages))
    step = Step(tuple(messages[first:]), answer)
    trajectory = Trajectory(tuple(messages[:first]), [step])
    trajectory.end = "done" if answer.finish_reason == "stop" else "tokens"
    return trajectory
