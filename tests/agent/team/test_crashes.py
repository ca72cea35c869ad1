"""Teams under random schedules of tasks, messages, refusals and stops, killed at any record."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from fulmen.agent import Archive, Trajectory
from tests.agent.team.random_team import MAX_TOKENS
from tests.examples import examples
from tests.sandbox.helpers import skip_without_sandbox
from tests.tiny import write_checkpoint

PROGRAM = (sys.executable, "-m", "tests.agent.team.random_team")
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True, scope="module")
def _sandbox() -> None:
    skip_without_sandbox()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("m2"), "m2")


@given(st.integers(0, 2**32), st.lists(st.integers(1, 60), max_size=3))
@example(0, [3, 5, 10])
@settings(max_examples=examples(20), deadline=None, phases=[Phase.explicit, Phase.generate])
def test_nothing_is_lost_or_done_twice_wherever_a_team_is_killed(
    checkpoint: Path, seed: int, kills: list[int]
) -> None:
    with TemporaryDirectory() as name:
        root = Path(name)
        (root / "folder").mkdir()
        (root / "folder" / "a").write_text("1\n2\n3\n")
        for killed_at in (*kills, 0):
            done = subprocess.run(
                [*PROGRAM, str(root), str(checkpoint), str(seed), str(killed_at)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=120,
            )
            if done.returncode == 1 and "is done, say what to do next" in done.stderr:
                break  # the one before came to its end
            assert done.returncode in (0, -9), done.stderr
            check_gone(root)
            if done.returncode == 0:
                break
        check_outcome(root)


def check_gone(root: Path) -> None:
    """Check that no process of a team that was killed lives on."""
    for _ in range(100):
        commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if is_(path)]
        if not any(str(root).encode() in command for command in commands):
            return
        time.sleep(0.05)
    raise AssertionError("a process has outlived its team")


def is_(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:
        return False


def check_outcome(root: Path) -> None:
    """Check what is on disk of a team that came to its end."""
    archive = Archive(root / "runs")
    runs = {"lead": archive.runs.open("run").trajectory}
    for name in archive.team("run").runs.names():
        with archive.team("run").runs.open(name) as run:  # nobody holds it
            runs[name.removeprefix("run.")] = run.trajectory
    path = root / "runs" / "run" / "team" / "team.jsonl"
    notes = [json.loads(one) for one in path.read_text().splitlines()] if path.exists() else []
    check_messages(notes, runs)
    check_order([json.loads(one) for one in (root / "order").read_text().splitlines()])
    check_tasks(notes)
    assert sum(one.num_new_tokens for one in runs.values()) <= MAX_TOKENS
    for name, one in runs.items():
        assert all(step.is_whole for step in one.steps[:-1]), name
    assert not (root / "folder" / "made").exists()  # only a worker may, in its copy
    assert not (root / "worktrees").exists()


def check_messages(notes: list[Any], runs: Mapping[str, Trajectory]) -> None:
    """Check that each message was read once, by the one agent it was meant for, or went back, or
    waits for the lead."""
    letters = {one["letter"]["id"]: one["letter"] for one in notes if one.get("letter")}
    heard = Counter(id for run in runs.values() for id in run.heard)
    for name, run in runs.items():
        assert all(letters[id]["to"] == name for id in run.heard)
    gone = Counter(one["message"] for one in notes if one["type"] in ("taken", "returned"))
    returned = {one["message"] for one in notes if one["type"] == "returned"}
    assert not [id for id, count in (heard | gone).items() if count > 1]
    assert set(gone) - returned <= set(heard)
    assert not returned & set(heard)
    for id in set(letters) - set(heard) - returned:
        assert letters[id]["to"] == "lead", id


def check_order(records: list[tuple[str, Any]]) -> None:
    """Check that no message comes later than behind the call that was under way, and none twice."""
    num_calls: Counter[str] = Counter()
    sent: dict[str, tuple[str, int]] = {}
    read: set[str] = set()
    for name, record in records:
        if name == "team":
            if letter := record.get("letter"):
                sent[letter["id"]] = (letter["to"], num_calls[letter["to"]])
            continue
        agent = "lead" if name == "run" else name.removeprefix("run.")
        if record["type"] == "result" and "was not made" not in record["text"]:
            num_calls[agent] += 1
        elif record["type"] == "said" and "sender" in record:
            to, count = sent[id := record["sender"]["message"]]
            assert to == agent
            assert num_calls[agent] - count <= 1, id
            assert id not in read
            read.add(id)


def check_tasks(notes: list[Any]) -> None:
    """Check that each task of an agent ends once, before the next one begins, and that no name is
    that of two agents."""
    is_working: dict[str, bool] = {}
    for one in notes:
        match one["type"]:
            case "began":
                assert one["agent"] not in is_working
                is_working[one["agent"]] = False
            case "task":
                assert not is_working[one["agent"]]
                is_working[one["agent"]] = True
            case "ended":
                assert is_working[one["agent"]]
                is_working[one["agent"]] = False
    assert not any(is_working.values())
