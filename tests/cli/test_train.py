"""fulmen train as a command: where it goes on, what it prints, and its one sentence for a fault."""

import os
import signal
import subprocess
import tomllib
from pathlib import Path

import pytest

from fulmen.cli.train_view import shown_time
from fulmen.train import LMConfig, latest_state, read_metrics, read_run_file
from tests.train.lm_helpers import run_file
from tests.warm import python

FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
from fulmen.cli import main
sys.argv = ["fulmen", *sys.argv[1:]]
main()
"""


def train(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = python("-m", "fulmen", "train", *map(str, arguments))
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_run_ends_with_a_checkpoint_and_shows_its_probes(tmp_path: Path) -> None:
    done = train("lm", run_file(tmp_path), "--set", "held_out=0.2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/out/states/step-00000006/model\n"
    for shown in ("step 1  loss ", "tokens/s", " left", "task", "documents", "copy ", " -> "):
        assert shown in done.stderr
    again = train("lm", tmp_path / "run.toml", "--set", "held_out=0.2", "--set", "keep=3")
    assert "going on after step 6" in again.stderr
    assert ", where nothing is left to do\n" in again.stderr
    assert again.stderr.endswith("with other values of keep\n")
    assert again.stdout == done.stdout


def test_an_interrupt_is_one_sentence_and_saves(tmp_path: Path) -> None:
    file = run_file(tmp_path)
    command = python("-m", "fulmen", "train", "lm", file, "--set", "stages.1.tokens=100M")
    run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    out = tmp_path / "out"
    while len(read_metrics(out, "step")) < 3:
        assert run.poll() is None, run.communicate()[1]
    os.kill(run.pid, signal.SIGINT)
    stdout, stderr = run.communicate(timeout=60)
    assert run.returncode == 130, stderr
    assert stdout == ""
    state = latest_state(out)
    assert state is not None
    step = int(state.name.removeprefix("step-"))
    assert read_metrics(out, "step")[-1]["step"] == step
    last = stderr.splitlines()[-1]
    assert last == (
        f"stopped after step {step}, all of it is saved; `fulmen train lm {file}` goes on"
    )


@pytest.mark.parametrize("limit", [300, 60_000])
def test_a_full_disk_is_one_sentence_that_names_the_file(tmp_path: Path, limit: int) -> None:
    file = run_file(tmp_path)
    command = python("-c", FULL, str(limit), "train", "lm", str(file))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    (last,) = [line for line in done.stderr.splitlines() if line.startswith("fulmen: ")]
    assert last.startswith(f"fulmen: {tmp_path}/out/")
    assert last.endswith(": file too large")
    states = tmp_path / "out/states"
    assert not states.exists() or not os.listdir(states)


def test_a_config_is_shown_whole_and_trains_nothing(tmp_path: Path) -> None:
    done = train("lm", run_file(tmp_path), "--show", "--set", "seed=7")
    assert done.returncode == 0
    assert tomllib.loads(done.stdout)["seed"] == 7
    (tmp_path / "again.toml").write_text(done.stdout)
    shown = read_run_file(tmp_path / "again.toml", LMConfig)
    assert shown == read_run_file(tmp_path / "run.toml", LMConfig, ["seed=7"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["lm", "nowhere.toml"], "fulmen: nowhere.toml is missing, a run file is needed there\n"),
        (
            ["tokenizer", "out"],
            "fulmen: no text is given (--text, --environment), the kind bpe learns its merges from "
            "one; --kind characters needs none\n",
        ),
    ],
)
def test_a_fault_is_one_sentence(arguments: list[str], sentence: str) -> None:
    done = train(*arguments)
    assert (done.returncode, done.stderr, done.stdout) == (1, sentence, "")


def test_a_tokenizer_is_made(tmp_path: Path) -> None:
    done = train("tokenizer", tmp_path / "t", "--kind", "characters", "--word", "copy ")
    assert done.returncode == 0
    assert done.stderr.startswith(f"{tmp_path}/t: 2")
    assert (tmp_path / "t/tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("seconds", "shown"), [(4.4, "4 s"), (300, "5 min"), (5399, "90 min"), (11_100, "3 h 05")]
)
def test_a_time_is_shown_as_people_read_it(seconds: float, shown: str) -> None:
    assert shown_time(seconds) == shown.replace("90 min", "1 h 30")
