"""Our questions for trainers that take rows of prompts and a function of rewards, as TRL does.

rows(name, indices) -> Dataset.from_list -> GRPOTrainer(reward_funcs=reward) -> reward(...)
"""

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Final

from fulmen.agent import Answer, Score
from fulmen.chat import Message
from fulmen.envs.adapters.episodes import read_action
from fulmen.envs.environments import load_environment
from fulmen.envs.task import Environment, Task, answered
from fulmen.sampling import SamplingParams

_MAX_GRADED: Final = 16
"""Completions that are graded at once: each may have a sandbox"""


def rows(name: str, indices: Iterable[int], *, seed: int = 0) -> list[dict[str, Any]]:
    """Return questions of an environment as rows: `prompt`, its messages, and the place that
    `reward` finds the task by. Raises ValueError for tasks that are more than a question."""
    return [
        {
            "prompt": [
                {"role": one.role, "content": one.content}
                for one in question(name, seed, i).messages
            ],
            "environment": name,
            "seed": seed,
            "index": i,
        }
        for i in indices
    ]


def reward(
    completions: Sequence[Any],
    environment: Sequence[str],
    seed: Sequence[int],
    index: Sequence[int],
    **_: Any,
) -> list[float]:
    """Return the scores of completions, texts or lists of messages, of rows that `rows` made."""

    async def scores() -> list[Score]:
        places = asyncio.Semaphore(_MAX_GRADED)

        async def graded(completion: Any, name: str, seed: int, index: int) -> Score:
            async with places:
                return await score(question(name, seed, index), _text_of(completion))

        all_rows = zip(completions, environment, seed, index, strict=True)
        return await asyncio.gather(*(graded(*one) for one in all_rows))

    # A trainer may run in an event loop, so this one has a thread of its own.
    with ThreadPoolExecutor(1) as thread:
        return [one.value for one in thread.submit(lambda: asyncio.run(scores())).result()]


def _text_of(completion: Any) -> str:
    """Return the text of a completion; a message of a thought alone may have no content."""
    return completion if isinstance(completion, str) else completion[-1].get("content") or ""


def question(name: str, seed: int, index: int) -> Task:
    """Return a question of an environment. Raises ValueError for a task that is more than that."""
    task = environment_of(name, seed).task(index)
    if not task.is_question:
        raise ValueError(f"{name} has tasks with tools or users, they are played by TextEpisodes")
    return task


async def score(task: Task, text: str) -> Score:
    """Return the score of a reply to a question; a thought up to `</think>` does not count."""
    message: Message = read_action(text, has_tools=False).message()
    answer = Answer(message=message, finish_reason="stop", params=SamplingParams())
    return await task.score(answered(task.messages, answer))


@lru_cache(maxsize=64)
def environment_of(name: str, seed: int) -> Environment:
    """Return an environment, the same one each time."""
    return load_environment(name, seed=seed)
