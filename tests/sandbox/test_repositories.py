"""Repositories that were made inside, or changed there: found however they are hidden."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from fulmen.sandbox import Sandbox, left
from fulmen.sandbox.repositories import Repositories
from tests.sandbox.helpers import EVIL, closed, inside, run_inside


def is_poisoned(place: Path) -> bool:
    """Let git look at a place as a person would; return whether that started a program."""
    subprocess.run(["git", "-C", place, "status"], capture_output=True)
    return any((one / "pwned").exists() for one in (place, place.parent))


@pytest.mark.parametrize(
    "hide",
    [
        "chmod 555 sub/.git sub",
        "chmod 300 sub",
        "chmod 0 sub/.git",
        "mkdir a z; chmod 0 a z; chmod 333 .",
        "chmod 111 sub/.git/config sub/.git/HEAD sub/.git; chmod 111 sub",
    ],
)
def test_a_repository_is_found_behind_closed_folders(tmp_path: Path, hide: str) -> None:
    """An ordinary user's may be closed to himself, and git need not mind."""
    folder = tmp_path / "folder"
    folder.mkdir()
    try:
        notes = closed(folder, f"git init -q sub; (cd sub; {EVIL}); {hide}")
    finally:
        for place in (folder, folder / "sub", folder / "sub/.git"):
            place.chmod(0o755)
    assert any("git does not see it" in note for note in notes)
    assert not is_poisoned(folder / "sub")


def test_a_failure_is_told_and_the_rest_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    failed: list[str] = []

    def fail_twice(name: str, *arguments: Any, **options: Any) -> None:
        if len(failed) == 2:
            rename(name, *arguments, **options)
            return
        failed.append(name)  # HEAD, then .git itself
        raise PermissionError(1, "Operation not permitted")

    for name in ("a", "b"):
        subprocess.run(["git", "init", "-q", tmp_path / name], check=True)
        subprocess.run(["git", "-C", tmp_path / name, *EVIL.split()[1:3], "x"], check=True)
    monkeypatch.setattr(os, "rename", fail_twice)
    notes = Repositories(roots=[tmp_path]).settle()
    assert len(notes) == 2
    assert sum("may hide a repository" in note for note in notes) == 1
    assert sum("git does not see it" in note for note in notes) == 1


def test_too_much_is_told(tmp_path: Path) -> None:
    command = "for i in $(seq 120); do mkdir a; cd a; done; git init -q .; " + EVIL
    assert any("it is too much" in note for note in closed(tmp_path, command))


@pytest.mark.parametrize(
    "command",
    [
        f"cd bare; git config core.bare false; git config core.worktree .; {EVIL}",
        "echo 'touch pwned' > bare/hooks/post-checkout",
        "rm -rf bare/hooks; mkdir bare/hooks; echo x > bare/hooks/post-checkout",
        "rm bare/config; mv bare/config x; echo x > bare/config",
    ],
)
def test_settings_of_a_bare_repository_are_read_only(tmp_path: Path, command: str) -> None:
    bare = tmp_path / "bare"
    subprocess.run(["git", "init", "-q", "--bare", bare], check=True)
    before = {path: path.read_bytes() for path in bare.rglob("*") if path.is_file()}
    more = "mkdir src; echo x > src/a; mv src old; mv bare src; mv old/* src"
    notes = closed(tmp_path, f"git clone -q bare work; ({command}); true; {more}; mv src bare")
    found = {path: path.read_bytes() for path in before}
    assert found == before
    assert not any("git does not see it" in note for note in notes)


def test_settings_that_are_added_to_a_bare_repository_are_taken_away(tmp_path: Path) -> None:
    bare = tmp_path / "src"
    subprocess.run(["git", "init", "-q", "--bare", bare], check=True)
    (bare / "config").write_text("[core]\nbare = false\n")
    command = f"""
    git init -q x; cd x; git config core.worktree {tmp_path}/src; {EVIL}; cd ..
    echo ../x/.git > src/commondir
    """
    notes = closed(tmp_path, command)
    assert any(f"{bare}/commondir was made inside, in a repository" in note for note in notes)
    assert not (bare / "commondir").exists()
    assert (bare / "HEAD").exists()
    assert not is_poisoned(bare)


