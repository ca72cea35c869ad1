"""Next-token training: LMTrainer, from a run file's config to the last state.

    step: draw whole sequences, balanced by tokens -> fix the denominators -> micro-batches, each
    forward and backward -> clip, move, balance the experts -> count

    run:  step after step, metrics, probes, states, branches that decay; resumed where it stopped

Pre-training, longer contexts in stages, and a supervised warm start are the same run with other
data: what is learnt is said by each example's targets. All that a step depends on is in a state
(weights, masters, moments, cursors), so a run that is killed goes on with the same bits.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from fulmen.catalog import resolve
from fulmen.chat import Tokenizer, get_format, load_format
from fulmen.checkpoints import load_model
from fulmen.files import write_text
from fulmen.models import DTYPES, Config, Model, Trace, config_from_dict, new_model
from fulmen.train.lm.balance import Balance
from fulmen.train.lm.config import LMConfig, branch_of
from fulmen.train.lm.examples import Coder
from fulmen.train.lm.mixture import Mixture, TaskStream, micro_batches
from fulmen.train.lm.ngrams import NGrams
from fulmen.train.lm.probes import Prober, ProbeResult
from fulmen.train.lm.sources import open_source
from fulmen.train.metrics import Metrics, read_metrics
from fulmen.train.optimizer import Optimizer
from fulmen.train.run_file import differences, revision, to_toml
from fulmen.train.state import (
    check_same_shape,
    latest_state,
    load_state,
    model_folder,
    save_state,
)

logger = logging.getLogger(__name__)

RUN_FILE: Final = "run.toml"
"""File of a run's folder that holds its config, nothing left out"""
_BESIDE: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
"""Files of a tokenizer's folder that a model needs to be served"""


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
            "seconds": round(self.seconds, 4),
            "tokens_per_second": round(self.step_tokens / max(self.seconds, 1e-9), 1),
        }


class Watcher:
    """Watcher of a run: what it is told; by default it says nothing."""

    def stepped(self, report: StepReport, config: LMConfig) -> None:
        """Take note of a step."""

    def probed(self, step: int, result: ProbeResult) -> None:
        """Take note of a probe."""

    def said(self, sentence: str) -> None:
        """Take note of something else."""


