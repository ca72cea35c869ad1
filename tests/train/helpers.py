"""Samples and groups of random tokens, for every test of this room."""

import math
import random

from hypothesis import strategies as st

from fulmen.sampling import FinishReason
from fulmen.train import Group, Sample

VOCABULARY = 61


def sample(
    is_sampled: list[bool],
    *,
    reward: float = 0.0,
    seed: int = 0,
    finish_reason: FinishReason = "stop",
    environment: str = "sums",
    task_index: int = 0,
) -> Sample:
    """Return a sample with random ids, sampled where wanted."""
    draw = random.Random(seed)
    return Sample.of(
        [draw.randrange(VOCABULARY) for _ in is_sampled],
        [math.log(draw.uniform(0.01, 1.0)) if one else None for one in is_sampled],
        reward=reward,
        finish_reason=finish_reason,
        environment=environment,
        task_index=task_index,
    )


def group(
    rewards: list[float],
    *,
    task_index: int = 0,
    environment: str = "sums",
    lengths: list[int] | None = None,
    finish_reasons: list[FinishReason] | None = None,
    prompt: int = 3,
) -> Group:
    """Return a group of samples with these rewards."""
    lengths = lengths or [4] * len(rewards)
    reasons = finish_reasons or ["stop"] * len(rewards)
    return Group(
        samples=tuple(
            sample(
                [False] * prompt + [True] * length,
                reward=reward,
                seed=100 * task_index + number,
                finish_reason=reason,
                environment=environment,
                task_index=task_index,
            )
            for number, (reward, length, reason) in enumerate(
                zip(rewards, lengths, reasons, strict=True)
            )
        ),
        environment=environment,
        task_index=task_index,
    )


@st.composite
def groups(draw: st.DrawFn) -> list[Group]:
    """Draw groups of any size: given tokens among sampled ones, ends of all kinds, any rewards."""
    found = []
    for task_index in range(draw(st.integers(1, 6))):
        samples = tuple(
            sample(
                [False, *draw(st.lists(st.booleans(), max_size=12))],
                reward=draw(st.sampled_from([0.0, 0.25, 1.0])),
                seed=draw(st.integers(0, 2**20)),
                finish_reason=draw(
                    st.sampled_from(["stop", "stop", "length", "repetition", "abort"])
                ),
                task_index=task_index,
            )
            for _ in range(draw(st.integers(1, 5)))
        )
        found.append(Group(samples=samples, environment="sums", task_index=task_index))
    return found
