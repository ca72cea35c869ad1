"""The instructions of a project that hold for a file, and none from outside of it."""

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.agent import Instructions, Setup, find_instructions
from fulmen.agent.instructions import (
    MAX_BYTES,
    instruction_places,
    is_instruction,
    read_instructions,
)
from tests.examples import examples


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "ws"
    (folder / "a/b/c").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    return folder


def instructions_for(path: Path, *, workspace: Path) -> list[Instructions]:
    """Return what holds for a file, read without a sandbox."""
    places = instruction_places(str(path), workspace=workspace)
    found = (read_instructions(workspace / place, within=workspace) for place in places)
    return [one for one in found if one is not None]


def texts(found: list[Instructions]) -> list[str]:
    return [one.text for one in found]


def test_the_users_file_comes_before_that_of_the_workspace(workspace: Path) -> None:
    home = workspace.parent / "home"
    assert find_instructions(workspace, home=home) == []
    (workspace / "AGENTS.md").write_text("ours")
    (home / "AGENTS.md").write_text("mine")
    (workspace.parent / "AGENTS.md").write_text("not of the workspace")
    found = find_instructions(workspace, home=home)
    assert texts(found) == ["mine", "ours"]
    assert found[1].path == workspace / "AGENTS.md"


def test_the_nearest_file_comes_last(workspace: Path) -> None:
    (workspace / "AGENTS.md").write_text("root")
    (workspace / "a/AGENTS.md").write_text("a")
    (workspace / "a/b/c/AGENTS.md").write_text("c")
    for path in (Path("a/b/c/x.py"), workspace / "a/b/c/x.py", Path("a/../a/b/./c/x.py")):
        assert texts(instructions_for(path, workspace=workspace)) == ["a", "c"]
    assert texts(instructions_for(Path("a/x.py"), workspace=workspace)) == ["a"]
    assert instructions_for(Path("x.py"), workspace=workspace) == []
    for outside in ("../x/y", "/etc/a/b", "a/../../b/c"):
        assert instructions_for(Path(outside), workspace=workspace) == []


def test_no_link_leads_out_of_the_workspace(workspace: Path) -> None:
    secret = workspace.parent / "AGENTS.md"
    secret.write_text("secret")
    home = workspace.parent / "home"
    (workspace / "AGENTS.md").symlink_to(secret)
    (workspace / "out").symlink_to(workspace.parent)
    assert find_instructions(workspace, home=home) == []
    assert instructions_for(Path("out/x"), workspace=workspace) == []
    (workspace / "a/AGENTS.md").write_text("a")
    (workspace / "AGENTS.md").unlink()
    (workspace / "AGENTS.md").symlink_to("a/AGENTS.md")  # a link within the workspace is followed
    assert texts(find_instructions(workspace, home=home)) == ["a"]


def test_a_link_counts_only_if_it_leads_to_markdown(workspace: Path) -> None:
    home = workspace.parent / "home"
    (workspace / ".env").write_text("KEY=1")
    (workspace / "CLAUDE.md").write_text("ours")
    for target, found in ((".env", []), ("CLAUDE.md", ["ours"]), (f"{workspace}/a/../.env", [])):
        (workspace / "AGENTS.md").unlink(missing_ok=True)
        (workspace / "AGENTS.md").symlink_to(target)
        assert texts(find_instructions(workspace, home=home)) == found
    assert is_instruction("/w/a/Notes.MD", workspace=Path("/w"))
    assert not is_instruction("/w/a/.env", workspace=Path("/w"))
    assert not is_instruction("/x/AGENTS.md", workspace=Path("/w"))


def test_a_folder_that_is_swapped_for_a_link_leads_nowhere(workspace: Path) -> None:
    """A job in the background may rename what lies on the way, between any two system calls."""
    outside = workspace.parent / "outside"
    outside.mkdir()
    (outside / "AGENTS.md").write_text("secret")
    (workspace / "AGENTS.md").symlink_to("x/AGENTS.md")
    (workspace / "folder").mkdir()
    (workspace / "folder/AGENTS.md").write_text("ours")
    (workspace / "link").symlink_to(outside)
    swapping = threading.Event()

    def swap() -> None:
        while not swapping.is_set():
            for name in ("folder", "link"):
                os.rename(workspace / name, workspace / "x")
                os.rename(workspace / "x", workspace / name)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            found = read_instructions(workspace / "AGENTS.md", within=workspace)
            assert found is None or found.text == "ours"
    finally:
        swapping.set()
        thread.join()


