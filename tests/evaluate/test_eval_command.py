"""`fulmen eval` as a user runs it."""

import asyncio
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fulmen.envs import KINDS
from fulmen.evaluate import read_results
from fulmen.llm import LocalModel
from tests.cli.test_cli import assert_refused, called
from tests.evaluate.helpers import load
from tests.evaluate.playing import timeless
from tests.server.helpers import served
from tests.tiny import write_checkpoint
from tests.warm import python


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("m2"), "m2")


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of three stories and three expressions."""
    out = tmp_path_factory.mktemp("evals") / "done"
    run = called(*asked(folder, out), "arithmetic", "logic:boolean_expressions:1")
    assert run.returncode == 0, run.stderr
    for words in ("arithmetic", "logic:boolean_expressions:1", "pass@1", "no answer", "format"):
        assert words in run.stdout
    assert run.stderr == f"{out}/report.html has the trajectories\n"
    return out


def asked(folder: Path, out: Path, tasks: int = 3) -> list[str | Path]:
    return ["eval", folder, "--tasks", str(tasks), "--max-tokens", "6", "--out", out]


def test_it_goes_on_where_it_ended_and_prints_one_line_of_json(
    folder: Path, done: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(done, out)
    log = out / "passes.jsonl"
    before = log.read_bytes()
    run = called(*asked(folder, out), "arithmetic", "--json", "--baseline", done)
    assert log.read_bytes() == before  # nothing was left to do
    assert run.stdout.count("\n") == 1
    summary = json.loads(run.stdout)
    assert set(summary["environments"]) == {"arithmetic", "logic:boolean_expressions:1"}
    found = summary["environments"]["arithmetic"]
    assert (found["tasks"], found["passes"], found["errors"]) == (3, 3, 0)
    assert 0 < found["tokens"] <= 6
    assert summary["baselines"][0]["environments"] == summary["environments"]
    assert summary["settings"]["max_tokens"] == 6
    more = called(*asked(folder, out, 5), "arithmetic", "--samples", "2")
    assert more.returncode == 0, more.stderr
    assert log.read_bytes().startswith(before)
    assert len(read_results(out).passes) == 10 + 3
    log.write_bytes(before[:-40])  # torn
    again = called(*asked(folder, out), "arithmetic", "logic:boolean_expressions:1", "--json")
    assert timeless(read_results(out)) == timeless(read_results(done))
    assert json.loads(again.stdout)["environments"].keys() == summary["environments"].keys()


def test_a_folder_of_its_own_is_made_for_every_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--tasks", "1", "--max-tokens", "2")
    for _ in range(2):
        run = called("eval", "-m", folder, "arithmetic", *flags)
        assert run.returncode == 0, run.stderr
        assert run.stderr.startswith("passes go to evals/20")
    made = list((tmp_path / "evals").iterdir())
    assert len(made) == 2
    assert all(one.name.removesuffix("-2").endswith(folder.name) for one in made)


def test_a_kept_evaluation_is_shown_and_compared(done: Path, tmp_path: Path) -> None:
    (done / "report.html").unlink()
    run = called("eval", "show", done, "--baseline", done)
    assert run.returncode == 0, run.stderr
    assert (done / "report.html").is_file()
    assert "run" in run.stdout.split()
    compared = called("eval", "compare", done, done)
    assert "all" in compared.stdout
    values = json.loads(called("eval", "compare", done, done, "--json").stdout)
    assert values["all"]["tasks"] == 6
    assert (values["all"]["p"], values["all"]["difference"]["mean"]) == (1.0, 0.0)
    assert_refused(called("eval", "compare", done, tmp_path), f"{tmp_path} holds no evaluation")


def test_it_lists_and_checks_environments(tmp_path: Path) -> None:
    listed = called("eval", "--list").stdout
    for kind in KINDS.values():
        assert f"{kind.usage}\n    {kind.help}\n" in listed
    run = called("eval", "check", "arithmetic", "logic:boolean_expressions:1", "--tasks", "5")
    assert (run.returncode, run.stdout) == (
        0,
        "arithmetic: sound\nlogic:boolean_expressions:1: sound\n",
    )
    file = tmp_path / "questions.jsonl"
    lines = [{"question": f"What is {n} + 1? Not {n + 1}.", "answer": n + 1} for n in range(30)]
    file.write_text("\n".join(map(json.dumps, lines)))
    run = called("eval", "check", file, "--tasks", "30")
    assert run.returncode == 1
    assert run.stdout == f"{file}: 30 of 30 tasks are solved by the question\n"
    found = json.loads(called("eval", "check", file, "--tasks", "30", "--json").stdout)
    assert found[str(file)][0]["index"] == -1


def test_ctrl_c_keeps_what_is_done(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [str(one) for one in asked(folder, out, 5000)]
    many = python("-m", "fulmen.cli", *words, "arithmetic")
    with subprocess.Popen(many, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        deadline, log = time.monotonic() + 100, out / "passes.jsonl"
        while run.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.stat().st_size:
                break
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        stdout, stderr = run.communicate(timeout=100)
    assert run.returncode == 130, stderr
    assert "pass@1" in stdout
    assert f"passes done; `--out {out}` goes on" in stderr
    assert "Traceback" not in stderr
    assert read_results(out).passes


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = LocalModel(load(tmp_path_factory.mktemp("served"), "m2"))
    with served(model, answer_share=0) as address:
        yield address
    asyncio.run(model.close())


def test_a_model_at_a_url_has_the_passes_of_the_one_that_is_here(
    url: str, folder: Path, done: Path, tmp_path: Path
) -> None:
    out = tmp_path / "there"
    flags = ("--tasks", "3", "--max-tokens", "6", "--out", out)
    run = called("eval", "--url", url, "arithmetic", *flags)
    assert run.returncode == 0, run.stderr
    there, here = read_results(out), read_results(done)
    for one in there.passes:
        known = here.get(*one.key)
        assert known is not None
        replies = [results.trajectory(one).reply for results in (there, here)]
        assert replies[0] is not None
        assert replies[1] is not None
        assert replies[0].thinking == replies[1].thinking
        assert one.num_new_tokens == known.num_new_tokens
    assert_refused(
        called("eval", "--url", url, "arithmetic", *flags, "--temperature", "0.3"),
        f"{out} has passes with temperature null, not 0.3; another folder is needed",
    )
    assert_refused(called("eval", "--url", url, "arithmetic", "--dtype", "float32"), "--dtype is")


def test_a_server_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    run = called("eval", "--url", "http://127.0.0.1:9", "arithmetic", "--out", tmp_path / "out")
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "a model and tasks are needed, such as `fulmen eval smollm2 arithmetic`"),
        (("MODEL",), "a model and tasks are needed"),
        (("MODEL", "chess"), "chess is no environment"),
        (("MODEL", "arithmetic:x"), "arithmetic:x is no environment, it must be arithmetic[:STEPS"),
        (("nowhere", "arithmetic"), "nowhere is no path on this machine"),
        (("MODEL", "arithmetic", "--tasks", "0"), "--tasks is 0, it must be 1 or more"),
        (("MODEL", "arithmetic", "--samples", "0"), "--samples is 0, it must be 1 or more"),
        (("MODEL", "arithmetic", "--parallel", "0"), "--parallel is 0, it must be 1 or more"),
        (("MODEL", "arithmetic", "--max-turns", "0"), "--max-turns is 0, it must be 1 or more"),
        (
            ("MODEL", "arithmetic", "--max-seconds", "0"),
            "Invalid value for '--max-seconds': 0 is no number of seconds",
        ),
        (
            ("MODEL", "arithmetic", "--samples", "2", "--temperature", "0", "--out", "OUT"),
            "--samples is 2 and the temperature 0: all samples of a task would be equal",
        ),
        (("MODEL", "arithmetic", "--baseline", "OUT"), "OUT holds no evaluation"),
        (("MODEL", "arithmetic", "--out", "OTHER"), "OTHER holds something else"),
        (("MODEL", "arithmetic", "--out", "OTHER/file"), "OTHER/file: file exists"),
        (("check", "chess"), "chess is no environment"),
        (("check", "arithmetic", "--tasks", "0"), "--tasks is 0, it must be 1 or more"),
        (("show", "OUT"), "OUT holds no evaluation"),
    ],
)
def test_a_mistake_is_one_sentence(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "OTHER").mkdir()
    (tmp_path / "OTHER/file").write_text("mine")
    run = called("eval", *(str(folder) if one == "MODEL" else one for one in words))
    assert run.stdout == ""
    assert_refused(run, sentence)
    assert "Traceback" not in run.stderr


def test_a_model_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    broken = write_checkpoint(tmp_path / "m2", "m2")
    (broken / "config.json").write_text("{")
    run = called("eval", broken, "arithmetic", "--out", tmp_path / "out")
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1
    assert "config.json" in run.stderr
    assert not (tmp_path / "out").exists()
