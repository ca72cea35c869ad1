"""Next-token training: LMTrainer, from a run file's config to the last state.

    step: draw whole sequences, balanced by tokens -> fix the denominators -> micro-batches, each
    forward and backward -> clip, move, balance the experts -> count

    run:  step after step, metrics, probes, states, branches that decay; resumed where it stopped

Pre-training, longer contexts in stages, and a supervised warm start are the same run with other
data: what is learnt is said by each example's targets. All that a step depends on is in a state
(weights, masters, moments, cursors), so a run that is killed goes on with the same bits.
"""

import random
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch

from fulmen.catalog import resolve
from fulmen.chat import Tokenizer, load_format
from fulmen.checkpoints import load_model
from fulmen.files import write_text
from fulmen.models import DTYPES, Config, Model, Trace, config_from_dict, new_model
from fulmen.train.lm.balance import Balance
from fulmen.train.lm.config import LMConfig, branch_of
from fulmen.train.lm.examples import Coder
from fulmen.train.lm.mixture import Drawn, Mixture, TaskStream, micro_batches
from fulmen.train.lm.ngrams import NGrams
from fulmen.train.lm.probes import Prober
from fulmen.train.lm.sources import Source, TextFiles, open_source
from fulmen.train.lm.watching import StepReport, Tally, Watcher
from fulmen.train.metrics import Metrics, read_metrics
from fulmen.train.optimizer import Optimizer
from fulmen.train.run_file import differences, revision, to_toml
from fulmen.train.state import (
    check_same_shape,
    latest_state,
    load_state,
    model_folder,
    run_lock,
    save_state,
    take_free_values,
)

RUN_FILE: Final = "run.toml"
"""File of a run's folder that holds its config, nothing left out"""
_OWN_FILE: Final = re.compile(r"# fulmen \d")
"""Beginning of the file of that name that a run wrote itself"""
_BESIDE: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
"""Files of a tokenizer's folder that a model needs to be served"""