def test_repositories_are_looked_for_when_that_is_asked_for(tmp_path: Path) -> None:
    async def use(sandbox: Sandbox) -> list[list[str]]:
        found = []
        for command in ("git init -q a", "true", f"cd a; {EVIL}"):
            await sandbox.run(command)
            found.append(await sandbox.settle_repositories())
        return found

    first, second, third = inside(tmp_path, use)
    assert first == [f"{tmp_path}/a was made a repository"]
    assert second == []
    assert ["git does not see it" in note for note in third] == [True]
    assert not is_poisoned(tmp_path / "a")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_repositories_of_a_sandbox_that_was_killed_are_found_by_the_next_one(
    tmp_path: Path, number: signal.Signals
) -> None:
    folder, records = tmp_path / "folder", tmp_path / "records"
    folder.mkdir()
    subprocess.run(["git", "init", "-q", folder / "mine"], check=True)
    (folder / "mine/.git/hooks/post-checkout").write_text("exit")
    run_inside(folder, "true")
    program = textwrap.dedent(
        f"""
        import asyncio
        from pathlib import Path
        from fulmen.sandbox import *
        async def main():
            access = Access(folder=Path({str(folder)!r}), records=Path({str(records)!r}))
            async with Sandbox(access) as sandbox:
                outcome = await sandbox.run({f"git init -q sub; cd sub; {EVIL}"!r})
                print("ready", outcome.exit_code, flush=True)
                await asyncio.sleep(50)
        asyncio.run(main())
        """
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready 0\n"
    # Another one beside it leaves to it what is its own.
    notes = closed(folder, "true", records=records)
    assert notes == []
    process.send_signal(number)
    process.wait(30)
    process.stdout.close()
    assert len(list(records.iterdir())) == 1
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert closed(elsewhere, "true", records=records) == []
    notes = closed(folder, "true", records=records)
    assert ["git does not see it" in note for note in notes] == [True]
    assert not is_poisoned(folder / "sub")
    assert (folder / "mine/.git/HEAD").exists()
    assert list(records.iterdir()) == []
    assert closed(folder, "true", records=records) == []


def test_a_record_holds_after_the_machine_was_started_anew(tmp_path: Path) -> None:
    """File systems may have other numbers then; what cannot be known again is left alone."""
    folder, records = tmp_path / "folder", tmp_path / "records"
    folder.mkdir()
    for name in ("mine", "new"):
        subprocess.run(["git", "init", "-q", folder / name], check=True)
        (folder / name / ".git/hooks/post-checkout").write_text("exit")
    mine = (folder / "mine/.git").stat()
    kept = Repositories(known={(mine.st_dev, mine.st_ino)}, roots=[folder])
    left.Record(records, kept)._file.close()
    (path,) = records.iterdir()
    path.write_text(path.read_text().replace(str(mine.st_dev), str(mine.st_dev + 77)))
    notes = left.settle_left(records, [folder])
    assert [str(folder / "new") in note for note in notes] == [True]
    assert (folder / "mine/.git/HEAD").exists()
    (records / "x.json").write_text("{")
    assert ["cannot be read" in note for note in left.settle_left(records, [folder])] == [True]
    assert list(records.iterdir()) == []


def test_a_closed_folder_is_held_and_not_looked_into(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    subprocess.run(["git", "init", "-q", folder / "mine"], check=True)
    (folder / "mine/.git/hooks/post-checkout").write_text("exit")
    folder.chmod(0)
    try:
        run_inside(tmp_path, "chmod 755 closed; echo evil > closed/mine/.git/config; rm -rf closed")
        assert folder.stat().st_mode & 0o777 == 0
    finally:
        folder.chmod(0o755)
    assert (folder / "mine/.git/HEAD").exists()
    assert "evil" not in (folder / "mine/.git/config").read_text()


def test_what_is_held_for_where_it_is_cannot_be_moved_with_a_folder_above(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "config", "core.hooksPath", "tools/git/hooks"], check=True)
    (tmp_path / "tools/git/hooks").mkdir(parents=True)
    (tmp_path / "tools/git/hooks/pre-commit").write_text("good")
    command = "mv tools x; mkdir -p tools/git/hooks; echo evil > tools/git/hooks/pre-commit"
    run_inside(tmp_path, f"{command}; mv tools/git tools/x; echo fine > tools/free; true")
    assert (tmp_path / "tools/git/hooks/pre-commit").read_text() == "good"
    assert (tmp_path / "tools/free").read_text() == "fine\n"


def test_an_unexpected_end_of_a_look_is_no_leak(tmp_path: Path) -> None:
    """Two looks at once, as after a cancelled one, wait for each other."""
    command = f"git init -q sub; cd sub; {EVIL}"

    async def use(sandbox: Sandbox) -> list[list[str]]:
        await sandbox.run(command)
        return list(await asyncio.gather(*(sandbox.settle_repositories() for _ in range(4))))

    notes = inside(tmp_path, use)
    assert sum(map(len, notes)) == 1
