"""A run from its file: what it refuses, what it leaves behind, and how it goes on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fulmen.checkpoints import save_model
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
    other = called("train", "rl", file, "--set", "optimizer.learning_rate=1e-2")
    assert_refused(other, "holds the state of a run without ")
    assert "learning_rate = 0.01" in other.stderr


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("objective.weight_cap=0.2", "weight_cap is 0.2, it must be above 1"),
        ("sampling.top_p=0.9", "top_p is 0.9, an exact run draws from the whole distribution"),
        ("sampling.top_k=40", "top_k is 40, an exact run draws from the whole distribution"),
        ("objective.wieght_cap=5", "unknown key objective.wieght_cap, did you mean objective.we"),
        ("trainer.num_steps=ten", "trainer.num_steps is 'ten', it must be a whole number"),
        ("batch.min_groups=5", "batch.min_groups is 5, trainer.num_groups is 4: no batch has"),
        ("sources.0.levels=['nothing']", "nothing is no task source, it must be"),
        ("sources.0.levels=['arithmetic']", "model has no tokenizer.json"),
        ("model=/nowhere", "/nowhere"),
        ("server.url=http://127.0.0.1:9", "a run that samples there is not exact"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written(
    assignment: str, sentence: str, file: Path, tmp_path: Path
) -> None:
    assert_refused(called("train", "rl", file, "--set", assignment), sentence)
    assert not (tmp_path / "out" / "states").exists()


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
