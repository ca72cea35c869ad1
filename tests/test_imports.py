"""Rules of imports: who may import whom, and what an import may do."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fulmen import models
from fulmen.models.moved import MOVED

PACKAGE = Path(__file__).parent.parent / "fulmen"
MAY_IMPORT = {
    "families": set[str](),
    "moved": set[str](),
    "units": set[str](),
    "svg": set[str](),
    "files": set[str](),
    "sandbox": {"files"},
    "sampling": set[str](),
    "kernels": set[str](),
    "models": {"kernels", "families", "files"},
    "checkpoints": {"models", "kernels", "families", "files"},
    "catalog": {"checkpoints", "models", "families", "files", "sampling", "units"},
    "quantize": {"checkpoints", "models", "kernels", "catalog", "files", "units"},
    "plan": {"catalog", "checkpoints", "models", "kernels", "families", "units", "svg"},
    "chat": {"sampling", "families", "files"},
    "engine": {"models", "kernels", "sampling"},
    "llm": {"engine", "chat", "catalog", "checkpoints", "models", "sampling", "files"},
    "sessions": {"llm", "engine", "chat", "models", "kernels", "sampling", "files"},
    "envs": {"agent", "chat", "catalog", "sandbox", "sampling", "files"},
    "server": {"llm", "engine", "sessions", "chat", "catalog", "sampling", "files", "units"},
    "evaluate": {"envs", "agent", "llm", "engine", "chat", "sampling", "files", "svg"},
    "bench": {"engine", "llm", "checkpoints", "models", "kernels", "sampling"},
    "agent": {"chat", "sandbox", "sessions", "sampling", "files"},
    "doctor": {"bench", "catalog", "kernels", "sessions", "files"},
}
"""Rooms, and what of ours each may import. cli may import all of them; nothing imports cli."""
MAY_IMPORT["train"] = set(MAY_IMPORT) - {"server", "doctor", "bench", "moved"}
MAY_IMPORT["cli"] = set(MAY_IMPORT)
MAY_IMPORT["__main__"] = {"cli"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def own_imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import of ours, wherever in the file it stands."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "fulmen":
            names = [f"fulmen.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} uses a relative import"
            names = [node.module or ""]
        else:
            continue
        for name in names:
            if name.startswith("fulmen.") and name != "fulmen.__version__":
                yield node.lineno, name


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_room_imports_only_the_doors_of_rooms_it_may(file: Path) -> None:
    room = room_of(file)
    if room == "__init__":
        return
    for line, name in own_imports(file):
        other = name.split(".")[1]
        if other == room:
            continue
        assert other in MAY_IMPORT[room], f"{file}:{line}: {room} may not import {other}"
        assert name.count(".") == 1, f"{file}:{line}: {name} is behind the door of {other}"


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*/**/__init__.py")), ids=str)
def test_a_door_lists_names_and_holds_no_logic(file: Path) -> None:
    # A door may take the finder of names that have moved (PEP 562) from a file of its room.
    text = re.sub(
        r"^if not TYPE_CHECKING:.*\n    from [\w.]+ import __getattr__ .*\n",
        "",
        file.read_text().replace("from typing import TYPE_CHECKING\n", ""),
        flags=re.M,
    )
    tree = ast.parse(text)
    kinds = {type(node) for node in tree.body}
    assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign}
    (names,) = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(ast.literal_eval(names)) == imported


def test_every_room_is_in_the_table() -> None:
    rooms = {room_of(file) for file in FILES} - {"__init__"}
    assert rooms == set(MAY_IMPORT)


def test_importing_everything_prints_nothing_and_leaves_torch_alone() -> None:
    modules = [
        ".".join(("fulmen", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for file in FILES
        if file.name != "__main__.py"
    ]
    program = (
        "import importlib, logging, random, sys, torch\n"
        "state = lambda: (torch.get_num_threads(), torch.get_rng_state().tolist())\n"
        "before = state()\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "assert state() == before\n"
        "assert not logging.getLogger().handlers"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, *modules], check=True, capture_output=True, text=True
    )
    assert run.stdout == run.stderr == ""


@pytest.mark.parametrize("name", sorted(MOVED))
def test_a_name_of_0_1_is_found_behind_the_door_of_models(name: str) -> None:
    assert getattr(models, name) is getattr(importlib.import_module(MOVED[name]), name)


def test_any_other_name_is_missing() -> None:
    name = "load"
    with pytest.raises(AttributeError, match=r"module 'fulmen\.models' has no attribute 'load'"):
        getattr(models, name)
    with pytest.raises(ImportError, match="cannot import name 'load'"):
        exec("from fulmen.models import load")
