"""Copies of folders that strangers made."""

import os
from pathlib import Path

from fulmen.envs.left import copy_left


def test_a_path_too_long_for_the_system_is_too_much(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    assert copy_left(folder, tmp_path / "copy")
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(17):
        os.mkdir("x" * 250, dir_fd=descriptor)
        inner = os.open("x" * 250, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    assert not copy_left(folder, tmp_path / "other")
    assert (tmp_path / "copy/a.txt").read_text() == "a"