class LMTrainer:
    """A run of next-token training, at its start or where its last state stands."""

    def __init__(self, config: LMConfig) -> None:
        """Open a run, whose folder is its own until it is closed.

        Raises ValueError, before anything is written, for a folder in use, and for a model, a
        tokenizer, data or a state that does not fit.
        """
        self.config = config
        self.num_steps = self.num_tokens = self.stage = self.stage_tokens = 0
        self.branched_at = 0
        """Tokens read when the last decay branched"""
        self._renewed: list[str] = []
        """Tasks that begin anew, since their data are others"""
        with ExitStack() as stack:
            stack.enter_context(run_lock(config.out))
            self._open()
            self._lock = stack.pop_all()

    def _open(self) -> None:
        config = self.config
        changed = _changed_keys(config)
        resumed = latest_state(config.out)
        folder, self.model = _open_model(config, resumed)
        own = config.model.tokenizer or folder
        assert own is not None
        self.coder = _open_coder(own, self.model.config)
        self._beside = {
            name: (own / name).read_bytes() for name in _BESIDE if (own / name).is_file()
        }
        _check_lengths(config, self.model.config)
        self.mixture = Mixture(_open_streams(config, self.coder))
        self.optimizer = Optimizer(self.model, config.optimizer)
        self._balance = Balance(self.model, config.balance)
        _check_micro_batch(config, self._balance.group_tokens)
        if resumed is not None:
            self._resume(resumed)
        elif config.model.state is not None:
            self._begin_with(config.model.state)
            self.mixture.restart()
        self._saved = self._written = self.num_steps
        """Step of the last state, and the last step whose line is in the metrics"""
        length = max(stage.length for stage in config.stages)
        self._prober = Prober(self.mixture.streams, config.tasks, self.coder, config.probe, length)
        self.metrics = Metrics(config.out, after=self.num_steps, has_board=config.tensorboard)
        write_text(config.out / RUN_FILE, f"# {revision()}\n{to_toml(config)}")
        self.changed = changed
        """Keys that have other values than when the run was last begun"""

    @property
    def is_done(self) -> bool:
        """True after the last step."""
        stages = self.config.stages
        return self.stage == len(stages) - 1 and self.stage_tokens >= stages[-1].tokens

    def step(self) -> StepReport:
        """Take one step of the optimizer.

        Raises ValueError for data or a gradient that cannot be learnt from; nothing has moved then.
        """
        started = time.perf_counter()
        self._enter_stage()
        stage, shares = self.config.stages[self.stage], self.config.shares(self.stage)
        before = self.mixture.state()
        try:
            sequences = self.mixture.draw(stage.step_tokens, stage.length, shares)
            num_tokens = sum(one.example.num_read for one in sequences)
            tally = self._backward(sequences, num_tokens)
            factor = self.config.schedule.factor(self._place(num_tokens))
            norm = self.optimizer.step(factor)
        except (ValueError, OSError):
            self.mixture.load_state(before)
            raise
        finally:
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
            num_targets=sum(len(one.example.targets) for one in sequences),
            num_sequences=len(sequences),
            num_too_long=self.mixture.num_too_long,
            num_contaminated=self.mixture.num_contaminated,
            seconds=time.perf_counter() - started,
            step_tokens=num_tokens,
        )
        self._advance(num_tokens)
        return report

    def _backward(self, sequences: Sequence[Drawn], num_tokens: int) -> Tally:
        """Add up the gradients of a step's sequences, which have num_tokens tokens."""
        self.model.train()
        num_targets = sum(len(one.example.targets) for one in sequences)
        group_tokens = self._balance.group_tokens
        max_tokens = self.config.micro_batch_tokens
        has_jitter = self.model.config.router_jitter_noise > 0
        if has_jitter:  # drawn group by group, so that it does not depend on micro-batches
            assert group_tokens is not None
            max_tokens = group_tokens
        tally = Tally()
        for number, batch in enumerate(micro_batches(sequences, max_tokens, group_tokens)):
            trace = Trace()
            logprobs = self.model.target_logprobs(
                batch.packed,
                batch.targets,
                trace=trace,
                generator=self._jitter(number) if has_jitter else None,
            )
            loss = -logprobs.sum() / num_targets
            aux_loss = self._balance.loss(trace, batch.groups, num_tokens)
            (loss if aux_loss is None else loss + aux_loss).backward()  # type: ignore[no-untyped-call]
            tally.add(batch.tasks, batch.num_targets, logprobs.detach(), aux_loss)
        return tally

    def _jitter(self, group: int) -> torch.Generator:
        seed = random.Random(f"{self.config.seed} {self.num_steps} {group}").getrandbits(63)
        return torch.Generator().manual_seed(seed)

    def run(
        self, watcher: Watcher | None = None, *, should_stop: Callable[[], bool] = lambda: False
    ) -> bool:
        """Take steps to the end; return False if it was asked to stop before.

        should_stop  asked after every step; True saves a state and returns

        A step or a probe that fails leaves a state of the steps before it. A step whose line cannot
        be written is in no state, so that it is taken, and written, when the run goes on.
        """
        watcher = watcher or Watcher()
        if self._renewed:
            names = ", ".join(self._renewed)
            watcher.said(f"the data of {names} have changed, what changed is read from its start")
        try:
            return self._run(watcher, should_stop)
        except (ValueError, OSError):
            if self._saved < self.num_steps == self._written:
                with suppress(OSError):  # the disk may be what failed
                    self.save()
            raise

    def _run(self, watcher: Watcher, should_stop: Callable[[], bool]) -> bool:
        if self._is_probe_due and self.num_steps not in self._steps_of("probe"):
            # The run ended between its state and its probe, or within that.
            written = [one["step"] for one in read_metrics(self.config.out, "sample")]
            self._probe(watcher, num_written=written.count(self.num_steps))
        if not self._branch(watcher, should_stop):
            return False
        while not self.is_done:
            report = self.step()
            self.metrics.write("step", report.step, report.values())
            self._written = report.step
            watcher.stepped(report, self.config)
            is_stopping = should_stop()
            is_due = self._is_branch_due or report.step % self.config.save_every == 0
            if self.is_done or is_stopping or is_due:
                watcher.began("saving")
                self.save()
                watcher.began(None)
            if is_stopping and not self.is_done:
                return False
            if self._is_probe_due:
                self._probe(watcher)
            if not self._branch(watcher, should_stop):
                return False
        if self.num_steps not in self._steps_of("end"):
            self.metrics.write("end", self.num_steps, {"tokens": self.num_tokens})
        return True

    def save(self) -> Path:
        """Write a state after the last step."""
        state = save_state(
            self.config.out,
            self.num_steps,
            model=self.model,
            optimizer=self.optimizer,
            values={
                "tokens": self.num_tokens,
                "stage": self.stage,
                "stage_tokens": self.stage_tokens,
                "branched_at": self.branched_at,
                "data": self.mixture.state(),
            },
            keep=self.config.keep,
            beside=self._beside,
        )
        self._saved = self.num_steps
        return state

    @property
    def model_folder(self) -> Path:
        """Folder of the newest model that was saved, a checkpoint."""
        state = latest_state(self.config.out)
        assert state is not None, "nothing was saved yet"
        return model_folder(state)

    def close(self) -> None:
        """Close the files of the run, and let others have its folder."""
        self.metrics.close()
        self._lock.close()

    def _begin_with(self, state: Path) -> dict[str, Any]:
        """Take weights, moments and cursors of a state; return its values."""
        values: dict[str, Any] = load_state(state, model=self.model, optimizer=self.optimizer)
        try:
            self._renewed = self.mixture.load_state(values["data"])
        except (KeyError, TypeError) as error:
            raise ValueError(_no_state(state, error)) from None
        return values

    def _resume(self, state: Path) -> None:
        """Go on after a state of this run."""
        values = self._begin_with(state)
        try:
            self.num_steps, self.num_tokens = values["step"], values["tokens"]
            self.stage, self.stage_tokens = values["stage"], values["stage_tokens"]
            self.branched_at = values.get("branched_at", 0)  # older states lack it
        except KeyError as error:
            raise ValueError(_no_state(state, error)) from None
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

    @property
    def _is_probe_due(self) -> bool:
        is_due = self.is_done or self.num_steps % self.config.probe.every == 0
        return is_due and self.num_steps > 0

    def _probe(self, watcher: Watcher, *, num_written: int = 0) -> None:
        watcher.began("probing")
        started = time.perf_counter()
        result = self._prober.run(self.model)
        seconds = round(time.perf_counter() - started, 4)
        watcher.began(None)
        for sample in result.samples[num_written:]:
            self.metrics.write("sample", self.num_steps, asdict(sample))
        self.metrics.write("probe", self.num_steps, {"tasks": result.tasks, "seconds": seconds})
        watcher.probed(self.num_steps, result)

    @property
    def _is_branch_due(self) -> bool:
        every, schedule = self.config.branches.every, self.config.schedule
        if every is None or self._place() < schedule.warmup:
            return False
        return self.num_tokens // every > self.branched_at // every

    def _place(self, num_tokens: int = 0) -> int:
        """Return how far the run is in the unit of its schedule, or will be after a step of
        num_tokens."""
        if self.config.schedule.unit == "tokens":
            return self.num_tokens + num_tokens
        return self.num_steps + (num_tokens > 0)

    def _steps_of(self, kind: str) -> set[int]:
        return {record["step"] for record in read_metrics(self.config.out, kind)}

    def _branch(self, watcher: Watcher, should_stop: Callable[[], bool]) -> bool:
        """Run the decay that branches here, if one is due; return False if it was stopped."""
        state = latest_state(self.config.out)
        if state is None or not self._is_branch_due:
            return True
        config = branch_of(self.config, state, self.stage)
        watcher.said(f"a decay branches after {self.num_tokens:,} tokens")
        branch = LMTrainer(config)
        try:
            if not branch.run(watcher, should_stop=should_stop):
                return False
        finally:
            branch.close()
        probes = read_metrics(config.out, "probe")
        if probes and self.num_steps not in self._steps_of("branch"):
            tokens = self.num_tokens + branch.num_tokens
            record = {"tokens": tokens, "tasks": probes[-1]["tasks"]}
            self.metrics.write("branch", self.num_steps, record)
        self.branched_at = self.num_tokens
        return True


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
    elif wanted is not None:
        return None, new_model(wanted, dtype=dtype, seed=config.seed)
    else:
        assert start.checkpoint is not None
        folder = resolve(start.checkpoint)
    model = load_model(folder, dtype=dtype, trainable=True)
    own = model.config
    if wanted is None:
        longest = max(stage.length for stage in config.stages)
        wanted = replace(own, max_position_embeddings=max(own.max_position_embeddings, longest))
    elif any(stage.rope_theta is not None for stage in config.stages):
        wanted = replace(wanted, rope_theta=own.rope_theta)  # the stage says which one holds
    take_free_values(model, wanted)
    return folder, model


