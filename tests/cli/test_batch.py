"""fulmen batch: results in a file, news on stderr, an exit code that tells whether all is well."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.server.test_batch import chat, read, write
from tests.tiny import write_checkpoint
from tests.warm import python


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny-m2", "m2")


def start(*arguments: str | Path, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        python("-m", "fulmen", "batch", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": ":".join(sys.path)},
    )


def run(*arguments: str | Path, home: Path) -> tuple[int, str]:
    """Return exit code and stderr of a whole run."""
    process = start(*arguments, home=home)
    out, err = process.communicate(timeout=120)
    assert out == ""
    assert "Traceback" not in err
    return process.returncode, err


def test_all_answered_is_0_and_some_failed_is_1(folder: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(source, [chat(f"q{number}", max_tokens=4) for number in range(5)])
    code, err = run(source, out, "--model", folder, home=tmp_path)
    assert code == 0, err
    assert f"5 of 5 requests are answered in {out}, 0 failed" in err
    replies = [result["response"]["body"] for result in read(out)]
    assert [reply["usage"]["completion_tokens"] for reply in replies] == [4] * 5
    code, err = run(source, out, "--model", tmp_path / "nothing", home=tmp_path)
    assert code == 0, "nothing is left, so no model is loaded"
    write(source, [*(chat(f"q{number}") for number in range(5)), chat("hot", temperature=9)])
    code, err = run(source, out, "--model", folder, "--max-num-seqs", "2", home=tmp_path)
    assert code == 1
    assert "5 of 6 requests are answered" in err
    assert not list(tmp_path.rglob("*.sqlite3"))


def test_ctrl_c_loses_nothing(folder: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    few: Any = {"max_tokens": 4}
    many: Any = {"max_tokens": 100, "ignore_eos": True}
    write(source, [chat(f"q{number}", **(few if number < 3 else many)) for number in range(40)])
    process = start(source, out, "--model", folder, "--max-num-seqs", "2", home=tmp_path)
    deadline = time.monotonic() + 100
    while not out.exists() or out.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, err = process.communicate(timeout=100)
    assert (process.returncode, printed) == (130, ""), err
    assert "Traceback" not in err
    first = read(out)
    assert 3 <= len(first) < 40
    assert f"stopped with {len(first)} of 40 requests done, the same command goes on" in err
    code, err = run(source, out, "--model", folder, "--max-num-seqs", "8", home=tmp_path)
    assert code == 0, err
    assert read(out)[: len(first)] == first
    assert sorted(result["custom_id"] for result in read(out)) == sorted(f"q{n}" for n in range(40))


def test_mistakes_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    assert run(source, out, home=tmp_path)[1] == f"fulmen: {source}: no such file or directory\n"
    write(source, [chat("a"), chat("a")])
    code, err = run(source, out, "--model", folder, home=tmp_path)
    assert (code, out.exists()) == (1, False)
    assert err.startswith(f"fulmen: {source} has the custom_id 'a' twice, in lines 1 and 2: ")
    write(source, [chat("a")])
    out.write_text(json.dumps({"mine": 1}))
    code, err = run(source, out, "--model", folder, home=tmp_path)
    assert code == 1
    assert f"{out}, line 1 is no result of a batch" in err
    assert out.read_text() == '{"mine": 1}'
    assert run(source, source, home=tmp_path)[0] == 1
