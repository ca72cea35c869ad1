"""Names that a shell completes: models, sessions, dtypes. Nothing here imports torch.

A completion must never fail or be slow: what cannot be read completes to nothing.
"""

import os
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from typer._completion_shared import get_completion_script, install

from fulmen.files import user_folder

SHELLS: Final = ("bash", "zsh", "fish", "powershell", "pwsh")
_MOST: Final = 1000
"""Names that a shell is told at most"""


def _beginning_with(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)][:_MOST]


def models(incomplete: str) -> list[str]:
    """Return the names of the catalog that begin so; a shell completes paths by itself."""
    return _beginning_with(incomplete, _catalog_names())


def _catalog_names() -> list[str]:
    # Importing the catalog would import torch: its cards are read as the data they are.
    folder = Path(__file__).parent.parent / "catalog" / "cards"
    cards = [tomllib.loads(file.read_text("utf-8")) for file in folder.glob("*.toml")]
    return sorted(str(card["name"]) for family in cards for card in family.get("card", ()))


def sessions(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Return the names of saved sessions that begin so, the last used first."""
    store = ctx.params.get("store") or default_store()
    try:
        with os.scandir(Path(store) / "sessions") as entries:
            found = [
                (-entry.stat().st_mtime_ns, entry.name.removesuffix(".json"))
                for entry in entries
                if entry.name.endswith(".json") and not entry.name.startswith(".")
            ]
    except OSError:
        return []
    return _beginning_with(incomplete, (name for _, name in sorted(found)))


def runs(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Return the names of an agent's runs that begin so, the last begun first."""
    root = ctx.params.get("runs") or user_folder("XDG_DATA_HOME", ".local/share") / "fulmen/agents"
    try:
        with os.scandir(root) as entries:
            found = [
                (-entry.stat().st_mtime_ns, entry.name)
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return []
    return _beginning_with(incomplete, (name for _, name in sorted(found)))


def default_store() -> Path:
    """Return where sessions live; the room of sessions says so too, but imports torch."""
    return user_folder("XDG_DATA_HOME", ".local/share") / "fulmen" / "sessions"


def recipes(incomplete: str) -> list[str]:
    """Return the names of recipes of small models that begin so."""
    folder = Path(__file__).parent.parent / "minis"
    names = sorted(file.parent.name for file in folder.glob("*/recipe.toml"))
    return _beginning_with(incomplete, names)


def one_of(*names: str) -> Callable[[str], list[str]]:
    """Return a completion from a fixed set of names."""

    def complete(incomplete: str) -> list[str]:
        return _beginning_with(incomplete, names)

    return complete


def script(shell: str) -> str:
    """Return the script that makes a shell complete `fulmen`."""
    _check("--show-completion", shell)
    return get_completion_script(
        prog_name="fulmen", complete_var="_FULMEN_COMPLETE", shell=shell
    ).strip()


def install_for(shell: str) -> Path:
    """Write that script where a shell finds it, and return its file."""
    _check("--install-completion", shell)
    return Path(install(shell=shell, prog_name="fulmen", complete_var="_FULMEN_COMPLETE")[1])


def _check(option: str, shell: str) -> None:
    if shell not in SHELLS:
        raise ValueError(
            f"{option} is {shell[:40]!r}, no shell to complete in, known are {', '.join(SHELLS)}"
        )
