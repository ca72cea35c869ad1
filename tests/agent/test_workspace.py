"""Snapshots: every state of a folder comes back, and nothing else is touched."""

import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fulmen.agent import ChangedSince, Limits, Snapshots
from tests.agent.folders import Changes, State, state_of
from tests.examples import examples

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="snapshots need a POSIX system"),
    pytest.mark.skipif(shutil.which("git") is None, reason="snapshots need git"),
]


@pytest.fixture
def permissions(tmp_path: Path) -> None:
    """Skip a test where permissions keep nobody out, as they do not keep out an administrator."""
    closed = tmp_path / "closed"
    closed.touch(mode=0)
    if os.access(closed, os.R_OK):
        pytest.skip("the user of the tests may read everything")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


@pytest.fixture
def snapshots(folder: Path, tmp_path: Path) -> Snapshots:
    return Snapshots(folder, tmp_path / "repository")


def git(folder: Path, *words: str, **more: Any) -> bytes:
    """Run git as a user without configuration does."""
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CEILING_DIRECTORIES": str(folder.parent),
    }
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    command = ["git", *identity, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_sound(snapshots: Snapshots) -> None:
    """Let git examine all objects of the repository."""
    repository = snapshots._repository.path
    words = ["--git-dir", str(repository), "-c", "fsck.badFilemode=ignore", "fsck", "--strict"]
    assert git(repository, *words, "--full", "--no-dangling") == b""


def reasons(skipped: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return dict(skipped)


# Every state comes back


def play(folder: Path, repository: Path, seed: int, num_steps: int) -> None:
    """Change a folder at random, take snapshots and go back to them; compare with plain copies."""
    choice = random.Random(seed)
    changes = Changes(folder, choice)
    snapshots = Snapshots(folder, repository)
    past: list[tuple[str, State]] = []
    last: str | None = None
    num_kept = 0
    for step in range(num_steps):
        for _ in range(choice.randrange(4)):
            changes.any()
        if choice.random() < 0.1:
            changes.repository()
        if choice.random() < 0.1:
            snapshots = Snapshots(folder, repository)  # another process
        if choice.random() < 0.02:
            for number in range(num_kept, len(past)):
                snapshots.keep(f"run/{number}", past[number][0])
            num_kept = len(past)
            if last is not None:
                snapshots.keep("last", last)
            snapshots.prune(older_than_seconds=0)
        now = state_of(folder)
        if past and choice.random() < 0.4:
            id, then = choice.choice(past)
            done = snapshots.restore(id, expected=last, overwrite=True)
            past.append((done.before.id, now))
            held = {path for path, reason in done.left if "in no snapshot" in reason}
            found = state_of(folder)
            for path in held:  # a repository is in it, which is left
                assert found.pop(path)[0] == "folder"
            assert found == {path: then[path] for path in then if path not in held}, (seed, step)
            last = id if not held else snapshots.take("held").id
            continue
        taken = snapshots.take(f"step {step}")
        assert taken.skipped == ()
        past.append((taken.id, now))
        last = taken.id
    check_sound(snapshots)


@settings(
    max_examples=examples(20),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32))
def test_a_restored_folder_is_the_plain_copy(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("play")
    (place / "folder").mkdir()
    play(place / "folder", place / "repository", seed, 25)


@pytest.mark.slow
def test_a_thousand_steps_can_be_gone_back_to(folder: Path, tmp_path: Path) -> None:
    play(folder, tmp_path / "repository", 1, 1000)


def test_an_export_is_the_folder(folder: Path, snapshots: Snapshots, tmp_path: Path) -> None:
    changes = Changes(folder, random.Random(3))
    for _ in range(60):
        changes.any()
    taken = snapshots.take("all")
    snapshots.export(taken.id, tmp_path / "fork")
    assert state_of(tmp_path / "fork") == state_of(folder)
    with pytest.raises(ValueError, match="is not empty"):
        snapshots.export(taken.id, tmp_path / "fork")


def test_equal_folders_are_equal_snapshots(folder: Path, tmp_path: Path) -> None:
    (folder / "a").write_text("1")
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    first = Snapshots(folder, tmp_path / "one").take("x")
    assert Snapshots(other, tmp_path / "two").take("x") == first
    assert Snapshots(other, tmp_path / "two").read(first.id) == first


def test_only_what_differs_is_written(folder: Path, snapshots: Snapshots) -> None:
    for name in "abc":
        (folder / name).write_text(name)
    before = snapshots.take("")
    times = {name: (folder / name).stat().st_ctime_ns for name in "ac"}
    (folder / "b").write_text("other")
    done = snapshots.restore(before.id, expected=None)
    assert (done.num_written, done.num_deleted, done.left) == (1, 0, ())
    assert times == {name: (folder / name).stat().st_ctime_ns for name in "ac"}
    assert snapshots.restore(before.id, expected=None).num_written == 0


def test_a_change_within_one_tick_is_seen(folder: Path, snapshots: Snapshots) -> None:
    file = folder / "a"
    for step in range(100):
        file.write_bytes(b"%03d" % step)
        status = file.stat()
        first = snapshots.take("")
        file.write_bytes(b"x%02d" % (step % 100))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as tools do that hide it
        assert snapshots.take("").tree != first.tree


def test_a_changed_file_among_many_is_the_only_one_read(
    folder: Path, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(200):
        (folder / f"{number}").write_text(f"{number}")
    time.sleep(0.1)  # so that their times are settled
    snapshots.take("")
    (folder / "7").write_text("seven")
    opened: list[object] = []
    real = os.open

    def watched(path: Any, *arguments: Any, **more: Any) -> int:
        opened.append(path)
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", watched)
    snapshots.take("")
    assert [name for name in opened if str(name).isdecimal()] == ["7"]


# Changes of others


def test_a_change_of_a_person_is_not_overwritten(folder: Path, snapshots: Snapshots) -> None:
    (folder / "a").write_text("1")
    (folder / "b").write_text("1")
    old = snapshots.take("old")
    (folder / "a").write_text("2")
    last = snapshots.take("last")
    (folder / "b").write_text("mine")
    (folder / "c").write_text("mine")
    before = state_of(folder)
    with pytest.raises(ChangedSince, match=r"changed since the last snapshot.*: b, c") as caught:
        snapshots.restore(old.id, expected=last.id)
    assert caught.value.paths == ("b", "c")
    assert state_of(folder) == before
    done = snapshots.restore(old.id, expected=last.id, overwrite=True)
    assert (folder / "b").read_text() == "1"
    assert not (folder / "c").exists()
    snapshots.restore(done.before.id, expected=old.id)
    assert state_of(folder) == before


def test_a_change_that_is_not_in_the_way_is_no_reason_to_ask(
    folder: Path, snapshots: Snapshots
) -> None:
    (folder / "a").write_text("1")
    old = snapshots.take("old")
    (folder / "a").write_text("2")
    last = snapshots.take("last")
    (folder / "a").write_text("1")  # back by hand: nothing is overwritten
    assert snapshots.restore(old.id, expected=last.id).num_written == 0


def test_a_deletion_by_a_person_is_asked_about(folder: Path, snapshots: Snapshots) -> None:
    (folder / "a").write_text("1")
    last = snapshots.take("")
    (folder / "a").unlink()
    with pytest.raises(ChangedSince):
        snapshots.restore(last.id, expected=last.id)
    snapshots.restore(last.id, expected=last.id, overwrite=True)
    assert (folder / "a").read_text() == "1"


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
    snapshots = Snapshots(folder, tmp_path / "r", limits=Limits(max_file_bytes=10))
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
    place = os.open(folder, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d" * 200, dir_fd=place)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
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


# Differences


def test_changes_are_named_by_kind(folder: Path, snapshots: Snapshots) -> None:
    for name in ("gone", "changed", "mode", "type", "binary"):
        (folder / name).write_text("1\n2\n")
    (folder / "left").mkdir()
    old = snapshots.take("")
    (folder / "gone").unlink()
    (folder / "changed").write_text("1\n3\n4\n")
    (folder / "mode").chmod(0o600)
    (folder / "type").unlink()
    (folder / "type").symlink_to("1")
    (folder / "binary").write_bytes(b"\0")
    (folder / "left").rmdir()
    (folder / "empty").mkdir()
    (folder / "new").mkdir()
    (folder / "new" / "a").write_text("1\n")
    new = snapshots.take("")
    found = {
        c.path: (c.kind, c.num_added, c.num_deleted) for c in snapshots.changes(old.id, new.id)
    }
    assert found.pop("type")[0] == "type"
    assert found == {
        "gone": ("deleted", 0, 2),
        "changed": ("changed", 2, 1),
        "mode": ("mode", 0, 0),
        "binary": ("changed", None, None),
        "left/": ("deleted", None, None),
        "empty/": ("added", None, None),
        "new/a": ("added", 1, 0),
    }
    assert snapshots.changes(old.id, old.id) == []
    back = {c.path: c.kind for c in snapshots.changes(new.id, old.id)}
    assert back["gone"] == "added"
    assert back["new/a"] == "deleted"


def text_only(state: State) -> State:
    """Return what a diff carries: no folders, and of permissions the one to execute."""
    kept: State = {}
    for path, (kind, *rest) in state.items():
        if kind == "file":
            kept[path] = (kind, bool(rest[0] & 0o100), rest[1])  # type: ignore[operator]
        elif kind == "link":
            kept[path] = (kind, *rest)
    return kept


@settings(
    max_examples=examples(25),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32), context=st.integers(1, 5))
def test_a_diff_applied_to_the_old_state_gives_the_new_one(
    seed: int, context: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("diff")
    folder, choice = place / "folder", random.Random(seed)
    folder.mkdir()
    snapshots = Snapshots(folder, place / "repository")
    changes = Changes(folder, choice)
    ids = []
    for _ in range(2):
        for _ in range(15):
            changes.any()
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.chmod(0o755 if choice.random() < 0.3 else 0o644)
                path.write_bytes(
                    b"".join(choice.choice([b"a\n", b"b\r\n", b"\xff"]) for _ in "123")
                )
        ids.append(snapshots.take("").id)
    text = snapshots.diff(*ids, context=context).encode(errors="surrogateescape")
    old = place / "old"
    snapshots.export(ids[0], old)
    for inner, _, _ in os.walk(old, topdown=False):
        with suppress(OSError):  # git does not know empty folders, and keeps those in a folder
            os.rmdir(inner)
    old.mkdir(exist_ok=True)
    if text:
        git(old, "apply", "--whitespace=nowarn", input=text)
    assert text_only(state_of(old)) == text_only(state_of(folder))


def test_a_diff_finds_renames_keeps_to_paths_and_is_cut(folder: Path, snapshots: Snapshots) -> None:
    (folder / "old").write_text("".join(f"{n}\n" for n in range(50)))
    (folder / "*").write_text("1\n")
    first = snapshots.take("")
    (folder / "old").rename(folder / "new")
    (folder / "*").write_text("2\n")
    (folder / "binary").write_bytes(b"\0")
    second = snapshots.take("")
    text = snapshots.diff(first.id, second.id)
    assert "rename from old\nrename to new\n" in text
    assert "Binary files /dev/null and b/binary differ" in text
    assert snapshots.diff(first.id, second.id, paths=["*"]).count("diff --git") == 1
    assert snapshots.diff(first.id, second.id, paths=[]) == ""
    (folder / "long").write_text("0123456789\n" * 300_000)
    third = snapshots.take("")
    cut = snapshots.diff(second.id, third.id)
    assert cut.endswith("bytes\n")
    assert "... the diff is cut after 2,0" in cut.replace("after 2", "after 2,", 1)


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
    for text in ("", "[]", '{"a": 1}', "[" * 100_000, '[1, "x", {}]', '["x", [1, null, {}]]'):
        (repository / "cache.json").write_text(text)
        assert Snapshots(folder, repository).take("") == first


def test_processes_take_turns(folder: Path, tmp_path: Path) -> None:
    for number in range(100):
        (folder / f"{number}").write_text(f"{number}" * 50)
    program = (
        "import sys\nfrom pathlib import Path\nfrom fulmen.agent import Snapshots\n"
        "found = Snapshots(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "for step in range(20): print(found.take('same').id)\n"
    )
    command = [sys.executable, "-c", program, str(folder), str(tmp_path / "repository")]
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
        command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "repository"), *ids]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
            process.stdout.readline()
            time.sleep(choice.random() * 0.3)
            process.send_signal(kind)
            process.wait(timeout=20)
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


def test_modes_are_those_of_the_system(folder: Path, snapshots: Snapshots) -> None:
    for mode in range(0, 0o1000, 7):
        (folder / f"f{mode}").write_text("")
        (folder / f"f{mode}").chmod(mode | 0o400)
        (folder / f"d{mode}").mkdir()
        (folder / f"d{mode}").chmod(mode | 0o500)
    before = state_of(folder)
    taken = snapshots.take("")
    for path in folder.iterdir():
        path.chmod(0o700)
    snapshots.restore(taken.id, expected=None)
    assert state_of(folder) == before
    assert stat.S_IMODE((folder / "d7").stat().st_mode) == 7 | 0o500
