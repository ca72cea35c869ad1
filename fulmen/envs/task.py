"""What every environment gives: tasks that can be scored, the same ones for the same seed.

A task knows what the model is shown and how good a reply is. It does not run the model: who samples
(a curve, an agent, training) decides how.
"""

from typing import Protocol

from fulmen.chat import Message, Reply, Tool


class Task(Protocol):
    """One thing to do."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the model is asked."""

    @property
    def tools(self) -> tuple[Tool, ...]:
        """What it may call."""

    def score(self, reply: Reply) -> float:
        """How well it was done, from 0 to 1; nothing said is 0."""

    def answer_of(self, reply: Reply) -> str | None:
        """What the reply answers, in one spelling, so that votes can be counted; None: nothing."""


class Environment(Protocol):
    """A source of tasks."""

    @property
    def num_tasks(self) -> int | None:
        """How many there are; None means no end."""

    def task(self, index: int) -> Task:
        """The task at an index, always the same one; ValueError beyond the last."""
