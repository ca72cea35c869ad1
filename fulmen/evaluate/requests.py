"""Runs of a study as whole requests to a model: each thinks a thought of its own.

    task, budget, number -> ChatRequest with a thinking budget and a seed -> Completion -> Run

A model at a URL can be asked no other way: its thoughts cannot be cut at a token and gone on with.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from fulmen.chat import ChatModel, ChatRequest, Completion, Usage, complete
from fulmen.envs import Task
from fulmen.sampling import SamplingParams

REQUEST_FIELDS: Final = ("thinking_budget", "max_tokens", "seed", "logprobs")
"""Sampling fields that a study sets in its requests, beside those it is given"""
_CLOSING_TOKENS: Final = 16
"""Room for the closing tags of a thought, which count in no budget"""


async def draw(
    model: ChatModel,
    task: Task,
    params: SamplingParams,
    *,
    budget: int,
    answer_tokens: int,
    seed: int,
) -> Completion:
    """Return one answer to a task."""
    limits: dict[str, Any] = {
        "thinking_budget": budget,
        "max_tokens": budget + answer_tokens + _CLOSING_TOKENS,
        "seed": seed % 2**31,  # servers differ in the largest they take
        "logprobs": 0,
    }
    request = ChatRequest(messages=task.messages, params=replace(params, **limits))
    return await complete(model, request)


async def draw_all(
    model: ChatModel, asked: Sequence[Mapping[str, Any]], *, max_running: int
) -> list[Completion]:
    """Return the answers to requests, each the arguments of `draw`, so many of them at once. The
    first failure ends all."""
    places = asyncio.Semaphore(max_running)

    async def one(arguments: Mapping[str, Any]) -> Completion:
        async with places:
            return await draw(model, **arguments)

    tasks = [asyncio.create_task(one(arguments)) for arguments in asked]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def mean_logprob(completion: Completion) -> float | None:
    """Return the mean log-probability of an answer's tokens; None where they are not told."""
    tokens = completion.tokens or getattr(completion, "token_texts", ())
    values = [token.logprob for token in tokens]
    if not values or not all(map(math.isfinite, values)):
        return None
    return math.fsum(values) / len(values)


def counts(usages: Sequence[Usage]) -> dict[str, int]:
    """Return the tokens that answers took, by their names in `EngineStats`."""
    return {
        "num_prompt_tokens": sum(usage.num_prompt_tokens for usage in usages),
        "num_hit_tokens": sum(usage.num_cached_tokens for usage in usages),
        "num_new_tokens": sum(usage.num_new_tokens for usage in usages),
    }
