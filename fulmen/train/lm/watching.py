"""Reports of a run: the numbers of each step, and who is told of them."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from fulmen.train.lm.config import LMConfig
from fulmen.train.lm.probes import ProbeResult

logger = logging.getLogger(__name__)

_LINE_SECONDS: Final = 10.0
"""Seconds between steps that are logged"""


@dataclass(frozen=True, slots=True)
class StepReport:
    """Numbers of one step."""

    step: int
    tokens: int
    """Tokens read so far"""
    stage: int
    loss: float
    """Mean over the step's targets, in nats"""
    task_losses: Mapping[str, float]
    norm: float
    """Norm of the gradients before they were clipped"""
    factor: float
    """Factor of the schedule"""
    aux_loss: float
    max_load: float
    """Largest load of an expert over the mean load, in any layer"""
    num_targets: int
    num_sequences: int
    num_too_long: int
    """Documents left out so far because of their length"""
    num_contaminated: int
    """Documents left out so far because an evaluation set has them"""
    seconds: float
    step_tokens: int

    def values(self) -> dict[str, object]:
        """Return the numbers for metrics.jsonl."""
        return {
            "tokens": self.tokens,
            "stage": self.stage,
            "loss": self.loss,
            "tasks": dict(self.task_losses),
            "norm": self.norm,
            "factor": self.factor,
            "aux_loss": self.aux_loss,
            "max_load": self.max_load,
            "targets": self.num_targets,
            "sequences": self.num_sequences,
            "too_long": self.num_too_long,
            "contaminated": self.num_contaminated,
            "seconds": round(self.seconds, 4),
            "tokens_per_second": round(self.step_tokens / max(self.seconds, 1e-9), 1),
        }


class Watcher:
    """Watcher of a run: what it is told; by default it logs that, steps every ten seconds."""

    _logged_at = -_LINE_SECONDS

    def stepped(self, report: StepReport, config: LMConfig) -> None:
        """Take note of a step of the run with this config, which may be a branch."""
        now = time.monotonic()
        if now - self._logged_at >= _LINE_SECONDS:
            self._logged_at = now
            share = report.tokens / config.num_tokens
            logger.info("step %d, %.0f %%: loss %.4f", report.step, 100 * share, report.loss)

    def probed(self, step: int, result: ProbeResult) -> None:
        """Take note of a probe."""
        for task, scores in result.tasks.items():
            shown = ", ".join(f"{name} {score:.4g}" for name, score in scores.items())
            logger.info("probe after step %d, %s: %s", step, task, shown)

    def said(self, sentence: str) -> None:
        """Take note of something else."""
        logger.info("%s", sentence)

    def began(self, work: str | None) -> None:
        """Take note that something else than a step begins, such as saving; None ends it."""


class Tally:
    """Sums of a step's losses."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self.aux_loss = 0.0

    def add(
        self,
        tasks: tuple[str, ...],
        counts: tuple[int, ...],
        logprobs: Tensor,
        aux_loss: Tensor | None,
    ) -> None:
        """Add a micro-batch.

        tasks     task of each sequence
        counts    targets of each sequence, which add up to L
        logprobs  (L,) of the targets
        aux_loss  () or None
        """
        parts = torch.split(logprobs, list(counts))
        for task, count, part in zip(tasks, counts, parts, strict=True):
            self._sums[task] = self._sums.get(task, 0.0) - float(part.double().sum())
            self._counts[task] = self._counts.get(task, 0) + count
        if aux_loss is not None:
            self.aux_loss += float(aux_loss.detach())

    @property
    def loss(self) -> float:
        """Mean over all targets, in nats."""
        return sum(self._sums.values()) / sum(self._counts.values())

    @property
    def task_losses(self) -> dict[str, float]:
        """Mean over the targets of each task, in nats."""
        return {task: total / self._counts[task] for task, total in self._sums.items()}
