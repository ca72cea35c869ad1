"""A folder, and snapshots of it."""

import os
from pathlib import Path

import pytest

from fulmen.agent import Snapshots


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
