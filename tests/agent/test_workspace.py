"""Snapshots: every state of a folder comes back, and differences are told."""

import os
import random
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fulmen.agent import ChangedSince, Snapshots
from tests.agent.folders import Changes, State, check_sound, git, needs_git, state_of
from tests.examples import examples

pytestmark = needs_git


# Every state comes back


def lost_paths(known: State, now: State, then: State) -> list[str]:
    """Return the files and links that were changed since a known state, and that another one has
    otherwise: going to that one would overwrite them."""

    def leaf(state: State, path: str) -> tuple[object, ...] | None:
        found = state.get(path)
        return None if found is None or found[0] == "folder" else found

    return sorted(
        path
        for path in known.keys() | now.keys() | then.keys()
        if leaf(known, path) != leaf(now, path) != leaf(then, path)
    )


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
            overwrite = choice.random() < 0.7
            lost = [] if overwrite or last is None else lost_paths(dict(past)[last], now, then)
            if lost:
                with pytest.raises(ChangedSince) as caught:
                    snapshots.restore(id, expected=last)
                assert list(caught.value.paths) == lost
                assert state_of(folder) == now
                continue
            done = snapshots.restore(id, expected=last, overwrite=overwrite)
            assert done.before is not None
            past.append((done.before.id, now))
            held = {path for path, reason in done.left if "in no snapshot" in reason}
            found_all = state_of(folder)
            found = dict(found_all)
            for path in held:  # a repository is in it, which is left
                assert found.pop(path)[0] == "folder"
            assert found == {path: then[path] for path in then if path not in held}, (seed, step)
            last = id
            if held:
                last = snapshots.take("held").id
                past.append((last, found_all))
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
    assert done.before is not None
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
    links = {path for path, found in state_of(old).items() if found[0] == "link"}
    # git cannot apply its own diff where a link is renamed and a folder takes its place.
    assume(not any(state_of(folder).get(path, ("",))[0] == "folder" for path in links))
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
