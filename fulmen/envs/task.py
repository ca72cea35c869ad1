"""Tasks and environments: the protocols that every environment implements.

A task knows the messages that the model is shown and the score of a reply. It does not run the
model: its caller (a curve, an agent, training) decides how to sample. The same seed gives the same
tasks.
"""

from typing import Protocol

from fulmen.chat import Message, Reply, Tool


class Task(Protocol):
    """Question or assignment whose reply can be scored."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """Return the messages that the model is shown."""

    @property
    def tools(self) -> tuple[Tool, ...]:
        """Return the tools that the model may call."""

    def score(self, reply: Reply) -> float:
        """Return a score from 0 to 1; an empty reply scores 0."""

    def answer_of(self, reply: Reply) -> str | None:
        """Return the answer of a reply in one spelling, so that votes can be counted; None if it
        gives no answer."""


class Environment(Protocol):
    """Source of tasks."""

    @property
    def num_tasks(self) -> int | None:
        """Return the number of tasks; None means no end."""

    def task(self, index: int) -> Task:
        """Return the task at an index, always the same one; raise ValueError beyond the last."""
