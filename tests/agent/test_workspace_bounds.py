"""Snapshots touch nothing else, and say what they leave out."""

import os
import random
import shutil
import socket
import subprocess
import threading
import time
from hashlib import sha256
from pathlib import Path

import pytest

from fulmen.agent import Limits, Snapshots
from tests.agent.folders import Changes, check_sound, git, needs_git, reasons, state_of
from tests.deep import make_deep

pytestmark = needs_git


# Nothing outside


def test_a_link_in_place_of_a_folder_is_replaced_and_not_followed(
    folder: Path, snapshots: Snapshots, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_text("theirs")
    (folder / "d").mkdir()
    (folder / "d" / "a").write_text("ours")
    (folder / "f").write_text("ours")
    taken = snapshots.take("")
    shutil.rmtree(folder / "d")
    (folder / "d").symlink_to(outside)
    (folder / "f").unlink()
    (folder / "f").symlink_to(outside / "a")
    linked = snapshots.take("linked")
    assert linked.skipped == ()
    snapshots.restore(taken.id, expected=linked.id)
    assert (folder / "d" / "a").read_text() == (folder / "f").read_text() == "ours"
    snapshots.restore(linked.id, expected=taken.id)
    assert os.readlink(folder / "d") == str(outside)
    assert state_of(outside) == {"a": ("file", 0o644, b"theirs")}


def test_a_hard_link_to_a_file_elsewhere_is_cut(
    folder: Path, snapshots: Snapshots, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("theirs")
    outside.chmod(0o600)
    (folder / "a").write_text("ours")
    (folder / "b").write_text("theirs")
    (folder / "b").chmod(0o755)
    taken = snapshots.take("")
    for name in "ab":
        (folder / name).unlink()
        os.link(outside, folder / name)
    snapshots.restore(taken.id, expected=None)
    assert (outside.read_text(), outside.stat().st_mode & 0o777) == ("theirs", 0o600)
    assert (folder / "a").read_text() == "ours"
    assert (folder / "b").stat().st_mode & 0o777 == 0o755


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_repository_of_the_user_stays_as_it_is(folder: Path, snapshots: Snapshots) -> None:
    git(folder, "init", "-q")
    (folder / "kept").write_text("1")
    (folder / "changed").write_text("1")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "one")
    (folder / "changed").write_text("2")
    git(folder, "add", "changed")
    (folder / "changed").write_text("3")
    (folder / "new").write_text("4")
    status = git(folder, "--no-optional-locks", "status", "--porcelain")
    before = bytes_of(folder / ".git")
    taken = snapshots.take("")
    for name in ("kept", "new"):
        (folder / name).unlink()
    (folder / "changed").write_text("5")
    snapshots.restore(taken.id, expected=None)
    snapshots.keep("a", taken.id)
    snapshots.prune(older_than_seconds=0)
    assert bytes_of(folder / ".git") == before
    assert git(folder, "--no-optional-locks", "status", "--porcelain") == status


def test_a_worktree_and_a_submodule_are_folders_like_others(
    folder: Path, snapshots: Snapshots, tmp_path: Path
) -> None:
    main = tmp_path / "main"
    main.mkdir()
    git(main, "init", "-q")
    (main / "a").write_text("1")
    git(main, "add", ".")
    git(main, "commit", "-q", "-m", "one")
    (main / ".git" / "info" / "exclude").write_text("*.log\n")
    folder.rmdir()
    git(main, "worktree", "add", "-q", str(folder))
    git(folder, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(main), "sub")
    pointers = [(folder / ".git").read_text(), (folder / "sub" / ".git").read_text()]
    limits = Limits(max_ignored_files=0)
    snapshots = Snapshots(folder, tmp_path / "elsewhere", limits=limits)
    (folder / "x.log").write_text("")
    taken = snapshots.take("")
    assert [path for path, _ in taken.skipped] == ["x.log"]  # the exclude file is main's
    (folder / "sub" / "a").unlink()
    (folder / "a").unlink()
    snapshots.restore(taken.id, expected=None)
    assert (folder / "sub" / "a").read_text() == (folder / "a").read_text() == "1"
    assert [(folder / ".git").read_text(), (folder / "sub" / ".git").read_text()] == pointers


def test_configuration_and_environment_of_the_user_change_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"one\r\ntwo\n$Id$\n"
    (folder / "a.txt").write_bytes(content)
    plain = Snapshots(folder, tmp_path / "one").take("")
    home = tmp_path / "home"
    home.mkdir()
    trap = f"touch {tmp_path}/trap"
    config = f'[core]\nautocrlf=true\nfsmonitor="{trap}"\nhooksPath={home}\n'
    config += f'[filter "x"]\nclean="{trap}"\nsmudge="{trap}"\n[diff "x"]\ntextconv="{trap}"\n'
    config += (
        f'command="{trap}"\n[diff]\nexternal="{trap}"\nnoprefix=true\n[commit]\ngpgSign=true\n'
    )
    (home / ".gitconfig").write_text(config)
    monkeypatch.setenv("HOME", str(home))
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_OBJECT_DIRECTORY"):
        monkeypatch.setenv(name, str(home / name))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", trap)
    (folder / ".gitattributes").write_text("* text eol=crlf filter=x diff=x ident export-ignore\n")
    snapshots = Snapshots(folder, tmp_path / "two")
    old = snapshots.take("")
    (folder / "a.txt").write_bytes(b"one\n")
    new = snapshots.take("")
    assert "+++ b/a.txt" in snapshots.diff(old.id, new.id)
    assert len(snapshots.changes(old.id, new.id)) == 1
    snapshots.restore(old.id, expected=new.id)
    assert (folder / "a.txt").read_bytes() == content
    (folder / ".gitattributes").unlink()
    assert snapshots.take("").id == plain.id
    snapshots.prune(older_than_seconds=0)
    assert not (tmp_path / "trap").exists()
    assert os.listdir(home) == [".gitconfig"]


# What is left out


def test_ignored_files_are_in_it_while_they_are_small(folder: Path, tmp_path: Path) -> None:
    limits = Limits(max_ignored_bytes=1000)
    snapshots = Snapshots(folder, tmp_path / "repository", limits=limits)
    (folder / ".gitignore").write_text("*.log\nbuild/\n.env\n")
    (folder / ".env").write_text("small")
    (folder / "build").mkdir()
    (folder / "build" / "a").write_text("x" * 500)
    (folder / "big.log").write_text("x" * 600)
    taken = snapshots.take("")
    assert reasons(taken.skipped) == {
        "big.log": "git ignores it, and such files are large together"
    }
    (folder / ".env").write_text("other")
    shutil.rmtree(folder / "build")
    (folder / "big.log").write_text("small now")
    done = snapshots.restore(taken.id, expected=None)
    assert (folder / ".env").read_text() == "small"
    assert (folder / "build" / "a").exists()
    assert (folder / "big.log").read_text() == "small now"
    assert [path for path, _ in done.left] == ["big.log"]


def test_an_ignored_folder_is_in_it_as_a_whole_or_not(folder: Path, tmp_path: Path) -> None:
    limits = Limits(max_ignored_files=5)
    snapshots = Snapshots(folder, tmp_path / "repository", limits=limits)
    (folder / ".gitignore").write_text("node_modules\n")
    (folder / "node_modules" / "deep").mkdir(parents=True)
    for number in range(9):
        (folder / "node_modules" / "deep" / f"{number}").write_text("")
    (folder / "src").write_text("1")
    taken = snapshots.take("")
    assert [path for path, _ in taken.skipped] == ["node_modules/"]
    (folder / "src").write_text("2")
    snapshots.restore(taken.id, expected=None)
    assert len(list((folder / "node_modules" / "deep").iterdir())) == 9


def test_a_large_file_stays_where_it_is(folder: Path, tmp_path: Path) -> None:
    (folder / "old").write_text("was small enough")
    Snapshots(folder, tmp_path / "r").take("")
    time.sleep(0.1)
    Snapshots(folder, tmp_path / "r").take("")
    snapshots = Snapshots(folder, tmp_path / "r", limits=Limits(max_file_bytes=10))
    assert reasons(snapshots.take("").skipped) == {"old": "more than 10 bytes"}
    (folder / "old").unlink()
    (folder / "d").mkdir()
    (folder / "d" / "a").write_text("small")
    small = snapshots.take("")
    (folder / "d" / "a").write_text("much too large")
    large = snapshots.take("")
    assert reasons(large.skipped) == {"d/a": "more than 10 bytes"}
    done = snapshots.restore(small.id, expected=None)
    assert (folder / "d" / "a").read_text() == "much too large"
    assert reasons(done.left) == {"d/a": "it could not be read, so it was not replaced"}


def test_what_is_no_file_is_told_and_left(folder: Path, snapshots: Snapshots) -> None:
    empty = snapshots.take("")
    os.mkfifo(folder / "pipe")
    (folder / "d").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        place = os.open(folder, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{place}/socket")
        os.close(place)
        (folder / ".gitignore").mkdir()
        os.mkfifo(folder / "d" / ".gitignore")
        taken = snapshots.take("")
    assert reasons(taken.skipped) == {
        "d/.gitignore": "a pipe",
        "pipe": "a pipe",
        "socket": "a socket",
    }
    done = snapshots.restore(empty.id, expected=None)
    assert sorted(os.listdir(folder)) == ["d", "pipe", "socket"]
    assert [path for path, _ in done.left] == ["d"]


def test_a_folder_that_another_system_takes_for_git_is_told(
    folder: Path, snapshots: Snapshots
) -> None:
    (folder / ".Git").mkdir()
    assert reasons(snapshots.take("").skipped) == {".Git/": "on some systems it is .git"}


def test_a_nested_repository_is_left_when_its_files_go(folder: Path, snapshots: Snapshots) -> None:
    empty = snapshots.take("")
    (folder / "sub" / ".git").mkdir(parents=True)
    (folder / "sub" / ".git" / "config").write_text("")
    (folder / "sub" / "a").write_text("1")
    taken = snapshots.take("")
    done = snapshots.restore(empty.id, expected=taken.id)
    assert [path for path, _ in done.left] == ["sub"]
    assert sorted(path.name for path in folder.rglob("*")) == [".git", "config", "sub"]
    snapshots.restore(taken.id, expected=None)
    assert (folder / "sub" / "a").read_text() == "1"


@pytest.mark.usefixtures("permissions")
def test_permissions_that_were_taken_come_back(folder: Path, snapshots: Snapshots) -> None:
    (folder / "d" / "e").mkdir(parents=True)
    (folder / "d" / "e" / "a").write_text("1")
    (folder / "b").write_text("2")
    time.sleep(0.1)
    before = state_of(folder)
    taken = snapshots.take("")
    (folder / "b").chmod(0)
    (folder / "d" / "e").chmod(0)
    (folder / "d").chmod(0)
    last = snapshots.take("")
    assert reasons(last.skipped) == {"d/": "permission denied"}
    done = snapshots.restore(taken.id, expected=last.id)
    assert done.left == ()
    assert state_of(folder) == before


@pytest.mark.usefixtures("permissions")
def test_a_read_only_folder_is_written_and_stays_read_only(
    folder: Path, snapshots: Snapshots
) -> None:
    (folder / "d").mkdir()
    (folder / "d" / "a").write_text("1")
    (folder / "d").chmod(0o555)
    taken = snapshots.take("")
    (folder / "d").chmod(0o755)
    (folder / "d" / "a").write_text("2")
    (folder / "d").chmod(0o555)
    assert snapshots.restore(taken.id, expected=None).left == ()
    assert (folder / "d" / "a").read_text() == "1"
    assert (folder / "d").stat().st_mode & 0o777 == 0o555


@pytest.mark.usefixtures("permissions")
def test_an_unreadable_file_is_told(folder: Path, snapshots: Snapshots) -> None:
    (folder / "a").write_text("1")
    (folder / "a").chmod(0)
    assert reasons(snapshots.take("").skipped) == {"a": "permission denied"}


# Hostile folders


def test_too_many_files_are_a_sentence(folder: Path, tmp_path: Path) -> None:
    (folder / "many").mkdir()
    for number in range(30):
        (folder / "many" / f"{number}").write_text("123456789")
    few = Snapshots(folder, tmp_path / "few", limits=Limits(max_files=20))
    with pytest.raises(ValueError, match=r"more than 20 files.*many/"):
        few.take("")
    short = Snapshots(folder, tmp_path / "short", limits=Limits(max_bytes=100))
    with pytest.raises(ValueError, match="more than 100 bytes"):
        short.take("")
    assert not list((tmp_path / "short" / "objects").glob("??/*"))


def test_deep_folders_end_somewhere(folder: Path, snapshots: Snapshots) -> None:
    make_deep(folder, "d" * 200, 300)
    taken = snapshots.take("")
    (skipped,) = taken.skipped
    assert skipped.reason == "more than 100 folders in one another"
    assert skipped.path == f"{'d' * 200}/" * 101
    (folder / "a").write_text("")
    assert snapshots.restore(taken.id, expected=None).num_deleted == 1
    subprocess.run(["rm", "-rf", folder / ("d" * 200)], check=True)


def test_a_folder_that_changes_all_the_time_can_be_taken_and_restored(
    folder: Path, snapshots: Snapshots
) -> None:
    (folder / "calm").write_text("1")
    calm = snapshots.take("")
    is_over = threading.Event()

    def churn() -> None:
        changes = Changes(folder / "wild", random.Random(1))
        while not is_over.is_set():
            try:
                (folder / "wild").mkdir(exist_ok=True)
                changes.any()
                with (folder / "wild" / "log").open("ab") as log:
                    log.write(b"x" * 10_000)
            except OSError:
                continue

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            snapshots.take("")
            (folder / "calm").write_text("2")
            snapshots.restore(calm.id, expected=None)
            assert (folder / "calm").read_text() == "1"
    finally:
        is_over.set()
        thread.join()
    snapshots.restore(calm.id, expected=None)
    assert state_of(folder) == {"calm": ("file", 0o644, b"1")}
    check_sound(snapshots)
