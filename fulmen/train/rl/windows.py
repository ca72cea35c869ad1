"""Length windows: how long answers may be, in stages, each longer than the one before.

The MiniMax-M1 report (arXiv:2506.13585, section 5) went from 40K tokens to 48K, 56K, 64K, 72K and
80K, and took two signals for each step: the perplexity of the sampled sequences has settled, and
their 99th percentile of lengths comes near the limit. How settled and how near is our choice.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fulmen.train.rl.samples import Sample

REPORT_LENGTHS: Final = (40_000, 48_000, 56_000, 64_000, 72_000, 80_000)
"""Limits of the report's stages, in tokens"""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowConfig:
    """Stages of the length limit, and when one is left for the next."""

    lengths: tuple[int, ...] = REPORT_LENGTHS
    """Most tokens of an answer in each stage, ascending; one is no staging"""
    num_batches: int = 20
    """Batches of a stage that are looked at, the last ones; the least that a stage has"""
    settled: float = 0.02
    """Perplexity has settled if its mean over the later half of those batches differs from that
    over the earlier half by at most this share"""
    near: float = 0.9
    """Lengths are near the limit if their 99th percentile, over the same batches on average, is at
    least this share of it"""

    def __post_init__(self) -> None:
        """Raise ValueError for lengths that do not ascend and shares that are none."""
        if not self.lengths or self.lengths[0] < 1 or list(self.lengths) != sorted({*self.lengths}):
            raise ValueError(
                f"lengths are {', '.join(map(str, self.lengths)) or 'none'}, they must ascend "
                "from at least 1"
            )
        if self.num_batches < 2:
            raise ValueError(
                f"num_batches is {self.num_batches}, it must be at least 2, to compare halves"
            )
        if not 0 < self.settled < math.inf:
            raise ValueError(f"settled is {self.settled:g}, it must be above 0")
        if not 0 < self.near <= 1:
            raise ValueError(f"near is {self.near:g}, it must be above 0 and at most 1")


class LengthWindow:
    """The stage that a run is in, and the batches that decide when it ends."""

    def __init__(self, config: WindowConfig) -> None:
        """Begin with the first length."""
        self.config = config
        self._stage = 0
        self._recent: deque[tuple[float, float]] = deque(maxlen=config.num_batches)
        """Perplexity and 99th percentile of lengths of the last batches of this stage"""

    @property
    def limit(self) -> int:
        """Most tokens that an answer may have now."""
        return self.config.lengths[self._stage]

    @property
    def has_settled(self) -> bool:
        """True once perplexity stands still."""
        if len(self._recent) < self.config.num_batches:
            return False
        values = [perplexity for perplexity, _ in self._recent]
        half = len(values) // 2
        earlier, later = _mean(values[:half]), _mean(values[half:])
        return abs(later - earlier) <= self.config.settled * earlier

    @property
    def is_near(self) -> bool:
        """True once the longest answers come near the limit."""
        if len(self._recent) < self.config.num_batches:
            return False
        return _mean([length for _, length in self._recent]) >= self.config.near * self.limit

    def record(self, samples: Iterable[Sample]) -> bool:
        """Learn from the samples of a batch; return True if a longer stage begins with the next."""
        measured = measure_lengths(samples)
        if measured is None:
            return False
        self._recent.append(measured)
        if not (self.has_settled and self.is_near) or self._stage + 1 == len(self.config.lengths):
            return False
        self._stage += 1
        self._recent.clear()
        return True

    def state(self) -> dict[str, Any]:
        """Return everything that later stages depend on, but for the config, as JSON."""
        return {"limit": self.limit, "recent": [list(one) for one in self._recent]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; ValueError, with nothing changed, if its limit is no stage's."""
        try:
            stage = self.config.lengths.index(state["limit"])
            recent = [(float(perplexity), float(length)) for perplexity, length in state["recent"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the state is not that of these length windows: {error}") from error
        self._stage = stage
        self._recent = deque(recent, maxlen=self.config.num_batches)


def measure_lengths(samples: Iterable[Sample]) -> tuple[float, float] | None:
    """Return the perplexity of sampled tokens, and the 99th percentile of their number in a sample;
    None if nothing was sampled.

    Perplexity is a sample's own, exp(- mean logprob), averaged over samples.
    """
    counts, perplexities = [], []
    for one in samples:
        if one.num_sampled and not one.has_failed:
            counts.append(one.num_sampled)
            mean = one.logprobs[one.is_sampled].double().mean().item()
            perplexities.append(math.exp(min(-mean, 700.0)))
    return (_mean(perplexities), percentile(counts, 0.99)) if counts else None


def percentile(values: Sequence[float], share: float) -> float:
    """Return the least value that at least a share of all values do not exceed."""
    ordered = sorted(values)
    return float(ordered[max(math.ceil(share * len(ordered)) - 1, 0)])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
