"""Examples run, with a model that says a script."""

import asyncio
import runpy
import sys
from pathlib import Path

import pytest

from tests.agent.working import bash, says, scripted
from tests.sandbox.helpers import skip_without_sandbox

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_an_agent_in_ten_lines_works_and_can_be_taken_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skip_without_sandbox()
    folder = tmp_path / "folder"
    folder.mkdir()
    model = scripted([bash("m2", "echo hi > a"), says("m2", "It is there.")])
    work = runpy.run_path(str(EXAMPLES / "agent.py"))["work"]
    archive = asyncio.run(work(model, folder, "Write a file."))
    printed = capsys.readouterr().out
    assert "it ended: done\nIt is there.\n" in printed
    assert "+hi" in printed
    (name,) = archive.runs.names()
    archive.rewind(name, 0)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_says_how_it_is_called(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(path)])
    with pytest.raises(SystemExit, match=f"python examples/{path.name}"):
        runpy.run_path(str(path), run_name="__main__")
