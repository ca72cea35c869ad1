"""Fulmen's own files, what it runs from and is told by, where they lie in a writable folder.

It would hold, or run, outside: with the next start, or the next module that this process imports.
What lies below such a folder can be held fast; the folder itself cannot, and is refused.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Final

from fulmen.files import user_folder

_DATA: Final = ".local/share"
_MAX_LINKS: Final = 40


def check_not_ours(folder: Path) -> None:
    """Raise ValueError for a folder with what says what an agent may do, and where it was, and for
    one of Python's modules."""
    for own in _folders():
        real = _real(own)
        if real.is_relative_to(folder) or folder.is_relative_to(real):
            raise ValueError(f"{folder} cannot be changed in a sandbox, {real} is fulmen's own")
    for own in _settings():
        real, links = _resolved(own)
        told = f"{folder} cannot be changed in a sandbox, {own} leads into it"
        if folder.is_relative_to(real):
            raise ValueError(told)
        for link in links:
            if folder in link.parents:
                raise ValueError(f"{told} through the link {link}: let it lead there directly")
        if real.is_relative_to(folder) and not real.exists():
            raise ValueError(f"{told}, where nothing is: make {real}, or take the link away")
    modules, runs_from = _modules(), _runs_from()
    if folder in modules:
        raise ValueError(
            f"{folder} is on Python's path of modules, the next start of fulmen would run what is "
            "written there: take it out of PYTHONPATH, start `fulmen` and not `python -m fulmen`, "
            "or install fulmen apart from it (`pipx`, `uv tool`)"
        )
    for one in modules - runs_from:
        if folder in one.parents and not one.exists() and not runs_from & set(one.parents):
            raise ValueError(
                f"{one} is on Python's path of modules and not there, the next start of fulmen "
                "would run what is written there: make it, or take it out of PYTHONPATH"
            )


def ours_below(folder: Path) -> list[tuple[str, list[Path]]]:
    """Return what lies below a folder and must not be changed there, with the reason."""
    reasons = [
        ("is what fulmen itself runs from (install it elsewhere to change it)", _runs_from()),
        ("is on Python's path of modules, such as PYTHONPATH names", _modules()),
        ("is fulmen's own settings", {_real(one) for one in _settings()}),
    ]
    every = {one for _, paths in reasons for one in paths if folder in one.parents and one.exists()}
    outermost = {one for one in every if not every & set(one.parents)}
    found = []
    for reason, paths in reasons:
        found.append((reason, sorted(outermost & paths)))
        outermost -= paths
    return found


def _runs_from() -> set[Path]:
    package = Path(__file__).parents[1]
    return {_real(Path(one)) for one in (sys.base_prefix, sys.prefix, package)}


def _modules() -> set[Path]:
    """Return the folders in which Python looks for modules; its empty text is where we are."""
    with contextlib.suppress(OSError):  # where we are may be gone
        return {_real(Path(one)) for one in sys.path}
    return {_real(Path(one)) for one in sys.path if one}


def _folders() -> list[Path]:
    folders = (user_folder("XDG_CONFIG_HOME", ".config"), user_folder("XDG_DATA_HOME", _DATA))
    return [folder / "fulmen" for folder in folders]


def _settings() -> list[Path]:
    """Return what is in the folders of settings and states: links may lead elsewhere."""
    found: list[Path] = []
    config, data = _folders()
    for folder in (config, config / "agent", data):
        with contextlib.suppress(OSError):
            found += (folder / name for name in sorted(os.listdir(folder)))
    return found


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _resolved(path: Path) -> tuple[Path, list[Path]]:
    """Return where a path leads, and every link on the way."""
    links: list[Path] = []
    place, waiting = Path("/"), list(path.parts)
    while waiting:
        part = waiting.pop(0)
        place = place.parent if part == ".." else place / part
        if place.is_symlink() and len(links) < _MAX_LINKS:
            links.append(place)
            waiting[:0] = Path(os.readlink(place)).parts
            place = place.parent
    return place, links