def test_what_is_no_file_is_none(workspace: Path) -> None:
    home = workspace.parent / "home"
    os.mkfifo(workspace / "AGENTS.md")
    (workspace / "a/AGENTS.md").mkdir()
    (workspace / "a/b/AGENTS.md").write_text(" \n")
    (workspace / "a/b/c/AGENTS.md").symlink_to("AGENTS.md")
    assert find_instructions(workspace, home=home) == []
    assert instructions_for(Path("a/b/c/x"), workspace=workspace) == []


def test_a_long_file_says_what_is_cut(workspace: Path) -> None:
    line = "é" * 49 + "\n"
    whole = line * 1000
    (workspace / "AGENTS.md").write_text(whole)
    (found,) = find_instructions(workspace, home=workspace.parent / "home")
    kept, _, note = found.text.rpartition("\n\n")
    assert whole.startswith(kept)
    left = len(whole.encode()) - len(kept.encode())
    assert note == f"[the last {left:,} bytes of this file are left out]\n"
    assert MAX_BYTES - 100 <= len(kept.encode()) <= MAX_BYTES


@settings(max_examples=examples(30), deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "..", ".", "~"]), max_size=8))
def test_instructions_come_from_the_folders_above_a_file_only(parts: list[str]) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        workspace = Path(folder) / "ws"
        for below in ("a/a", "a/b", "b/a", "b/b", "~"):
            (workspace / below).mkdir(parents=True)
        for place in (*workspace.rglob("*"), Path(folder)):
            (place / "AGENTS.md").write_text(os.path.relpath(place, workspace))
        path = os.path.normpath(Path(workspace, *parts, "file"))
        for text in texts(instructions_for(Path(*parts, "file"), workspace=workspace)):
            assert path.startswith(f"{workspace}/{text}/")


def test_instructions_hold_from_where_the_repository_begins(workspace: Path) -> None:
    home = workspace.parent / "home"
    (workspace.parent / "AGENTS.md").write_text("not of the repository")
    for place in (".", "a", "a/b"):
        (workspace / place / "AGENTS.md").write_text(f"of {place}")
    assert texts(find_instructions(workspace / "a/b", home=home)) == ["of a/b"]
    (workspace / ".git").mkdir()
    found = find_instructions(workspace / "a/b", home=home)
    assert texts(found) == ["of .", "of a", "of a/b"]
    (workspace / "AGENTS.md").unlink()
    (workspace / "AGENTS.md").symlink_to(workspace.parent / "AGENTS.md")  # leads out
    assert texts(find_instructions(workspace / "a/b", home=home)) == ["of a", "of a/b"]
    setup = Setup.read(workspace / "a/b", home)
    assert "Instructions of a folder above (../AGENTS.md):\n\nof a" in setup.text
    assert setup.notes == (
        f"the repository begins at {workspace}: git finds none here, start there if the agent is "
        "to use it",
    )


def test_ones_own_file_may_be_a_link_and_another_is_told_of(workspace: Path) -> None:
    home, dotfiles = workspace.parent / "home", workspace.parent / "dotfiles"
    dotfiles.mkdir()
    (dotfiles / "agents").write_text("mine")
    (dotfiles / "HOUSE.md").write_text("of the house")
    (home / "AGENTS.md").symlink_to(dotfiles / "agents")
    (home / "HOUSE.md").symlink_to(dotfiles / "HOUSE.md")
    (home / "agent.toml").write_text('instructions = ["HOUSE.md"]\n')
    setup = Setup.read(workspace, home)
    assert texts(list(setup.instructions)) == ["mine", "of the house"]
    assert "Instructions of the user (AGENTS.md):\n\nmine" in setup.text
    assert setup.notes == ()
    (workspace / "AGENTS.md").symlink_to(dotfiles / "HOUSE.md")
    setup = Setup.read(workspace, home)
    assert texts(list(setup.instructions)) == ["mine", "of the house"]
    place = workspace / "AGENTS.md"
    assert setup.notes == (f"{place} is not read: the link leads to no Markdown in the folder",)
