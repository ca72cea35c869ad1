"""The trainer: one step of reinforcement learning, from tasks to new weights.

    Trainer.step: draw tasks, roll them out, score, refill -> advantages -> minibatches
        -> one update each -> publish the weights -> diagnose -> probe -> save

All is synchronous: answers are drawn by the weights that are trained, and the
next ones by those that come of it. So in an exact run the first minibatch of every batch has an
importance ratio of exactly 1, token by token; a step where it has not ends the run. A schedule that
draws while it trains would take `_gather` apart from the rest: samples tell the version of every
token, and nothing behind `_gather` asks when they were drawn.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fulmen.models import Model
from fulmen.sampling import check_whole
from fulmen.train.metrics import Metrics, read_metrics
from fulmen.train.optimizer import Optimizer
from fulmen.train.rl.advantages import AdvantageConfig, advantages_of
from fulmen.train.rl.batch import (
    BatchConfig,
    Row,
    is_informative,
    micro_batches,
    minibatches,
)
from fulmen.train.rl.curriculum import Curriculum
from fulmen.train.rl.diagnostics import (
    ALARM_CORRELATION,
    Mismatch,
    SeenMinibatch,
    Updated,
    UpdateRecord,
    describe,
    describe_updates,
)
from fulmen.train.rl.objective import ObjectiveConfig, loss
from fulmen.train.rl.probe import Probe
from fulmen.train.rl.rollout import Rollouts, SamplingConfig, check_any, derive_seed
from fulmen.train.rl.samples import Group
from fulmen.train.rl.watcher import Gathered, RLWatcher
from fulmen.train.rl.windows import LengthWindow
from fulmen.train.schedule import ScheduleConfig
from fulmen.train.state import (
    drop_state,
    latest_state,
    list_states,
    load_state,
    save_state,
    step_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerConfig:
    """Size of a step, and when a run is saved or given up."""

    num_steps: int
    """Batches that are rolled out and trained on"""
    num_groups: int = 32
    """Groups of a batch, each of which has an advantage; see dynamic_sampling"""
    dynamic_sampling: bool = True
    """Leave out groups without an advantage, most of which have rewards that are all the same, and
    roll out others in their place; False trains on whatever came"""
    max_refills: int = 3
    """Rounds of rollouts after the first, to fill a batch"""
    max_idle_steps: int = 5
    """Steps in a row without an update after which the run ends: there is nothing to learn"""
    save_every: int = 10
    """Steps from one saved state to the next"""
    keep: int = 2
    """Newest states that stay, beside the last good one"""
    max_seconds: float | None = None
    """Time of the whole run, however often it goes on, after which the step under way is the last
    one; none: num_steps alone ends it"""
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for a number that is too small."""
        for name, least in (
            ("num_steps", 1),
            ("num_groups", 1),
            ("max_refills", 0),
            ("max_idle_steps", 1),
            ("save_every", 1),
            ("keep", 1),
        ):
            check_whole(name, getattr(self, name), least, 2**40)
        if self.max_seconds is not None and not 0 < self.max_seconds < math.inf:
            raise ValueError(f"max_seconds is {self.max_seconds}, it must be above 0 and finite")


class TrainingError(Exception):
    """A run that cannot go on: one sentence says why."""


