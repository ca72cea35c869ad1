"""A server under twice its load, with clients that go away, crawl and babble: the script's own
checks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_checkpoint

ROOT = Path(__file__).parents[2]
MINUTES = float(os.environ.get("FULMEN_SOAK_MINUTES", "2"))
"""Length of the load; a release takes 30"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["m1", "m2"])
def test_every_answer_is_the_one_alone_and_nothing_leaks(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/soak.py"), "--minutes", str(MINUTES)]
    done = subprocess.run(
        [
            *command,
            "--model",
            str(write_checkpoint(tmp_path, kind)),
            "--questions",
            "16",
            "--long-tokens",
            "900",
            "--kills",
            "2",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=MINUTES * 60 + 600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    answered = sum(count for what, count in found["counts"].items() if what.endswith(": 200"))
    assert answered > 10
    assert found["counts"]["left"] > 0
    assert found["counts"]["read slowly"] > 0
    assert found["saved_turns"] > 0
