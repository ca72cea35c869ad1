"""Watcher: somebody who sees a run of reinforcement learning as it happens."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fulmen.train.rl.rollout import RolledOut
from fulmen.train.rl.samples import Group


@dataclass(slots=True)
class Gathered:
    """Groups that were rolled out until a batch was full, and counts of the others."""

    groups: list[Group] = field(default_factory=list)
    """Groups that are trained on"""
    seen: list[Group] = field(default_factory=list)
    """All of them"""
    num_rounds: int = 0
    num_informative: int = 0
    """Groups that an update can learn from"""
    num_idle: int = 0
    """Groups left out because no token of them has an advantage"""
    num_dropped: int = 0
    """Groups left out because fewer than two of their rollouts came to anything"""
    failures: Counter[str] = field(default_factory=Counter)
    num_samples: int = 0
    """Rollouts that came to something"""
    last_error: str = ""
    """Sentence of the last rollout that failed"""
    num_tokens: int = 0
    max_tokens: int = 0
    """Most tokens that an answer could have"""

    def add(self, rolled: RolledOut, informative: list[Group], *, keeps_all: bool) -> None:
        """Take one more round."""
        kept = rolled.groups if keeps_all else informative
        self.groups += kept
        self.seen += rolled.groups
        self.num_rounds += 1
        self.num_informative += len(informative)
        self.num_idle += len(rolled.groups) - len(kept)
        self.num_dropped += rolled.num_dropped_groups
        self.failures += rolled.failures
        self.num_samples += rolled.num_samples
        self.last_error = rolled.last_error or self.last_error
        self.num_tokens += rolled.num_tokens


class RLWatcher:
    """Watcher that does nothing, to be overridden."""

    def drawing(self, ended: int, total: int, tokens_per_second: float) -> None:
        """See how far a round of answers is, often, while it is drawn."""

    def gathered(self, gathered: Gathered, wanted: int) -> None:
        """See how far a batch is filled, after each round."""

    def stepped(self, step: int, record: Mapping[str, Any], text: str) -> None:
        """See a step's numbers, and one of its samples, which is empty where there is none."""

    def probed(self, step: int, rates: Mapping[str, float]) -> None:
        """See how good the policy is at each claimed environment."""

    def said(self, sentence: str) -> None:
        """See what else there is to say."""