class Trainer:
    """A run of reinforcement learning, resumed where its folder has a state."""

    def __init__(
        self,
        model: Model,
        rollouts: Rollouts,
        curriculum: Curriculum,
        config: TrainerConfig,
        *,
        folder: Path,
        optimizer: Optimizer,
        sampling: SamplingConfig,
        objective: ObjectiveConfig | None = None,
        advantages: AdvantageConfig | None = None,
        batch: BatchConfig | None = None,
        schedule: ScheduleConfig | None = None,
        window: LengthWindow | None = None,
        probe: Probe | None = None,
        watcher: RLWatcher | None = None,
        beside: Sequence[Path] = (),
    ) -> None:
        """model   plain and trainable; rollouts are given its weights
        folder  of the run: states and metrics.jsonl
        beside  files copied into each saved model, such as its tokenizer
        """
        self.model = model.eval()  # in training its router would draw noise the sampler never saw
        self.config = config
        self.num_steps = 0
        """Steps taken so far"""
        self._rollouts = rollouts
        self._curriculum = curriculum
        self._folder = folder
        self._optimizer = optimizer
        self._sampling = sampling
        self._objective = objective or ObjectiveConfig()
        self._advantages = advantages or AdvantageConfig()
        self._batch = batch or BatchConfig()
        self._schedule = schedule or ScheduleConfig(unit="steps")
        self._window = window
        self._probe = probe
        self._watcher = watcher or RLWatcher()
        self._beside = {file.name: file.read_bytes() for file in beside}
        self._num_idle = 0
        self._num_tokens = 0
        self._saved: int | None = None
        """Step of the last state"""
        self._good: int | None = None
        """Step of the last state whose probe passed"""
        self._seconds: dict[str, float] = {}
        self._resume()
        self._metrics = Metrics(folder, after=-1 if self._saved is None else self._saved)
        self._seconds_so_far = seconds_so_far(folder)
        """Time of the run up to its last step"""
        self._counted_at = time.monotonic()

    def run(self, *, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Take all steps that are left; return False where it was stopped before, and saved.

        should_stop  asked before each step

        Raises TrainingError where it makes no sense to go on.
        """
        if self._probe is not None and self._saved is None:
            self._ask_all()
        while not self._is_over:
            if should_stop():
                if self._saved != self.num_steps:
                    self._save(is_good=False)
                return False
            self.step()
        return True

    def step(self) -> dict[str, Any]:
        """Take one step and return its numbers, which are in metrics.jsonl too."""
        self._seconds = {}
        with self._timed("rollout"):
            gathered = self._gather()  # draw, roll out, score, refill
        factor = self._schedule.factor(self._place(gathered))
        updates = list[Updated]()
        with self._timed("update"):
            for rows in self._minibatches(gathered.groups):  # advantages, and what a token counts
                updates.append(self._update(rows, factor, is_first=not updates))
        with self._timed("publish"):
            if updates:
                self._rollouts.load_weights(self.model)
        self._learn(gathered, has_update=bool(updates))
        self.num_steps += 1
        self._count_time()
        record = self._record(gathered, updates, factor)  # diagnose
        self._tell(record, gathered)
        if self._has_probe():
            record["probe"] = self._ask_all()
        if self._is_due():
            self._save(is_good=False)
        self._end_if_idle(gathered)
        return record

    @property
    def _is_over(self) -> bool:
        """True after the last step."""
        most = self.config.max_seconds
        is_late = most is not None and self._seconds_so_far >= most
        return is_late or self.num_steps >= self.config.num_steps

    def _count_time(self) -> None:
        now = time.monotonic()
        self._seconds_so_far += now - self._counted_at
        self._counted_at = now

    def close(self) -> None:
        """Close the metrics; the rollouts are closed by who made them."""
        self._metrics.close()

    # ---- the parts of a step -------------------------------------------------------------------

    def _gather(self) -> Gathered:
        """Roll out tasks until the batch is full, or the rounds are used up.

        Raises RolloutError where several tasks were asked and not one answer came of any.
        """
        gathered, wanted = Gathered(max_tokens=self._max_tokens), self.config.num_groups
        while len(gathered.groups) < wanted and gathered.num_rounds <= self.config.max_refills:
            rolled = self._rollouts.roll_out(
                self._curriculum.draw(wanted - len(gathered.groups)),
                group_size=self._sampling.group_size,
                seed=derive_seed(self.config.seed, self.num_steps, gathered.num_rounds),
                max_tokens=gathered.max_tokens,
                on_progress=self._watcher.drawing,
            )
            informative = [one for one in rolled.groups if self._is_informative(one)]
            gathered.add(rolled, informative, keeps_all=not self.config.dynamic_sampling)
            self._watcher.gathered(gathered, wanted)
            if gathered.num_dropped > 1 and gathered.num_samples == 0:
                check_any(gathered.num_samples, gathered.failures, gathered.last_error)
            if not self.config.dynamic_sampling:
                break
        return gathered

    def _is_informative(self, group: Group) -> bool:
        (values,) = advantages_of([group], self._advantages, self._objective.algorithm)
        return is_informative(group, values, self._batch)

    def _minibatches(self, groups: Sequence[Group]) -> list[list[Row]]:
        """Return the rows of each update; none if too few groups say anything."""
        advantages = advantages_of(groups, self._advantages, self._objective.algorithm)
        return minibatches(groups, advantages, self._batch, self._objective.rule)

    def _update(self, rows: Sequence[Row], factor: float, *, is_first: bool) -> "Updated":
        """Make one update, the gradient of all micro-batches together.

        factor  of the learning rate
        """
        record, seen = UpdateRecord(), SeenMinibatch()
        for micro in micro_batches(rows, self._batch.max_tokens):
            scores = self.model.target_scores(micro.packed, micro.targets)
            if is_first:
                seen.add(micro, scores.logprobs.detach())
            parts = loss(scores.logprobs, micro.streams, self._objective)
            parts.loss.backward()  # type: ignore[no-untyped-call]
            record.add(parts, micro.streams, scores.entropy)
        mismatch = seen.compare() if is_first else None
        if mismatch is not None:
            self._judge(mismatch)  # before anything has moved
        norm = self._optimizer.step(factor)
        self._optimizer.zero_grad()
        return Updated(norm, record.numbers(), mismatch)

    def _judge(self, mismatch: Mismatch) -> None:
        """End an exact run that is not on-policy; say where the sampler of another is far off."""
        if self._sampling.exact:
            check_on_policy(mismatch)
        elif mismatch.is_alarming:
            self._watcher.said(
                f"step {self.num_steps + 1}: probabilities of sampler and trainer correlate by "
                f"{mismatch.correlation:.3f}, below {ALARM_CORRELATION} they are two models: does "
                "the sampler have these weights, and a head in float32?"
            )

    def _learn(self, gathered: Gathered, *, has_update: bool) -> None:
        """Let curriculum and window see the batch."""
        self._curriculum.record(gathered.seen)
        if self._window is not None and self._window.record(
            sample for group in gathered.seen for sample in group.samples
        ):
            self._watcher.said(f"answers may have {self._window.limit:,} tokens from now on")
        self._num_tokens += gathered.num_tokens
        self._num_idle = 0 if has_update else self._num_idle + 1

    def _has_probe(self) -> bool:
        if self._probe is None:
            return False
        return self._is_over or self.num_steps % self._probe.config.every == 0

    def _ask_all(self) -> dict[str, float]:
        """Probe all claimed tasks; save the weights as good if none got worse, else go back."""
        assert self._probe is not None
        self._watcher.said(f"probing after step {self.num_steps}")
        found = self._probe.run(
            self._rollouts, max_tokens=self._max_tokens, on_progress=self._watcher.drawing
        )
        values = {**found.rates, "failures": dict(found.failures)}
        self._metrics.write("probe", self.num_steps, values)
        self._watcher.probed(self.num_steps, found.rates)
        if found.failures:
            self._watcher.said(f"of the probe's answers {_counted(found.failures)} failed")
        if found.fallen is not None:
            self._go_back(found.fallen)
        if found.missing:
            self._watcher.said(
                f"step {self.num_steps} does not count as good, nothing is known of "
                f"{', '.join(found.missing)}"
            )
        else:
            self._save(is_good=True)
        return found.rates

    def _go_back(self, fallen: str) -> None:
        """Take the weights and the optimizer of the last good state; all else goes on."""
        assert self._probe is not None
        state = self._good_state()
        if state is None:
            raise TrainingError(f"{fallen}, and there is no good state to go back to")
        load_state(state, model=self.model, optimizer=self._optimizer)
        self._rollouts.load_weights(self.model)
        self._probe.num_returns += 1
        self._watcher.said(
            f"step {self.num_steps}: {fallen}, the weights of step {self._good} are back"
        )
        if self._probe.num_returns > self._probe.config.max_returns:
            raise TrainingError(
                f"the probe sent the run back {self._probe.num_returns} times: lower the learning "
                "rate, or mix in the tasks that got worse"
            )

    def _good_state(self) -> Path | None:
        return next((one for one in list_states(self._folder) if step_of(one) == self._good), None)

    # ---- numbers -------------------------------------------------------------------------------

    def _record(
        self, gathered: Gathered, updates: Sequence[Updated], factor: float
    ) -> dict[str, Any]:
        """Return the step's numbers: first those of all that was rolled out, then the updates'."""
        return {
            "policy_version": self._rollouts.policy_version,
            **describe(gathered.seen),
            **self._curriculum.numbers(),
            "groups_used": len(gathered.groups),
            "groups_idle": gathered.num_idle,
            "groups_dropped": gathered.num_dropped,
            "rounds": gathered.num_rounds,
            "failures": dict(gathered.failures),
            "max_tokens": gathered.max_tokens,
            "rate": factor,
            **describe_updates(updates),
            "tokens": gathered.num_tokens,
            "tokens_so_far": self._num_tokens,
            "seconds": {**self._seconds, "so_far": self._seconds_so_far},
        }

    def _tell(self, record: dict[str, Any], gathered: Gathered) -> None:
        self._metrics.write("step", self.num_steps, record)
        text = ""
        if gathered.seen:
            group = gathered.seen[self.num_steps % len(gathered.seen)]
            sample = max(group.samples, key=lambda one: one.reward)
            text = self._rollouts.text(sample)
            self._metrics.write("sample", self.num_steps, {"text": text, "reward": sample.reward})
        self._watcher.stepped(self.num_steps, record, text)

    def _end_if_idle(self, gathered: Gathered) -> None:
        if self._num_idle == 0:
            return
        self._watcher.said(
            f"step {self.num_steps} made no update: {gathered.num_informative} groups of "
            f"{len(gathered.seen)} have an advantage, {self._batch.min_groups} are needed"
        )
        if self._num_idle >= self.config.max_idle_steps:
            raise TrainingError(
                f"{self._num_idle} steps in a row made no update: {self._why_idle(gathered)}"
            )

    def _why_idle(self, gathered: Gathered) -> str:
        """Return why the last batch had so little to learn from."""
        if gathered.num_dropped:
            return (
                f"{gathered.num_dropped} groups of the last batch lost their rollouts, "
                f"{_counted(gathered.failures)}, the last with: {gathered.last_error}"
            )
        if any(len(set(group.rewards)) > 1 for group in gathered.seen):
            return (
                f"{gathered.num_informative} groups had an advantage in answers whose loss is not "
                f"masked, batch.min_groups is {self._batch.min_groups}"
            )
        return "these tasks are always or never passed, draw easier or harder ones"

    @property
    def _max_tokens(self) -> int:
        return self._sampling.max_tokens if self._window is None else self._window.limit

    def _place(self, gathered: Gathered) -> int:
        """Return where the step at hand ends, in the schedule's unit."""
        if self._schedule.unit == "tokens":
            return self._num_tokens + gathered.num_tokens
        return self.num_steps + 1

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - begin

    # ---- states ----------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        is_due = self._is_over or self.num_steps % self.config.save_every == 0
        return is_due and self._saved != self.num_steps

    def _save(self, *, is_good: bool) -> None:
        if is_good:
            self._good = self.num_steps
        save_state(
            self._folder,
            self.num_steps,
            model=self.model,
            optimizer=self._optimizer,
            values={
                "policy_version": self._rollouts.policy_version,
                "num_idle": self._num_idle,
                "num_tokens": self._num_tokens,
                "good": self._good,
                "curriculum": self._curriculum.state(),
                "window": None if self._window is None else self._window.state(),
                "probe": None if self._probe is None else self._probe.state(),
            },
            keep=None,
            beside=self._beside,
        )
        self._saved = self.num_steps
        for old in list_states(self._folder)[: -self.config.keep]:
            if step_of(old) != self._good:
                drop_state(old)

    def _resume(self) -> None:
        state = latest_state(self._folder)
        if state is None:
            self._rollouts.load_weights(self.model, policy_version=0)  # whatever they drew with
            return
        values: Any = load_state(state, model=self.model, optimizer=self._optimizer)
        try:
            self.num_steps = self._saved = int(values["step"])
            self._num_idle = int(values["num_idle"])
            self._num_tokens = int(values["num_tokens"])
            self._good = values["good"]
            self._curriculum.load_state(values["curriculum"])
            if self._window is not None and values["window"] is not None:
                self._window.load_state(values["window"])
            if self._probe is not None and values["probe"] is not None:
                self._probe.load_state(values["probe"])
            policy_version = int(values["policy_version"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{state} is not the state of such a run: it has no {error}") from None
        self._rollouts.load_weights(self.model, policy_version=policy_version)
        if self._good is not None and self._good_state() is None:
            self._watcher.said(f"the state after step {self._good}, the last good one, is gone")
        self._watcher.said(f"the run goes on after step {self.num_steps}")


def seconds_so_far(folder: Path) -> float:
    """Return the time of a run up to the last step that is in its metrics."""
    steps = read_metrics(folder, "step")
    return float(steps[-1]["seconds"].get("so_far", 0.0)) if steps else 0.0


def check_on_policy(mismatch: Mismatch) -> None:
    """Raise TrainingError unless trainer and sampler agree bit by bit: every ratio is exactly 1."""
    if mismatch.num_different:
        raise TrainingError(
            f"the importance ratio of {mismatch.num_different} of {mismatch.num_tokens} tokens is "
            f"not 1 in a first minibatch, probabilities differ by up to {mismatch.max_dp:.2g}: the "
            "engine does not hold the trainer's weights, or computes otherwise (set exact to false "
            "to train all the same)"
        )


def _counted(failures: Mapping[str, int]) -> str:
    """Return how often each kind came."""
    return ", ".join(f"{count} ({kind})" for kind, count in failures.items())
