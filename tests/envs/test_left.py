"""Copies of folders that strangers made."""

from pathlib import Path

from fulmen.envs.left import copy_left
from tests.deep import make_deep


def test_a_path_too_long_for_the_system_is_too_much(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    assert copy_left(folder, tmp_path / "copy")
    make_deep(folder, "x" * 250, 17)
    assert not copy_left(folder, tmp_path / "other")
    assert (tmp_path / "copy/a.txt").read_text() == "a"
