"""Tasks as ids: what a model without a tokenizer can be asked and scored on.

    TokenEnvironment.task(index) -> TokenTask: prompt_ids -> ids of an answer -> Score

Environments of `fulmen.envs` speak in messages, and a chat format makes ids of them. A task here is
ids from the start: a vocabulary of sixteen symbols is enough, and nothing is rendered or parsed.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from fulmen.agent import Score
from fulmen.envs import Environment


class TokenTask(Protocol):
    """Prompt of ids whose answers, ids too, can be scored; any number of them."""

    @property
    def prompt_ids(self) -> Sequence[int]:
        """Ids that the model is shown; at least one."""

    def score(self, answer_ids: Sequence[int]) -> Score:
        """Return the score of an answer, from 0 to 1; the id that ended it is part of it.

        It is called in the thread that trains and has no time limit, so it only computes.
        """


@runtime_checkable
class TokenEnvironment(Protocol):
    """Source of tasks that are ids."""

    @property
    def vocab_size(self) -> int:
        """Number of ids that its prompts and answers are made of."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""

    @property
    def num_tasks(self) -> int | None:
        """Return the number of tasks; None means no end."""

    def task(self, index: int) -> TokenTask:
        """Return the task at an index, always the same one."""

    def text(self, ids: Sequence[int]) -> str:
        """Return ids as people read them."""


AnyEnvironment = Environment | TokenEnvironment
"""Source of tasks in messages or in ids"""