class LMTrainer:
    """A run of next-token training, at its start or where its last state stands."""

    def __init__(self, config: LMConfig) -> None:
        """Raises ValueError for a model, a tokenizer, data or a state that does not fit."""
        self.config = config
        self.num_steps = self.num_tokens = self.stage = self.stage_tokens = 0
        self.num_branches = 0
        resumed = latest_state(config.out)
        folder, self.model = _open_model(config, resumed)
        self.coder = _open_coder(config, folder, self.model.config)
        self._beside = _files_beside(config.model.tokenizer or folder)
        _check_lengths(config, self.model.config)
        self.mixture = Mixture(_open_streams(config, self.coder))
        self.optimizer = Optimizer(self.model, config.optimizer)
        self._balance = Balance(self.model, config.balance)
        state = resumed or config.model.state
        if state is not None:
            self._load(state)
        self._prober: Prober | None = None
        self.metrics = Metrics(config.out, after=self.num_steps, has_board=config.tensorboard)
        self.changed = _write_run_file(config)
        """Keys that have other values than when the run was last begun"""

    @property
    def is_done(self) -> bool:
        """True after the last step."""
        stages = self.config.stages
        return self.stage == len(stages) - 1 and self.stage_tokens >= stages[-1].tokens

    def step(self) -> StepReport:
        """Take one step of the optimizer."""
        started = time.perf_counter()
        self._enter_stage()
        config, stage = self.config, self.config.stages[self.stage]
        shares = config.shares(self.stage)
        sequences = self.mixture.draw(stage.step_tokens, stage.length, shares)
        num_tokens = sum(one.example.num_read for one in sequences)
        num_targets = sum(len(one.example.targets) for one in sequences)
        tally = _Tally()
        self.model.train()
        generator = torch.Generator().manual_seed(config.seed + self.num_steps)  # router jitter
        for batch in micro_batches(
            sequences, config.micro_batch_tokens, config.balance.group_tokens
        ):
            trace = Trace()
            logprobs = self.model.target_logprobs(
                batch.packed, batch.targets, trace=trace, generator=generator
            )
            loss = -logprobs.sum() / num_targets
            aux_loss = self._balance.loss(trace, batch.groups, num_tokens)
            (loss if aux_loss is None else loss + aux_loss).backward()  # type: ignore[no-untyped-call]
            tally.add(batch.tasks, batch.num_targets, logprobs.detach(), aux_loss)
        factor = config.schedule.factor(
            self.num_tokens + num_tokens if config.schedule.unit == "tokens" else self.num_steps + 1
        )
        norm = self.optimizer.step(factor)
        self.optimizer.zero_grad()
        max_load = self._balance.finish_step()
        report = StepReport(
            step=self.num_steps + 1,
            tokens=self.num_tokens + num_tokens,
            stage=self.stage,
            loss=tally.loss,
            task_losses=tally.task_losses,
            norm=norm,
            factor=factor,
            aux_loss=tally.aux_loss,
            max_load=max_load,
            num_targets=num_targets,
            num_sequences=len(sequences),
            seconds=time.perf_counter() - started,
            step_tokens=num_tokens,
        )
        self._advance(num_tokens)
        return report

    def run(
        self, watcher: Watcher | None = None, *, should_stop: Callable[[], bool] = lambda: False
    ) -> bool:
        """Take steps to the end; return False if it was asked to stop before.

        should_stop  asked after every step; True saves a state and returns
        """
        watcher = watcher or Watcher()
        if not self._branch(watcher, should_stop):
            return False
        while not self.is_done:
            report = self.step()
            watcher.stepped(report, self.config)
            self.metrics.write("step", report.step, report.values())
            if self.is_done or report.step % self.config.probe.every == 0:
                self._probe(watcher)
            is_stopping = should_stop()
            is_due = self._is_branch_due or report.step % self.config.save_every == 0
            if self.is_done or is_stopping or is_due:
                self.save()
            if is_stopping and not self.is_done:
                return False
            if not self._branch(watcher, should_stop):
                return False
        if not read_metrics(self.config.out, "end"):
            self.metrics.write("end", self.num_steps, {"tokens": self.num_tokens})
        return True

    def save(self) -> Path:
        """Write a state after the last step."""
        return save_state(
            self.config.out,
            self.num_steps,
            model=self.model,
            optimizer=self.optimizer,
            values={
                "tokens": self.num_tokens,
                "stage": self.stage,
                "stage_tokens": self.stage_tokens,
                "branches": self.num_branches,
                "data": self.mixture.state(),
            },
            keep=self.config.keep,
            beside=self._beside,
        )

    @property
    def model_folder(self) -> Path:
        """Folder of the newest model that was saved, a checkpoint."""
        state = latest_state(self.config.out)
        assert state is not None, "nothing was saved yet"
        return model_folder(state)

    def close(self) -> None:
        """Close the files of the run."""
        self.metrics.close()

    def _load(self, state: Path) -> None:
        values: dict[str, Any] = load_state(state, model=self.model, optimizer=self.optimizer)
        try:
            self.num_steps, self.num_tokens = values["step"], values["tokens"]
            self.stage, self.stage_tokens = values["stage"], values["stage_tokens"]
            self.num_branches = values["branches"]
            self.mixture.load_state(values["data"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{state} is no state of next-token training, it lacks {error}"
            ) from None
        if self.stage >= len(self.config.stages):
            raise ValueError(
                f"{state} is of stage {self.stage}, the run has {len(self.config.stages)} stages "
                "now, counted from 0"
            )
        self._advance_stage()  # further, if stages were added to a run that had ended

    def _advance(self, num_tokens: int) -> None:
        self.num_steps += 1
        self.num_tokens += num_tokens
        self.stage_tokens += num_tokens
        self._advance_stage()

    def _advance_stage(self) -> None:
        stages = self.config.stages
        while self.stage < len(stages) - 1 and self.stage_tokens >= stages[self.stage].tokens:
            self.stage += 1
            self.stage_tokens = 0
            self.mixture.restart()

    def _enter_stage(self) -> None:
        """Give the model the base of rotation that holds in the current stage."""
        begun = self.config.stages[: self.stage + 1]
        thetas = [stage.rope_theta for stage in begun if stage.rope_theta is not None]
        if thetas and thetas[-1] != self.model.config.rope_theta:
            self.model.config = replace(self.model.config, rope_theta=thetas[-1])

    def _probe(self, watcher: Watcher) -> None:
        if self._prober is None:
            length = max(stage.length for stage in self.config.stages)
            self._prober = Prober(
                self.mixture.streams, self.config.tasks, self.coder, self.config.probe, length
            )
        result = self._prober.run(self.model)
        self.metrics.write("probe", self.num_steps, {"tasks": result.tasks})
        for sample in result.samples:
            self.metrics.write(
                "sample",
                self.num_steps,
                {
                    "task": sample.task,
                    "prompt": sample.prompt,
                    "said": sample.said,
                    "answer": sample.answer,
                    "is_right": sample.is_right,
                },
            )
        watcher.probed(self.num_steps, result)

    @property
    def _is_branch_due(self) -> bool:
        every = self.config.branches.every
        return every is not None and self.num_tokens // every > self.num_branches

    def _branch(self, watcher: Watcher, should_stop: Callable[[], bool]) -> bool:
        """Run the decay that branches here, if one is due; return False if it was stopped."""
        state = latest_state(self.config.out)
        every = self.config.branches.every
        if every is None or state is None or not self._is_branch_due:
            return True
        config = branch_of(
            self.config,
            state,
            stage=self.stage,
            left=self.stage_tokens,
            place=self.num_tokens if self.config.schedule.unit == "tokens" else self.num_steps,
        )
        watcher.said(f"a decay branches after {self.num_tokens:,} tokens")
        branch = LMTrainer(config)
        try:
            if not branch.run(watcher, should_stop=should_stop):
                return False
        finally:
            branch.close()
        probes = read_metrics(config.out, "probe")
        known = {record["step"] for record in read_metrics(self.config.out, "branch")}
        if probes and self.num_steps not in known:
            tokens = {"tokens": branch.num_tokens, "tasks": probes[-1]["tasks"]}
            self.metrics.write("branch", self.num_steps, tokens)
        self.num_branches = self.num_tokens // every
        return True


class _Tally:
    """Sums of a step's losses."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self.aux_loss = 0.0

    def add(
        self,
        tasks: tuple[str, ...],
        counts: tuple[int, ...],
        logprobs: torch.Tensor,
        aux_loss: torch.Tensor | None,
    ) -> None:
        parts = torch.split(logprobs, list(counts))
        for task, count, part in zip(tasks, counts, parts, strict=True):
            self._sums[task] = self._sums.get(task, 0.0) - float(part.double().sum())
            self._counts[task] = self._counts.get(task, 0) + count
        if aux_loss is not None:
            self.aux_loss += float(aux_loss.detach())

    @property
    def loss(self) -> float:
        return sum(self._sums.values()) / sum(self._counts.values())

    @property
    def task_losses(self) -> dict[str, float]:
        return {task: total / self._counts[task] for task, total in self._sums.items()}


def _open_model(config: LMConfig, resumed: Path | None) -> tuple[Path | None, Model]:
    """Return the folder that the model comes from, None for a new one, and the model."""
    start = config.model
    dtype = DTYPES[start.dtype]
    wanted = _new_config(config) if start.config else None
    state = resumed or start.state
    if state is not None:
        folder = model_folder(state)
        if not folder.is_dir():
            raise ValueError(f"{state} is no state of a run, it has no folder {folder.name}")
        if wanted is not None:
            check_same_shape(folder, wanted)
        return folder, load_model(folder, dtype=dtype, trainable=True)
    if wanted is not None:
        return None, new_model(wanted, dtype=dtype, seed=config.seed)
    assert start.checkpoint is not None
    folder = resolve(start.checkpoint)
    return folder, load_model(folder, dtype=dtype, trainable=True)


def _new_config(config: LMConfig) -> Config:
    fields = dict(config.model.config)
    if "vocab_size" not in fields:
        assert config.model.tokenizer is not None
        fields["vocab_size"] = Tokenizer.from_folder(config.model.tokenizer).vocab_size
    return config_from_dict({**fields, "torch_dtype": config.model.dtype}, "model.config")


def _write_run_file(config: LMConfig) -> list[str]:
    """Write the config beside the run; return the keys that differ from the one that was there."""
    file, text = config.out / RUN_FILE, to_toml(config)
    changed = differences(file.read_text("utf-8"), text) if file.is_file() else []
    write_text(file, f"# {revision()}\n{text}")
    return changed


def _open_coder(config: LMConfig, folder: Path | None, model: Config) -> Coder:
    own = config.model.tokenizer or folder
    assert own is not None
    tokenizer = Tokenizer.from_folder(own)
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"the tokenizer in {own} has {tokenizer.vocab_size} tokens, the model's vocab_size is "
            f"{model.vocab_size}"
        )
    return Coder(tokenizer, get_format(model.model_type) if folder is None else load_format(folder))


def _files_beside(folder: Path | None) -> list[Path]:
    return [folder / name for name in _BESIDE if (folder / name).is_file()] if folder else []


def _check_lengths(config: LMConfig, model: Config) -> None:
    for number, stage in enumerate(config.stages):
        if stage.length > model.max_position_embeddings:
            raise ValueError(
                f"stages.{number}.length is {stage.length}, the model's context is "
                f"{model.max_position_embeddings} (max_position_embeddings)"
            )


def _open_streams(config: LMConfig, coder: Coder) -> dict[str, TaskStream]:
    ngrams = NGrams.of(config.check)
    streams: dict[str, TaskStream] = {}
    for name, task in config.tasks.items():
        try:
            source = open_source(task, config.seed)
        except ValueError as error:
            raise ValueError(f"tasks.{name}: {error}") from None
        streams[name] = TaskStream(
            name, source, coder, seed=config.seed, held_out=config.held_out, ngrams=ngrams
        )
    return streams