def _new_config(config: LMConfig) -> Config:
    fields = dict(config.model.config)
    if "vocab_size" not in fields:
        assert config.model.tokenizer is not None
        fields["vocab_size"] = Tokenizer.from_folder(config.model.tokenizer).vocab_size
    return config_from_dict({**fields, "torch_dtype": config.model.dtype}, "model.config")


def _no_state(state: Path, error: Exception) -> str:
    return f"{state} is no state of next-token training, it lacks {error}"


def _changed_keys(config: LMConfig) -> list[str]:
    """Return the keys that have other values in the file that the run wrote when it last began.

    Raises ValueError for a file there that is not its own.
    """
    file = config.out / RUN_FILE
    if not file.is_file():
        return []
    text = file.read_bytes().decode(errors="replace")
    if not _OWN_FILE.match(text):
        raise ValueError(
            f"{file} is where the run writes its whole config, the file there is another one: give "
            "it another name, or another folder as out"
        )
    try:
        return differences(text, to_toml(config))
    except ValueError as error:
        raise ValueError(f"{file} is not valid TOML: {error}") from None


def _open_coder(folder: Path, model: Config) -> Coder:
    """Return the coder of a model that is served with a folder's tokenizer and chat template."""
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, the model's vocab_size "
            f"is {model.vocab_size}"
        )
    return Coder(tokenizer, load_format(folder, model_type=model.model_type))


