"""`fulmen scale` as a user runs it."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.test_cli import assert_refused, called, fulmen
from tests.tiny import write_checkpoint
from tests.warm import python


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("m2"), "m2")


def test_it_prints_tables_or_json_and_draws_the_curve(folder: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "runs.json", tmp_path / "curve.svg"
    flags = ("--model", folder, "--tasks", "3", "--budgets", "0,4,8", "--answer-tokens", "4")
    run = fulmen("scale", *flags, "--check", "--out", out, "--plot", plot)
    assert run.returncode == 0, run.stderr
    assert "accuracy, forked" in run.stdout
    assert "difference" in run.stdout
    assert plot.read_text().startswith("<svg")
    again = fulmen("scale", *flags, "--check", "--out", out, "--json")
    summary = json.loads(again.stdout)
    assert [row["budget"] for row in summary["budgets"]] == [0, 4, 8]
    assert summary["num_tasks"] == 3
    more = fulmen("scale", *flags, "--out", out)
    assert more.returncode == 1
    assert "has runs with is_checked true, not false; another file is needed" in more.stderr


def test_several_tasks_have_a_file_each_and_one_plot(folder: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "runs", tmp_path / "curves.svg"
    kinds = ("basics:countdown:test", "basics:compare:test")
    flags: list[str | Path] = ["scale", "--model", folder, "--budgets", "0,4"]
    flags += ["--answer-tokens", "4"]
    flags += ["--tasks", "2", "--out", out]
    both = ("--task", kinds[0], "--task", kinds[1])
    run = called(*flags, *both, "--plot", plot, "--json")
    assert run.returncode == 0, run.stderr
    studies = json.loads(run.stdout)["studies"]
    assert [study["about"]["task"] for study in studies] == list(kinds)
    assert all(plot.read_text().count(f">{kind}<") == 1 for kind in kinds)
    files = [out / "basics-countdown-test.json", out / "basics-compare-test.json"]
    assert sorted(out.iterdir()) == sorted(files)
    again = called(*flags[:-1], files[0], "--task", kinds[0], "--json")
    assert json.loads(again.stdout) == studies[0]
    assert_refused(called(*flags[:-1], files[0], *both), f"--out {files[0]} is a file, several")
    alike = called(*flags, "--task", "basics:copy", "--task", "basics::copy")
    assert_refused(alike, "the runs of basics:copy and of basics::copy would both be")
    wrong = tmp_path / "wrong"
    unknown = called(*flags[:-1], wrong, "--task", kinds[0], "--task", "basics:nothing")
    assert_refused(unknown, "nothing is no kind of basics")
    assert not wrong.exists()


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs.json"
    flags = ["--model", str(folder), "--budgets", "0,4", "--answer-tokens", "4", "--out", str(out)]
    many = python("-m", "fulmen.cli", "scale", *flags, "--tasks", "5000")
    with subprocess.Popen(many, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        deadline = time.monotonic() + 100
        while not out.exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        stdout, stderr = run.communicate(timeout=100)
    assert run.returncode == 130, stderr
    assert "accuracy, forked" in stdout
    assert f"of 5000 tasks done, the same command goes on from {out}" in stderr
    assert "Traceback" not in stderr
    kept = json.loads(out.read_text())["tasks"]
    more = fulmen("scale", *flags, "--tasks", str(len(kept) + 1))
    assert more.returncode == 0, more.stderr
    assert json.loads(out.read_text())["tasks"].items() > kept.items()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--budgets", "64,0"), "--budgets are '64,0', they must be 0 or more and ascending"),
        (("--budgets", "64,x"), "Invalid value for '--budgets': 'x' is no number of tokens"),
        (("--vote-budgets", "7"), "--vote-budgets are '7', they must be some of the budgets"),
        (("--thoughts", "0"), "--thoughts is 0, it must be 1 or more"),
        (("--votes", "-1"), "--votes is -1, it must be 0 or more"),
        (("--answer-tokens", "0"), "--answer-tokens is 0, it must be 1 or more"),
        (("--temperature", "0"), "--temperature is 0, at temperature 0 all runs of a task are"),
        (("--tasks", "0"), "--tasks is 0, it must be 1 or more"),
        (("--task", "chess"), "chess is no environment"),
        (("--budgets", "0,1M"), "a thought of 1000000 tokens needs"),
        (("--closing", "So:"), "this model closes its thoughts with </think> alone"),
    ],
)
def test_a_mistake_is_one_sentence(folder: Path, flags: tuple[str, ...], sentence: str) -> None:
    run = called("scale", "--model", folder, *flags)
    assert run.stdout == ""
    assert_refused(run, sentence)
    assert "Traceback" not in run.stderr
