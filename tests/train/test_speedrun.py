"""A speedrun: its plan, its parts one after the other, and how it goes on where it was stopped."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.catalog import Record, StageRecord
from fulmen.train import (
    LMConfig,
    Recipe,
    ScheduleConfig,
    Speedrun,
    SpeedrunPlan,
    SpeedrunWatcher,
    StageConfig,
    StartConfig,
    TaskConfig,
    find_recipe,
    latest_state,
    read_metrics,
    recipe_names,
)
from fulmen.train.metrics import Metrics
from fulmen.train.speedrun.plan import least_tokens, make_plan, scaled
from fulmen.train.speedrun.run import judged
from tests.train.speedrun_helpers import write_recipe

HOURS = 0.002
SPEED = 0.05
"""Seconds in which a test measures the speed"""


class Notes(SpeedrunWatcher):
    """Watcher that keeps the parts that began, and the sentences."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.sentences: list[str] = []

    def began(self, stage: str, work: str, seconds_left: float | None) -> None:
        self.stages.append(stage)

    def said(self, sentence: str) -> None:
        self.sentences.append(sentence)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Return a recipe of a model of two layers, all of which takes seconds."""
    return Recipe.read(write_recipe(tmp_path_factory.mktemp("recipe") / "tiny"))


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Notes, Record]:
    """Return the folder of a run that nothing stopped, what it said, and its record."""
    out = tmp_path_factory.mktemp("whole") / "out"
    notes = Notes()
    plan = Speedrun(recipe, out, HOURS, measure_seconds=SPEED).plan(notes)
    replace(plan, learn_tokens=4096).write(out)  # as few on any machine
    record = Speedrun(recipe, out, HOURS).run(notes)
    assert record is not None
    return out, notes, record


def without_seconds(record: Record) -> Record:
    stages = tuple(replace(stage, seconds=0.0) for stage in record.stages)
    return replace(record, stages=stages)


def stops_after(calls: int) -> Callable[[], bool]:
    """Return a function that says stop when it was called more often than so."""
    num_calls = 0

    def should_stop() -> bool:
        nonlocal num_calls
        num_calls += 1
        return num_calls > calls

    return should_stop


def test_a_run_goes_through_all_parts_and_ends_with_a_record(
    whole: tuple[Path, Notes, Record],
) -> None:
    out, notes, record = whole
    assert notes.stages == ["tokenizer", "plan", "learn", "practice", "int8", "scores"]
    assert Record.read(out / "model") == record
    learn, practice = record.stages
    plan = SpeedrunPlan.read(out)
    assert plan is not None
    assert (learn.name, practice.name) == ("learn", "practice")
    assert plan.learn_tokens <= learn.tokens < plan.learn_tokens + 2 * 512  # two stages
    assert 0 < learn.seconds < 60
    assert practice.tokens > 0
    names = ["basics:compare:test", "basics:unknown:test"]
    assert [one.name for one in record.scores] == [
        *names,
        "thoughts that end",
        "unknown requests refused",
    ]
    for score in record.scores:
        assert score.tasks >= 6
        assert 0 <= score.low <= score.right / score.tasks <= score.high <= 1
    config = json.loads((out / "model/config.json").read_text())
    assert config["quantization_config"]["bits"] == 8
    assert (out / "model/tokenizer.json").read_bytes() == (
        out / "tokenizer/tokenizer.json"
    ).read_bytes()


def test_a_finished_run_does_nothing_again(
    recipe: Recipe, whole: tuple[Path, Notes, Record]
) -> None:
    out, _, record = whole
    notes = Notes()
    assert Speedrun(recipe, out, HOURS).run(notes) == record
    assert notes.stages == []
    assert notes.sentences == [f"{out / 'model'} is finished, nothing is left to do"]


def test_a_run_that_is_stopped_again_and_again_makes_the_same_model(
    recipe: Recipe, whole: tuple[Path, Notes, Record], tmp_path: Path
) -> None:
    first, _, expected = whole
    out = tmp_path / "out"
    begun = Speedrun(recipe, out, HOURS, measure_seconds=SPEED)
    assert begun.run(should_stop=lambda: True) is None
    assert begun.stage == "tokenizer"
    again = Speedrun(recipe, out, HOURS, measure_seconds=SPEED)
    assert again.run(should_stop=stops_after(2)) is None
    assert again.stage == "plan"
    assert not again.has_plan
    shutil.copy(first / "plan.json", out)  # time decides no more
    stopped = []
    for calls in (4, 3, 2, 2, 6):
        run = Speedrun(recipe, out, HOURS)
        assert run.run(should_stop=stops_after(calls)) is None
        stopped.append(run.stage)
    assert {*stopped} == {"learn", "practice", "scores"}
    record = Speedrun(recipe, out, HOURS).run()
    assert record is not None
    assert without_seconds(record) == without_seconds(expected)
    shards = sorted(f"model/{file.name}" for file in (first / "model").glob("*.safetensors"))
    assert shards
    for name in (*shards, "model/config.json", "practice.json"):
        assert (out / name).read_bytes() == (first / name).read_bytes(), name
    states = [latest_state(folder / "practice") for folder in (out, first)]
    weights = [state / "model/model.safetensors" for state in states if state is not None]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_folder_of_other_hours_or_of_another_recipe_is_refused(
    recipe: Recipe, whole: tuple[Path, Notes, Record]
) -> None:
    out, _, _ = whole
    with pytest.raises(ValueError, match=r"was begun with 0\.002 hours, not with 3 hours: go on "):
        Speedrun(recipe, out, 3)
    with pytest.raises(ValueError, match="was begun with the recipe tiny, not with the recipe big"):
        Speedrun(replace(recipe, name="big"), out, HOURS)


@pytest.mark.parametrize("hours", [0, -1, 1000.1, float("nan"), float("inf")])
def test_hours_that_cannot_be_are_refused(recipe: Recipe, hours: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it must be above 0 and at most 1000"):
        Speedrun(recipe, tmp_path / "out", hours)
    assert not (tmp_path / "out").exists()


def test_too_few_hours_name_those_that_are_needed(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=r"at least [\d.]+ hours are needed here") as caught:
        make_plan(recipe, 1e-6, 1000.0)
    needed = float(str(caught.value).split("at least ")[1].split(" ")[0])
    assert make_plan(recipe, needed, 1000.0).learn_tokens >= least_tokens(recipe.learn)
    with pytest.raises(ValueError, match="hours are needed"):
        make_plan(recipe, needed * 0.85, 1000.0)


def test_a_name_without_a_recipe_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no recipe mini-m3, there are mini-m1 and mini-"):
        find_recipe("mini-m3")


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_scores_no_part_that_it_trains_on(name: str) -> None:
    recipe = find_recipe(name)
    assert recipe.name == name
    trained = {task.environment for task in recipe.learn.tasks.values() if task.environment}
    trained |= {*recipe.practice.environments, *recipe.tokenizer.environments}
    assert all(one.endswith("training") for one in trained)
    assert all(one.endswith(":test") for one in recipe.scores.environments)
    assert recipe.learn.model.config["model_type"] == recipe.tokenizer.format
    assert (
        recipe.practice.sampling.max_tokens < recipe.learn.model.config["max_position_embeddings"]
    )


def config_of(stages: list[int], warmup: int, start: int | None) -> LMConfig:
    total = sum(stages)
    length = 0 if start is None else total - start
    return LMConfig(
        out=Path("out"),
        model=StartConfig(config={"model_type": "minimax_m1"}, tokenizer=Path("t")),
        tasks={"copy": TaskConfig(generator="copy")},
        stages=tuple(StageConfig(tokens=one, length=64, step_tokens=64) for one in stages),
        schedule=ScheduleConfig(warmup=warmup, decay_start=start, decay_length=length),
    )


@given(
    stages=st.lists(st.integers(1000, 10**9), min_size=1, max_size=4),
    share=st.floats(0.01, 0.99),
    factor=st.floats(1.0, 1000.0),
    has_decay=st.booleans(),
)
def test_a_scaled_run_has_the_tokens_of_the_plan_and_its_decay_ends_with_it(
    stages: list[int], share: float, factor: float, has_decay: bool
) -> None:
    start = int(sum(stages) * share) if has_decay else None
    config = config_of(stages, min(stages) // 10, start)
    least = least_tokens(config)
    tokens = int(least * factor) + len(stages)
    found = scaled(config, tokens)
    assert found.num_tokens == tokens
    whole = sum(stages)
    for before, after in zip(config.stages, found.stages, strict=True):
        assert abs(after.tokens - before.tokens * tokens / whole) <= 1
        assert after.tokens >= after.step_tokens - 1
    assert found.schedule.warmup == config.schedule.warmup
    if start is not None:
        assert found.schedule.decay_start is not None
        assert found.schedule.decay_start + found.schedule.decay_length == tokens
        assert found.schedule.decay_start >= found.schedule.warmup - 1
    assert scaled(config, whole) == config


@pytest.mark.parametrize(
    ("probes", "good", "expected"),
    [
        ([(0, 0.2), (4, 0.5)], 4, {"step": 4, "before": 0.2, "after": 0.5, "is_kept": True}),
        ([(0, 0.5), (4, 0.4)], 4, {"step": 4, "before": 0.5, "after": 0.4, "is_kept": False}),
        ([(0, 0.5), (4, 0.5)], 4, {"step": 4, "before": 0.5, "after": 0.5, "is_kept": False}),
        ([(0, 0.5), (4, 0.1)], 0, {"step": None, "before": None, "after": None, "is_kept": False}),
        ([], None, {"step": 4, "before": None, "after": None, "is_kept": True}),
    ],
)
def test_the_practised_model_goes_on_only_if_its_probe_is_better(
    probes: list[tuple[int, float]], good: int | None, expected: dict[str, Any], tmp_path: Path
) -> None:
    metrics = Metrics(tmp_path, has_board=False)
    for step, rate in probes:
        values = {"a (held out)": rate, "b (held out)": rate, "failures": {}}
        metrics.write("probe", step, values)
    metrics.close()
    state = tmp_path / "states/step-00000004"
    state.mkdir(parents=True)
    (state / "state.json").write_text(json.dumps({"step": 4, "good": good}))
    assert judged(tmp_path) == expected


def test_a_record_says_which_stage_was_left_out(tmp_path: Path) -> None:
    stage = StageRecord(name="practice", tokens=1, seconds=1.0, is_kept=False)
    record = Record(machine="a", stages=(stage,), scores=(), seed=0)
    record.write(tmp_path)
    assert Record.read(tmp_path) == record


def test_practice_ends_when_its_time_is_used_up(
    recipe: Recipe, whole: tuple[Path, Notes, Record], tmp_path: Path
) -> None:
    first, _, _ = whole
    for name in ("tokenizer", "learn"):
        shutil.copytree(first / name, tmp_path / "out" / name)
    plan = SpeedrunPlan.read(first)
    assert plan is not None
    replace(plan, practice_seconds=0.01).write(tmp_path / "out")
    assert Speedrun(recipe, tmp_path / "out", HOURS).run() is not None
    assert len(read_metrics(tmp_path / "out/practice", "step")) == 1