def _check_lengths(config: LMConfig, model: Config) -> None:
    for number, stage in enumerate(config.stages):
        if stage.length > model.max_position_embeddings:
            raise ValueError(
                f"stages.{number}.length is {stage.length}, the model's context is "
                f"{model.max_position_embeddings} (max_position_embeddings)"
            )


def _check_micro_batch(config: LMConfig, group_tokens: int | None) -> None:
    if group_tokens is not None and config.micro_batch_tokens < group_tokens:
        raise ValueError(
            f"micro_batch_tokens is {config.micro_batch_tokens}, it must be at least "
            f"balance.group_tokens, {group_tokens}, over which experts are balanced"
        )


def _check_blocks(config: LMConfig, name: str, source: Source, coder: Coder) -> None:
    """Raise ValueError where blocks of text are too short for a stage that reads them."""
    tokens = source.block_tokens(coder) if isinstance(source, TextFiles) else None
    for number, stage in enumerate(config.stages):
        if tokens is not None and name in config.shares(number) and tokens < stage.length:
            raise ValueError(
                f"block_bytes is {config.tasks[name].block_bytes}, about {tokens} tokens, "
                f"stages.{number}.length is {stage.length}: a longer sequence needs larger blocks"
            )


def _open_streams(config: LMConfig, coder: Coder) -> dict[str, TaskStream]:
    ngrams = NGrams.of(config.check)
    streams: dict[str, TaskStream] = {}
    for name, task in config.tasks.items():
        try:
            source = open_source(task, config.seed)
            _check_blocks(config, name, source, coder)
        except ValueError as error:
            raise ValueError(f"tasks.{name}: {error}") from None
        streams[name] = TaskStream(
            name, source, coder, seed=config.seed, held_out=config.held_out, ngrams=ngrams
        )
    return streams
