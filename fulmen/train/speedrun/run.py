"""A speedrun: a small model made anew from its recipe, in so many hours, from nothing.

    tokenizer -> plan -> learn -> practice -> int8 weights -> scores -> record

Each part leaves its result in the run's folder and is skipped where that is there, so the same call
goes on wherever a run was stopped or killed:

    tokenizer/      plan.json      learn/ (next-token training)      practice/ (CISPO)
    practice.json   which model went on, and by what its probe changed
    model/          int8 weights; record.json, which comes last, beside them
    scores/         every pass of the tasks that were scored
"""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Final

from fulmen.catalog import Record, StageRecord
from fulmen.chat import Tokenizer, load_format
from fulmen.files import read_json, write_text
from fulmen.quantize import QuantizeConfig, parse_packed, quantize_checkpoint
from fulmen.train.lm.config import LMConfig
from fulmen.train.lm.examples import Coder
from fulmen.train.lm.sources import open_source
from fulmen.train.lm.trainer import LMTrainer
from fulmen.train.lm.watching import Watcher
from fulmen.train.metrics import read_metrics
from fulmen.train.rl.rollout import RolloutError
from fulmen.train.rl.run import RLRun, open_run
from fulmen.train.rl.trainer import TrainingError
from fulmen.train.rl.watcher import RLWatcher
from fulmen.train.speedrun.plan import (
    SpeedrunPlan,
    check_hours,
    make_plan,
    measure_speed,
)
from fulmen.train.speedrun.recipe import Recipe
from fulmen.train.speedrun.scores import ScoresStopped, play_scores
from fulmen.train.state import (
    checkpoint_of,
    latest_state,
    list_states,
    model_folder,
    read_values,
    run_lock,
    step_of,
)

logger = logging.getLogger(__name__)

MEASURE_SECONDS: Final = 30.0
_PRACTICE: Final = "practice.json"
_GROUP_SIZE: Final = 32
"""Weights that share a scale: of small models every rounding counts"""
_HEAD_BITS: Final = 16
"""With a head of 8 bits 7 of 300 answers of mini-m2 were not its original's, with this one 4"""
_CALIBRATION_TOKENS: Final = 16_384
"""Tokens of demonstrations for which the weights are rounded"""
_ROUNDING_SECONDS: Final = 10.0
"""Time in which the weights are rounded, about"""


class SpeedrunWatcher:
    """Watcher of a speedrun: what it is told; by default it logs that."""

    def began(self, stage: str, work: str, seconds_left: float | None) -> None:
        """Take note of a part that begins, and of the time until all is done, if it is known."""
        logger.info("%s: %s", stage, work)

    def said(self, sentence: str) -> None:
        """Take note of something else."""
        logger.info("%s", sentence)

    def learning(
        self, config: LMConfig, tokens: int, later_seconds: float
    ) -> AbstractContextManager[Watcher]:
        """Return the watcher of the learning, which has read these tokens before.

        later_seconds  time of all that comes after it
        """
        return nullcontext(Watcher())

    def practising(self, run: RLRun, later_seconds: float) -> AbstractContextManager[RLWatcher]:
        """Return the watcher of the practice."""
        return nullcontext(RLWatcher())

    def scoring(self) -> AbstractContextManager[Callable[[int, int], None]]:
        """Return what is told how many tasks have been asked, of how many."""
        return nullcontext(lambda done, total: None)


class _Stopped(Exception):
    """Somebody asked to stop; all of it is saved."""


