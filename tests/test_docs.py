"""Check what README and docs show: code blocks, commands, links, the tree, the reference."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fulmen.catalog.download import cache_folder

ROOT = Path(__file__).parent.parent
PYTHON = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    )
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block: str) -> None:
    if '"smollm2"' in block and not (cache_folder() / "smollm2/model.gguf").exists():
        pytest.skip("smollm2 is not here, `fulmen models pull smollm2` brings it")
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", block], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_commands_of_the_readme_exist() -> None:
    from typer.main import get_command

    from fulmen.cli import app

    group = get_command(app)
    text = (ROOT / "README.md").read_text()
    commands = set(re.findall(r"`fulmen (\w+)", text))
    known = group.commands  # type: ignore[attr-defined]
    assert commands
    assert commands <= set(known)
    for name, subcommand in re.findall(r"`fulmen (models) (\w+)", text):
        assert subcommand in known[name].commands


@pytest.mark.parametrize("heading", ["Quick start", "Tests"])
def test_the_two_commands_of_the_readme_are_one_line_each(heading: str) -> None:
    script = ROOT / "scripts/readme_command.py"
    run = subprocess.run([sys.executable, script, heading], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("pip install ")


def test_every_file_of_the_tree_in_the_readme_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    entries = re.findall(r"^[├└]── (\S+)", text, re.M)
    assert entries
    for entry in entries:
        assert (ROOT / "fulmen" / entry).exists(), entry
    listed = {entry.rstrip("/") for entry in entries}
    present = {
        path.name
        for path in (ROOT / "fulmen").iterdir()
        if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__")
    }
    assert present - {"__init__.py"} == listed
