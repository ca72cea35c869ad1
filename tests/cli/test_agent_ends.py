"""Ends of work on a run, and going on with it: signals, errors, empty lines, flags of a resume."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fulmen.agent import Archive, default_runs
from tests.agent.working import bash, says
from tests.cli.test_agent import (
    _own_folders,
    agent,
    folder,
    lines,
    run_name,
    served_script,
    typed,
)
from tests.cli.test_cli import assert_refused, called

__all__ = ["_own_folders", "folder"]
EVIL = "git init -q sub; git -C sub config core.fsmonitor x"


def test_rules_of_a_resumed_run_are_all_that_were_given(folder: Path) -> None:
    script = [says("m2", "A."), bash("m2", "touch new"), says("m2", "B.")]
    with served_script(script) as url:
        flags = ("--mode", "auto", "--deny", "bash(touch *)")
        assert agent(folder, url, "-p", "x", *flags).returncode == 0
        name = run_name()
        for wrong, sentence in [
            (("--tools", "minimal"), f"--tools is given, but run {name} has the tools coding"),
            (("--folder", "/"), f"--folder is given, but run {name} works in {folder}"),
        ]:
            assert_refused(called("agent", "resume", name, "go", "-p", *wrong), sentence)
        run = called("agent", "resume", name, "go", "-p", "--deny", "bash(rm *)")
        assert run.returncode == 0, run.stderr
    assert not (folder / "new").exists()
    result = Archive(default_runs()).runs.open(name).trajectory.steps[1].results[0]
    assert result.text.endswith("the rule bash(touch *) denies it")


def test_the_last_line_says_how_a_run_ended(folder: Path) -> None:
    with served_script([bash("m2", EVIL), says("m2", "A.")]) as url:
        run = agent(folder, url, "x", "--json", "--mode", "auto")
        assert run.returncode == 0, run.stderr
        told, end = lines(run)[-2:]
        assert (told["type"], end["type"], end["reason"]) == ("note", "run.ended", "done")
        assert "sub" in told["text"]
        run = called("agent", "resume", run_name(), "--json")
    assert_refused(run, "is done, say what to do next")
    assert [one["type"] for one in lines(run)] == ["run.started", "run.ended"]
    end = lines(run)[-1]
    assert (end["reason"], end["exit_code"]) == ("error", 1)
    run = called("agent", "resume", run_name(), "-p")
    assert (run.returncode, run.stdout) == (1, "")


def test_a_run_that_cannot_be_opened_again_is_left_with_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".fulmen").mkdir()
    (folder / ".fulmen/agent.toml").write_text('instructions = ["HOUSE.md"]\n')
    (folder / "HOUSE.md").write_text("x\n")
    with served_script([bash("m2", "rm HOUSE.md"), says("m2", "A.")]) as url:
        code, _, error = typed(
            "y\n/rewind 1\nhello\n/exit\n",
            *("agent", "Do it.", "--mode", "auto", "--folder", folder, "--url", url),
            monkeypatch=monkeypatch,
        )
    assert code == 1
    assert "HOUSE.md is named as instructions, and cannot be read as such" in error
    assert error.endswith(f"fulmen agent --resume {run_name()} goes on here\n")


def test_an_empty_line_goes_on_where_an_answer_was_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [bash("m2", "touch one"), bash("m2", "touch two"), says("m2", "Done.")]
    with served_script(script) as url:
        run = agent(folder, url, "-p", "Do it.", "--mode", "auto", "--max-turns", "1")
        assert run.returncode == 4
        code, out, error = typed(
            "\n\n/exit\n",
            *("agent", "resume", run_name(), "--max-turns", "9"),
            monkeypatch=monkeypatch,
        )
    assert code == 0, error
    assert "Done." in out
    assert (folder / "two").exists()
    assert error.count("an empty line goes on") == 1  # where it is done, an empty line is nothing
    trajectory = Archive(default_runs()).runs.open(run_name()).trajectory
    assert [len(step.said) for step in trajectory.steps] == [1, 0, 0]


def test_a_terminal_that_is_closed_leaves_nothing_behind(folder: Path) -> None:
    with served_script([bash("m2", f"{EVIL}; touch made; sleep 60")]) as url:
        flags = ("-p", "x", "--json", "--mode", "auto", "--folder", folder, "--url", url)
        run = subprocess.Popen(
            [sys.executable, "-m", "fulmen", "agent", *map(str, flags)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        deadline = time.monotonic() + 60
        while not (folder / "made").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(run.pid, signal.SIGHUP)
        out, error = run.communicate(timeout=60)
    assert run.returncode == 129, error
    assert '"run.ended","reason":"interrupted","exit_code":129' in out.replace('": ', '":').replace(
        ', "', ',"'
    )
    left = {path.name for path in folder.iterdir()}
    assert left == {"add.py", "test_add.py", "sub", "made"}
    assert not (folder / "sub/.git/HEAD").exists()


def test_a_folder_that_no_sandbox_may_change_is_not_copied(tmp_path: Path) -> None:
    own = tmp_path / "config/fulmen"
    (own / "agent").mkdir(parents=True)
    for place, sentence in [(own.parent, "is fulmen's own"), (Path("/etc"), "is too much")]:
        refused = agent(place, "http://127.0.0.1:9", "-p", "x")
        assert_refused(refused, sentence)
        assert refused.returncode == 1
    assert not (default_runs() / ".snapshots").exists()


def test_rules_of_a_fork_are_those_of_the_folder_it_comes_from(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [bash("m2", "npm run t -x"), says("m2", "Done.")]
    with served_script(script) as url:
        flags = ("agent", "-p", "x", "--folder", folder, "--url", url)
        assert typed("a\n", *flags, monkeypatch=monkeypatch)[0] == 0
    fork = tmp_path / "fork"
    made = called("agent", "fork", run_name(), "--step", "1", "--folder", fork)
    assert made.returncode == 0, made.stderr
    gone = called("agent", "rules", "--forget", "bash(npm run t *)", "--folder", fork)
    assert gone.returncode == 0, gone.stderr
    assert called("agent", "rules").stdout == ""
