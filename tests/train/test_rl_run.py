"""A run from its file: what it refuses, what it leaves behind, and how it goes on."""

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.checkpoints import load_model, save_model
from fulmen.cli.train_rl_view import TrainingView
from fulmen.models import new_model
from fulmen.train import (
    RLRun,
    ServerConfig,
    SourceConfig,
    TrainerConfig,
    fork_config,
    latest_state,
    model_folder,
    open_run,
    read_metrics,
    read_run_file,
    to_toml,
)
from tests.cli.test_cli import assert_refused, called
from tests.cli.test_train import FULL
from tests.warm import python

RUNS = Path(__file__).parents[2] / "runs"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the file of a run of the fork task from a model that knows nothing yet."""
    save_model(new_model(fork_config(), seed=1), tmp_path / "model")
    file = tmp_path / "run.toml"
    file.write_text(
        f"""
        folder = {json.dumps(str(tmp_path / "out"))}
        model = {json.dumps(str(tmp_path / "model"))}
        dtype = "float32"
        trainer = {{ num_steps = 2, num_groups = 4, max_refills = 0, dynamic_sampling = false }}
        sources = [{{ levels = ["fork"] }}]
        sampling = {{ group_size = 4, max_tokens = 6 }}
        batch = {{ min_groups = 1 }}
        probe = {{ every = 2, num_tasks = 4, max_drop = 1.0 }}
        """
    )
    return file


def test_a_run_begins_with_the_newest_model_of_another_run(file: Path, tmp_path: Path) -> None:
    first = read_run_file(file, RLRun)
    with open_run(first) as trainer:
        trainer.run()
    newest = latest_state(first.folder)
    assert newest is not None
    second = replace(first, model=first.folder, folder=tmp_path / "second")
    with open_run(second) as trainer:
        learnt = load_model(model_folder(newest), dtype=torch.float32, trainable=True).state_dict()
        assert all(learnt[name].equal(own) for name, own in trainer.model.state_dict().items())
    assert f'model = "{model_folder(newest)}"' in (second.folder / "run.toml").read_text()


def test_a_run_leaves_states_numbers_and_its_own_file(file: Path, tmp_path: Path) -> None:
    run = called("train", "rl", file, "--json", "--set", "trainer.max_idle_steps=9")
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    out = tmp_path / "out"
    resolved = read_run_file(out / "run.toml", RLRun)
    assert (resolved.trainer.max_idle_steps, resolved.folder) == (9, out)
    state = latest_state(out)
    assert state is not None
    assert run.stderr.splitlines()[-1] == str(model_folder(state))
    kinds = [one["kind"] for one in read_metrics(out)]
    assert {*kinds} == {"probe", "step", "sample"}
    # Done is done; more steps go on from there.
    again = called("train", "rl", file, "--set", "trainer.max_idle_steps=9")
    assert (again.returncode, again.stdout) == (0, f"{model_folder(state)}\n")
    more = ("--set", "trainer.max_idle_steps=9", "--set", "trainer.num_steps=3")
    assert called("train", "rl", file, *more).returncode == 0
    assert [one["step"] for one in read_metrics(out, "step")] == [1, 2, 3]
    # The same numbers under other keys are other values too, and so is what is left out.
    for assignment, name in (
        ("optimizer.learning_rate=1e-2", "optimizer.learning_rate"),
        ("batch.max_tokens=6", "batch.max_tokens"),
        ("trainer.max_refills=1", "trainer.max_refills"),
        ("probe=none", "probe.every, probe.num_tasks, probe.max_drop, probe.max_returns, probe"),
    ):
        other = called("train", "rl", file, *more, "--set", assignment)
        assert_refused(other, f"holds the state of a run with other values of {name}: go on with")


def test_what_happens_is_shown_from_the_start(file: Path) -> None:
    run = called("train", "rl", file, "--set", "trainer.max_idle_steps=9")
    lines = run.stderr.splitlines()
    assert lines[0].startswith("cispo; weight at most 5 (epsilon_high 4), no floor; token ratio")
    assert lines[1] == "probing after step 0"
    assert lines[2].startswith("probe after step 0: fork (held out) 0.")
    (step,) = [line for line in lines if line.startswith("step 1 of 2: ")]
    assert step.endswith(" s left")


def test_progress_inside_a_round_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    view = TrainingView(5, has_lines=False)
    view.drawing(3, 64, 1234.5)
    assert capsys.readouterr().err == ""
    view._shown_at -= 10
    view.drawing(4, 64, 1234.5)
    view.drawing(5, 64, 1234.5)
    assert capsys.readouterr().err == "4 of 64 answers have ended, 1,234 tokens/s\n"


@pytest.mark.parametrize("limit", [300, 30_000])
def test_a_full_disk_is_one_sentence_and_no_half_state(
    limit: int, file: Path, tmp_path: Path
) -> None:
    command = python("-c", FULL, str(limit), "train", "rl", str(file))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    (last,) = [line for line in done.stderr.splitlines() if line.startswith("fulmen: ")]
    assert last.startswith(f"fulmen: {tmp_path}/out/")
    assert last.endswith(": file too large")
    assert latest_state(tmp_path / "out") is None


def test_a_partial_table_keeps_the_defaults_of_a_run(file: Path) -> None:
    run = read_run_file(file, RLRun, ["optimizer.eps=1e-12", "schedule.warmup=10"])
    assert (run.optimizer.learning_rate, run.optimizer.eps) == (1e-4, 1e-12)
    assert (run.schedule.unit, run.schedule.warmup) == ("steps", 10)


def test_bounds_may_be_infinite(file: Path, tmp_path: Path) -> None:
    run = read_run_file(file, RLRun, ["objective.weight_cap=inf", "objective.clip_high=inf"])
    assert run.objective.rule.weight_cap == run.objective.rule.clip_high == math.inf
    (tmp_path / "again.toml").write_text(to_toml(run))
    assert read_run_file(tmp_path / "again.toml", RLRun) == run


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("objective.weight_cap=0.2", "weight_cap is 0.2, it must be above 1"),
        ("sampling.top_p=0.9", "top_p is 0.9, an exact run draws from the whole distribution"),
        ("sampling.top_k=40", "top_k is 40, an exact run draws from the whole distribution"),
        ("objective.wieght_cap=5", "unknown key objective.wieght_cap, did you mean objective.we"),
        ("trainer.num_steps=ten", "trainer.num_steps is 'ten', it must be a whole number"),
        (
            "batch.min_groups=5",
            "batch.num_minibatches (1) times batch.min_groups (5) is 5, trainer.num_groups is 4",
        ),
        ("batch.num_minibatches=5", "(5) times batch.min_groups (1) is 5, trainer.num_groups is 4"),
        (
            'objective={algorithm="dr_grpo",constant_length=6}',
            "advantages.spread is batch for the estimator mean, which divides by no spread",
        ),
        ('sources=[{levels=["fork"]},{levels=["fork"]}]', "environment fork is in two sources"),
        ("sources.0.levels=['nothing']", "nothing is no environment, it must be"),
        ("sources.0.levels=['arithmetic']", "model has no tokenizer.json"),
        ("model=/nowhere", "/nowhere"),
        ("server.url=http://127.0.0.1:9", "a run that samples there is not exact"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written(
    assignment: str, sentence: str, file: Path, tmp_path: Path
) -> None:
    spread = ("--set", "advantages.spread=batch") if "dr_grpo" in assignment else ()
    assert_refused(called("train", "rl", file, "--set", assignment, *spread), sentence)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_missing_is_one_sentence(tmp_path: Path) -> None:
    assert_refused(called("train", "rl", tmp_path / "no.toml"), "no.toml is missing, a run file")


def test_a_checkpoint_of_another_shape_is_refused_and_stays(file: Path, tmp_path: Path) -> None:
    run = read_run_file(file, RLRun)
    with open_run(run) as trainer:
        assert trainer.run()
    other = new_model(replace(fork_config(), hidden_size=24), seed=0)
    with pytest.raises(ValueError, match="is of another shape: its hidden_size is 48"):
        open_run(run, model=other).__enter__()
    assert latest_state(run.folder) is not None


def test_a_file_round_trips(tmp_path: Path) -> None:
    run = read_run_file(RUNS / "fork.toml", RLRun)
    (tmp_path / "again.toml").write_text(to_toml(run))
    assert read_run_file(tmp_path / "again.toml", RLRun) == run
    with pytest.raises(ValueError, match="a run that samples there is not exact"):
        replace(run, server=ServerConfig(url="http://127.0.0.1:9", key="secret"))


def test_a_run_needs_sources() -> None:
    fields: dict[str, Any] = {"folder": Path("x"), "model": Path("x")}
    with pytest.raises(ValueError, match=r"sources is empty, a run needs at least one \[\[sour"):
        RLRun(**fields, trainer=TrainerConfig(num_steps=1), sources=())
    sources = (SourceConfig(levels=("fork",)),)
    assert RLRun(**fields, trainer=TrainerConfig(num_steps=1), sources=sources).window is None
