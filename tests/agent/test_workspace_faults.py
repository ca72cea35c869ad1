"""Snapshots under wrong input, damage, other processes and sudden ends."""

import os
import random
import shutil
import signal
import subprocess
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from fulmen.agent import Limits, Snapshots
from tests.agent.folders import check_sound, git, needs_git, state_of
from tests.examples import examples
from tests.warm import python

pytestmark = needs_git


# Wrong input


@pytest.mark.parametrize("id", ["", "x", "0" * 64, "HEAD", "--all", "a" * 10_000])
def test_an_unknown_snapshot_is_a_sentence(id: str, folder: Path, snapshots: Snapshots) -> None:
    (folder / "a").write_text("1")
    taken = snapshots.take("")
    for call in (
        lambda: snapshots.restore(id, expected=None),
        lambda: snapshots.restore(taken.id, expected=id),
        lambda: snapshots.diff(taken.id, id),
        lambda: snapshots.changes(id, taken.id),
        lambda: snapshots.keep("a", id),
        lambda: snapshots.read(taken.tree),
    ):
        with pytest.raises(ValueError, match=r"no snapshot's id|has no commit"):
            call()


@pytest.mark.parametrize("name", ["", "-a", "a//b", "../a", "a..b", "a.lock", "a/", "é", "a" * 300])
def test_a_wrong_name_is_a_sentence(name: str, snapshots: Snapshots) -> None:
    taken = snapshots.take("")
    for call in (lambda: snapshots.keep(name, taken.id), lambda: snapshots.drop(name)):
        with pytest.raises(ValueError, match="is no name for a snapshot"):
            call()


def test_wrong_arguments_are_sentences(folder: Path, snapshots: Snapshots, tmp_path: Path) -> None:
    taken = snapshots.take("")
    with pytest.raises(ValueError, match="at most 10,000 fit"):
        snapshots.take("x" * 20_000)
    with pytest.raises(ValueError, match="context is -1"):
        snapshots.diff(taken.id, taken.id, context=-1)
    for path in ("/etc", "../a", "", "a\0"):
        with pytest.raises(ValueError, match="is no path below"):
            snapshots.diff(taken.id, taken.id, paths=[path])
    with pytest.raises(ValueError, match="max_files is 0"):
        Limits(max_files=0)
    with pytest.raises(ValueError, match="is no folder"):
        Snapshots(tmp_path / "none", tmp_path / "r")
    for place in (folder / "r", folder, tmp_path):
        with pytest.raises(ValueError, match="must lie outside"):
            Snapshots(folder, place)
    git(tmp_path, "init", "-q", "--bare", "theirs")
    before = sorted(os.listdir(tmp_path / "theirs"))
    with pytest.raises(ValueError, match="is not ours"):
        Snapshots(folder, tmp_path / "theirs")
    assert sorted(os.listdir(tmp_path / "theirs")) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    with pytest.raises(ValueError, match="holds other files"):
        Snapshots(folder, tmp_path / "full")


def test_without_git_there_is_a_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="the package git"):
        Snapshots(folder, tmp_path / "r")


# The repository


def test_what_is_kept_stays_and_the_rest_goes(folder: Path, snapshots: Snapshots) -> None:
    (folder / "a").write_text("1")
    first = snapshots.take("first")
    (folder / "a").write_text("2")
    second = snapshots.take("second")
    (folder / "a").write_text("3")
    third = snapshots.take("third")
    snapshots.keep("run/1", first.id)
    snapshots.keep("run/2", second.id)
    snapshots.keep("other", third.id)
    assert snapshots.kept() == {"run/1": first.id, "run/2": second.id, "other": third.id}
    snapshots.prune()
    assert snapshots.read(second.id).label == "second"
    assert snapshots.drop("run") == 2
    snapshots.prune()  # it is not old enough
    snapshots.read(second.id)
    snapshots.prune(older_than_seconds=0)
    with pytest.raises(ValueError, match="has no commit"):
        snapshots.read(second.id)
    snapshots.restore(third.id, expected=None)
    again = snapshots.take("first")
    (folder / "a").write_text("1")
    assert snapshots.take("first").id == first.id != again.id
    check_sound(snapshots)


def test_a_prune_by_another_process_takes_nothing_that_the_cache_names(
    folder: Path, snapshots: Snapshots, tmp_path: Path
) -> None:
    for number in range(5):
        (folder / f"{number}").write_text(f"{number}")
        time.sleep(0.06)
        snapshots.take("")
    Snapshots(folder, tmp_path / "repository").prune(older_than_seconds=0)
    taken = snapshots.take("")
    before = state_of(folder)
    for number in range(5):
        (folder / f"{number}").unlink()
    snapshots.restore(taken.id, expected=None)
    assert state_of(folder) == before


def test_forks_share_a_repository(folder: Path, snapshots: Snapshots, tmp_path: Path) -> None:
    (folder / "a").write_text("1")
    time.sleep(0.1)
    first = snapshots.take("")
    snapshots.export(first.id, tmp_path / "fork")
    fork = Snapshots(tmp_path / "fork", tmp_path / "repository")
    (tmp_path / "fork" / "a").write_text("2")
    time.sleep(0.1)
    second = fork.take("")
    readings = tmp_path / "repository" / "readings"
    assert len(list(readings.iterdir())) == 2
    assert snapshots.take("") == first
    snapshots.prune(older_than_seconds=0)
    assert fork.take("") == second
    assert snapshots.take("") == first
    assert snapshots.diff(first.id, second.id).endswith(
        "-1\n\\ No newline at end of file\n+2\n\\ No newline at end of file\n"
    )
    for cache in readings.iterdir():
        os.utime(cache, (0, 0))
    snapshots.prune(older_than_seconds=0)
    assert list(readings.iterdir()) == []
    assert fork.take("") == second
    fork.restore(second.id, expected=second.id)
    check_sound(snapshots)


