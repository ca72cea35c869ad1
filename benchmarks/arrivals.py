"""Requests that come one after the other, the same for every engine."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """Prompts, when each one comes, and how much is to be said."""

    prompts: list[list[int]]
    arrivals: list[float]
    """Seconds after the first, which comes at 0"""
    num_tokens: int
    """New tokens of each request"""

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest request."""
        return max(map(len, self.prompts)) + self.num_tokens

    def alone(self, index: int) -> "Trace":
        """One of its requests, with no other beside it."""
        return Trace(prompts=[self.prompts[index]], arrivals=[0.0], num_tokens=self.num_tokens)


def make_trace(
    num_requests: int,
    *,
    round_index: int,
    vocab_size: int,
    shortest: int,
    longest: int,
    num_tokens: int,
    requests_per_second: float,
    seed: int = 0,
) -> Trace:
    """Lengths in equal ratios from shortest to longest, in a drawn order; one request alone has
    their geometric mean. Gaps between arrivals are exponential. Lengths, order and arrivals are
    those of every round, the ids are new in each, so that no engine knows a prompt from the last.
    """
    draw = random.Random(f"{seed} {num_requests}")
    lengths = prompt_lengths(num_requests, shortest, longest)
    draw.shuffle(lengths)
    arrivals = [0.0]
    for _ in range(num_requests - 1):
        arrivals.append(arrivals[-1] + draw.expovariate(requests_per_second))
    ids = random.Random(f"{seed} {num_requests} {round_index}")
    prompts = [ids.choices(range(vocab_size), k=length) for length in lengths]
    return Trace(prompts=prompts, arrivals=arrivals, num_tokens=num_tokens)


def prompt_lengths(num_requests: int, shortest: int, longest: int) -> list[int]:
    """Lengths from shortest to longest, in equal ratios."""
    if num_requests == 1:
        return [round((shortest * longest) ** 0.5)]
    ratio = (longest / shortest) ** (1 / (num_requests - 1))
    return [round(shortest * ratio**index) for index in range(num_requests)]