class Speedrun:
    """A run in its folder, at its start or where it stopped."""

    def __init__(
        self, recipe: Recipe, out: Path, hours: float, *, measure_seconds: float = MEASURE_SECONDS
    ) -> None:
        """measure_seconds: time in which the speed of steps is measured

        Raises ValueError for hours that cannot be, and for a folder of other hours or of another
        recipe.
        """
        check_hours(hours)
        self.recipe = recipe
        self.out = out
        self.hours = hours
        self.stage = "tokenizer"
        """Part that runs, or ran last"""
        self._measure_seconds = measure_seconds
        self._plan = SpeedrunPlan.read(out)
        if self._plan is not None:
            _check_same(self._plan, recipe.name, hours, out)

    @property
    def has_plan(self) -> bool:
        """True for a run that has its plan."""
        return self._plan is not None

    @property
    def model_folder(self) -> Path:
        """Folder of the finished model: int8 weights, tokenizer, record."""
        return self.out / "model"

    def run(
        self,
        watcher: SpeedrunWatcher | None = None,
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Record | None:
        """Do all that is left; return the record, or None if it was asked to stop before.

        should_stop  asked after every step; all until then is saved when it says so
        """
        watcher = watcher or SpeedrunWatcher()
        with run_lock(self.out):
            try:
                return self._run(watcher, should_stop)
            except _Stopped:
                return None

    def _run(self, watcher: SpeedrunWatcher, should_stop: Callable[[], bool]) -> Record:
        record = Record.read(self.model_folder)
        if record is not None:
            watcher.said(f"{self.model_folder} is finished, nothing is left to do")
            return record
        plan = self.plan(watcher, should_stop)
        self._learn(plan, watcher, should_stop)
        practised = self._practise(plan, watcher, should_stop)
        self._quantize(practised, plan, watcher, should_stop)
        return self._score(practised, plan, watcher, should_stop)

    def plan(
        self,
        watcher: SpeedrunWatcher | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> SpeedrunPlan:
        """Return the plan of the folder; without one make the tokenizer, measure, and keep it."""
        watcher = watcher or SpeedrunWatcher()
        if self._plan is None:
            folder = self.out / "tokenizer"
            if not (folder / "tokenizer.json").exists():
                self._begin("tokenizer", "words of demonstrations", watcher, None)
                self.recipe.tokenizer.make(folder)
            self._check_stop(should_stop)
            work = f"speed of real steps, {self._measure_seconds:.0f} s; that model is thrown away"
            self._begin("plan", work, watcher, None)
            speed = measure_speed(
                self._at_home(self.recipe.learn), self._measure_seconds, should_stop
            )
            if speed is None:
                raise _Stopped
            plan = make_plan(self.recipe, self.hours, speed)
            plan.write(self.out)
            self._plan = plan
        return self._plan

    # ---- the parts -----------------------------------------------------------------------------

    def _learn(
        self, plan: SpeedrunPlan, watcher: SpeedrunWatcher, should_stop: Callable[[], bool]
    ) -> None:
        config = self._at_home(plan.learn_config(self.recipe))
        if read_metrics(config.out, "end"):
            return
        later = plan.practice_seconds + plan.scores_seconds + _ROUNDING_SECONDS
        trainer = LMTrainer(config)
        try:
            done = trainer.num_tokens / config.num_tokens
            work = f"{config.num_tokens:,} tokens"
            if trainer.num_steps:
                work += f", going on after step {trainer.num_steps}"
            self._begin("learn", work, watcher, (1 - done) * plan.learn_seconds + later)
            with watcher.learning(config, trainer.num_tokens, later) as own:
                if not trainer.run(own, should_stop=should_stop):
                    raise _Stopped
        finally:
            trainer.close()

    def _practise(
        self, plan: SpeedrunPlan, watcher: SpeedrunWatcher, should_stop: Callable[[], bool]
    ) -> Mapping[str, Any]:
        """Return what the practice came to: the state whose model goes on, None for the learnt one,
        and the mean of the probes before and there."""
        file = self.out / _PRACTICE
        if file.exists():
            return read_json(file)
        run = self._practice_run(plan)
        later = plan.scores_seconds + _ROUNDING_SECONDS
        left = max(plan.practice_seconds - _practice_seconds(run.folder), 0.0)
        work = "reinforcement learning"
        if (state := latest_state(run.folder)) is not None:
            work += f", going on after step {step_of(state)}"
        self._begin("practice", work, watcher, left + later)
        try:
            with (
                watcher.practising(run, later) as own,
                open_run(run, watcher=own) as trainer,
            ):
                if not trainer.run(should_stop=should_stop):
                    raise _Stopped
        except TrainingError as error:  # what was good before is kept
            watcher.said(f"practice ends here: {error}")
        except RolloutError as error:
            raise ValueError(str(error)) from None
        found = judged(run.folder)
        write_text(file, json.dumps(found, indent=1) + "\n")
        if not found["is_kept"]:
            watcher.said("practice made the model no better, so the learnt model goes on")
        return found

    def _quantize(
        self,
        practised: Mapping[str, Any],
        plan: SpeedrunPlan,
        watcher: SpeedrunWatcher,
        should_stop: Callable[[], bool],
    ) -> None:
        self._check_stop(should_stop)
        if (self.model_folder / "config.json").exists():  # comes last
            return
        self._begin("int8", "weights of 8 bits", watcher, plan.scores_seconds)
        source = checkpoint_of(self.out / "learn")
        if practised["is_kept"]:
            folder = self.out / "practice"
            (state,) = [one for one in list_states(folder) if step_of(one) == practised["step"]]
            source = model_folder(state)
        quantize_checkpoint(
            source,
            self.model_folder,
            QuantizeConfig(
                packed=parse_packed(bits="8", group_size=_GROUP_SIZE, head_bits=_HEAD_BITS)
            ),
            calibration_ids=sample_ids(self._at_home(self.recipe.learn), _CALIBRATION_TOKENS),
        )

    def _score(
        self,
        practised: Mapping[str, Any],
        plan: SpeedrunPlan,
        watcher: SpeedrunWatcher,
        should_stop: Callable[[], bool],
    ) -> Record:
        self._check_stop(should_stop)
        recipe = self.recipe.scores
        work = f"{len(recipe.environments)} environments, {recipe.tasks} tasks each"
        self._begin("scores", work, watcher, plan.scores_seconds)
        try:
            with watcher.scoring() as on_progress:
                scores = play_scores(
                    *(self.model_folder, recipe, self.out / "scores"),
                    on_progress=on_progress,
                    should_stop=should_stop,
                )
        except ScoresStopped:
            raise _Stopped from None
        record = Record(
            machine=plan.machine,
            stages=(self._learnt(), self._practised(practised)),
            scores=scores,
            seed=recipe.seed,
        )
        record.write(self.model_folder)
        return record

    # ---- numbers -------------------------------------------------------------------------------

    def _learnt(self) -> StageRecord:
        lines = read_metrics(self.out / "learn")
        return StageRecord(
            name="learn",
            tokens=next(one["tokens"] for one in reversed(lines) if one["kind"] == "step"),
            seconds=round(sum(one.get("seconds", 0.0) for one in lines), 1),
        )

    def _practised(self, practised: Mapping[str, Any]) -> StageRecord:
        folder = self.out / "practice"
        steps = read_metrics(folder, "step")
        return StageRecord(
            name="practice",
            tokens=steps[-1]["tokens_so_far"] if steps else 0,
            seconds=round(_practice_seconds(folder), 1),
            is_kept=practised["is_kept"],
        )

    def _at_home(self, config: LMConfig) -> LMConfig:
        """Return the run of learning in this run's folder, with its tokenizer."""
        model = replace(config.model, tokenizer=self.out / "tokenizer")
        return replace(config, out=self.out / "learn", model=model)

    def _practice_run(self, plan: SpeedrunPlan) -> RLRun:
        run = self.recipe.practice
        return replace(
            run,
            folder=self.out / "practice",
            model=self.out / "learn",
            trainer=replace(run.trainer, max_seconds=plan.practice_seconds),
        )

    def _begin(
        self, stage: str, work: str, watcher: SpeedrunWatcher, seconds_left: float | None
    ) -> None:
        self.stage = stage
        watcher.began(stage, work, seconds_left)

    def _check_stop(self, should_stop: Callable[[], bool]) -> None:
        if should_stop():
            raise _Stopped


def sample_ids(config: LMConfig, num_tokens: int) -> list[int]:
    """Return so many tokens of what a run learns from environments, or all there are: one document
    of each task in turn."""
    assert config.model.tokenizer is not None
    folder = config.model.tokenizer
    model_type = str(config.model.config["model_type"])
    coder = Coder(Tokenizer.from_folder(folder), load_format(folder, model_type=model_type))
    tasks = [task for task in config.tasks.values() if task.environment is not None]
    sources = [open_source(task, config.seed) for task in tasks]
    ids: list[int] = []
    for index in count():
        left = [one for one in sources if one.num_documents is None or index < one.num_documents]
        if not left or len(ids) >= num_tokens:
            break
        for source in left:
            ids += [one for each in source.document(index).encode(coder) for one in each.ids]
    return ids[:num_tokens]


def judged(folder: Path) -> dict[str, Any]:
    """Return what a practice came to, from its probes: the last good step, the mean of all
    environments before and there, and whether that is better."""
    state = latest_state(folder)
    probes = {one["step"]: one for one in read_metrics(folder, "probe")}
    good = None if state is None else read_values(state)["good"]
    if good is None and state is not None and not probes:
        good = step_of(state)  # nothing was asked: the last one
        return {"step": good, "before": None, "after": None, "is_kept": True}
    if good not in probes or min(probes) == good:
        return {"step": None, "before": None, "after": None, "is_kept": False}
    before, after = (_mean_rate(probes[step]) for step in (min(probes), good))
    return {"step": good, "before": before, "after": after, "is_kept": after > before}


def _mean_rate(probe: Mapping[str, Any]) -> float:
    rates = [rate for name, rate in probe.items() if name.endswith("(held out)")]
    return float(sum(rates) / len(rates))


def _practice_seconds(folder: Path) -> float:
    steps = read_metrics(folder, "step")
    return float(steps[-1]["seconds"]["so_far"]) if steps else 0.0


def _check_same(plan: SpeedrunPlan, name: str, hours: float, out: Path) -> None:
    """Raise ValueError where a folder was begun with something else."""
    for before, now in (
        (f"the recipe {plan.name}", f"the recipe {name}"),
        (f"{plan.hours:g} hours", f"{hours:g} hours"),
    ):
        if before != now:
            raise ValueError(
                f"{out} was begun with {before}, not with {now}: go on with {before}, or give "
                "another folder"
            )