def test_a_damaged_repository_changes_nothing(
    folder: Path, snapshots: Snapshots, tmp_path: Path
) -> None:
    (folder / "a").write_text("1")
    (folder / "b").write_text("1 too")
    taken = snapshots.take("")
    for name in "ab":
        (folder / name).write_text("2")
    before = state_of(folder)
    blob = git(tmp_path, "--git-dir", "repository", "rev-parse", f"{taken.tree}:b").decode().strip()
    path = tmp_path / "repository" / "objects" / blob[:2] / blob[2:]
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(ValueError, match="lacks 1 objects of the snapshot"):
        snapshots.restore(taken.id, expected=None)
    assert state_of(folder) == before
    other = zlib.compress(b"blob 5\0other")
    for content in (b"", whole[:-3], whole[:5] + b"xx" + whole[7:], other):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged|lacks"):
            snapshots.restore(taken.id, expected=None)
        assert state_of(folder)["b"] == before["b"]
    path.write_bytes(whole)
    snapshots.restore(taken.id, expected=None)
    assert (folder / "b").read_text() == "1 too"


def test_files_that_the_cache_leaves_out_are_not_remembered(folder: Path, tmp_path: Path) -> None:
    (folder / "a").write_text("1")
    first = Snapshots(folder, tmp_path / "repository").take("")  # too young for the cache
    (folder / "a").unlink()
    assert Snapshots(folder, tmp_path / "repository").take("").tree != first.tree


def test_a_spoiled_cache_is_read_anew(folder: Path, tmp_path: Path) -> None:
    (folder / "a").write_text("1")
    repository = tmp_path / "repository"
    first = Snapshots(folder, repository).take("")
    for text in (
        "",
        "[]",
        "[[], []]",
        '{"a": 1}',
        "[" * 100_000,
        '[1, "x", {}]',
        '["x", [1, null, {}]]',
    ):
        (cache,) = (repository / "readings").iterdir()
        cache.write_text(text)
        assert Snapshots(folder, repository).take("") == first


def test_processes_take_turns(folder: Path, tmp_path: Path) -> None:
    for number in range(100):
        (folder / f"{number}").write_text(f"{number}" * 50)
    program = (
        "import sys\nfrom pathlib import Path\nfrom fulmen.agent import Snapshots\n"
        "found = Snapshots(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "for step in range(20): print(found.take('same').id)\n"
    )
    command = python("-c", program, folder, tmp_path / "repository")
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0].split() for process in running]
    assert {process.returncode for process in running} == {0}
    assert len({id for output in outputs for id in output}) == 1
    check_sound(Snapshots(folder, tmp_path / "repository"))


# Killed at any moment

KILLED = """
import sys
from pathlib import Path
from fulmen.agent import Snapshots
snapshots = Snapshots(Path(sys.argv[1]), Path(sys.argv[2]))
print(flush=True)
while True:
    for id in sys.argv[3:]:
        snapshots.restore(id, expected=None)
        snapshots.take("again")
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_leaves_files_old_or_new(
    kind: signal.Signals, folder: Path, snapshots: Snapshots, tmp_path: Path
) -> None:
    states, ids = [], []
    for letter in "xy":
        for number in range(150):
            place = folder / f"{number % 7}{letter if number % 2 else ''}"
            place.mkdir(exist_ok=True)
            (place / f"{number}").write_text(f"{letter}{number}" * 200)
        if letter == "y":
            shutil.rmtree(folder / "3")
            (folder / "3").write_text("a file")
        states.append(state_of(folder))
        ids.append(snapshots.take(letter).id)
    choice = random.Random(1)
    for _ in range(examples(12)):
        command = python("-c", KILLED, folder, tmp_path / "repository", *ids)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
            process.stdout.readline()
            time.sleep(choice.random() * 0.3)
            process.send_signal(kind)
            try:
                process.communicate(timeout=20)  # until it has ended
            finally:
                process.kill()
        for path, found in state_of(folder).items():
            if found[0] == "file" and ".fulmen-restoring-" not in path:
                assert found in (states[0].get(path), states[1].get(path)), path
        expected = choice.choice(ids)
        wanted = choice.randrange(2)
        # What is half restored is nobody's change: nothing is asked.
        done = snapshots.restore(ids[wanted], expected=expected, overwrite=True)
        assert done.left == ()
        assert state_of(folder) == states[wanted]
    check_sound(snapshots)


def test_a_restore_that_broke_off_is_completed_without_a_question(
    folder: Path, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        (folder / f"{number}").write_text("old")
    (folder / "d").mkdir()
    old, wanted = snapshots.take("old"), state_of(folder)
    for number in range(20):
        (folder / f"{number}").write_text("new")
    (folder / "d").rmdir()
    (folder / "d").symlink_to("1")
    last = snapshots.take("new")
    real, calls = os.replace, []

    def broken(*arguments: Any, **more: Any) -> None:
        calls.append(arguments)
        if len(calls) == 7:
            raise KeyboardInterrupt
        real(*arguments, **more)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(KeyboardInterrupt):
        snapshots.restore(old.id, expected=last.id)
    monkeypatch.setattr(os, "replace", real)
    (folder / f".fulmen-restoring-{'0' * 32}").write_text("half")
    assert state_of(folder) != wanted
    snapshots.restore(old.id, expected=last.id)
    assert state_of(folder) == wanted
