"""fulmen train speedrun as a command: an interrupted run goes on, and shows what it made."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from fulmen.catalog import Record
from fulmen.cli import completion
from fulmen.train import Recipe, SpeedrunPlan, read_metrics, recipe_names
from tests.cli.test_cli import assert_refused, called
from tests.train.speedrun_helpers import write_recipe
from tests.warm import python


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return the folders of a tiny recipe, and of a run of it that has its plan."""
    recipe, out = write_recipe(tmp_path / "tiny"), tmp_path / "out"
    Recipe.read(recipe).tokenizer.make(out / "tokenizer")
    plan = SpeedrunPlan(
        name="tiny",
        hours=0.5,
        machine="2 cores of a kind",
        tokens_per_second=1000.0,
        learn_tokens=6000,
        learn_seconds=6.0,
        practice_seconds=60.0,
        scores_seconds=10.0,
    )
    plan.write(out)
    return recipe, out


def test_an_interrupted_run_goes_on_and_shows_what_it_made(folders: tuple[Path, Path]) -> None:
    recipe, out = folders
    words = ("-m", "fulmen", "train", "speedrun", recipe, "--hours", "0.5", "--out", out)
    command = python(*map(str, words))
    first = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not read_metrics(out / "learn", "step"):
        assert first.poll() is None, first.communicate()[1]
    os.kill(first.pid, signal.SIGINT)
    stdout, stderr = first.communicate(timeout=120)
    assert first.returncode == 130, stderr
    assert stdout == ""
    assert stderr.startswith("learn: 6,000 tokens; 86 s until all is done\n")
    last = f"stopped in learn, all of it is saved; the same command goes on from {out}"
    assert stderr.splitlines()[-1] == last
    again = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert re.match(r"learn: 6,000 tokens, going on after step \d+; \d+ s until ", again.stderr)
    for part in ("practice: reinforcement learning; ", "int8: ", "scores: 2 environments, 6 tasks"):
        assert part in again.stderr
    record = Record.read(out / "model")
    assert record is not None
    assert again.stdout.startswith("2 cores of a kind")
    for name in ("learn", "practice", "basics:compare:test", "thoughts that end"):
        assert f"\n{name}" in again.stdout
    assert again.stdout.endswith(f"\n{out / 'model'}\n")


def test_a_plan_is_shown_and_nothing_is_trained(folders: tuple[Path, Path]) -> None:
    recipe, out = folders
    result = called("train", "speedrun", recipe, "--hours", "0.5", "--out", out, "--show")
    shown = [line.split() for line in result.stdout.splitlines()]
    assert ["learn", "6,000", "tokens", "6", "s"] in shown
    assert "stage 2" in result.stdout
    assert not (out / "learn").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("mini-m3", "--hours", "1"), "there is no recipe mini-m3, there are mini-m1 and mini-m2"),
        (("mini-m1", "--hours", "0"), "--hours is 0, it must be above 0 and at most 1000"),
        (("mini-m1", "--hours", "1001"), "--hours is 1001, it must be above 0 and at most 1000"),
    ],
)
def test_a_mistake_is_one_sentence(words: tuple[str, ...], sentence: str) -> None:
    assert_refused(called("train", "speedrun", *words), sentence)


def test_other_hours_are_refused(folders: tuple[Path, Path]) -> None:
    recipe, out = folders
    refused = called("train", "speedrun", recipe, "--hours", "2", "--out", out)
    assert_refused(refused, f"{out} was begun with 0.5 hours, not with 2 hours: go on with 0.5")


def test_names_of_recipes_are_completed() -> None:
    assert completion.recipes("") == recipe_names() == ["mini-m1", "mini-m2"]
    assert completion.recipes("mini-m2") == ["mini-m2"]
