"""A tokenizer, and a folder for teams with an archive."""

from pathlib import Path
from typing import Any

import pytest

from fulmen.agent import Archive
from fulmen.chat import Tokenizer
from tests.tiny import write_checkpoint


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: Any) -> Tokenizer:
    return Tokenizer.from_folder(write_checkpoint(tmp_path_factory.mktemp("m2"), "m2"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("1\n2\n3\n")
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "runs")
