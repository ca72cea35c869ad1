"""The machine that a plan is made on: its memory, and its GPUs if there are any."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fulmen.plan.hardware import ACCELERATORS, Gpus, parse_gpus

_SECONDS: Final = 5
"""Longest time to wait for what lists GPUs"""
_LIST_GPUS: Final = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True, kw_only=True, slots=True)
class ThisMachine:
    """Memory and GPUs of this machine."""

    memory_bytes: int
    """Memory that this process may use"""
    gpu_names: tuple[str, ...]
    """GPUs as their driver calls them"""
    gpus: Gpus | None
    """GPUs that can be planned for: all of one kind, whose data sheet is known"""

    @property
    def ram(self) -> str:
        """Memory as a plan reads it."""
        return f"{max(self.memory_bytes // 2**30, 1)}GiB"


def this_machine() -> ThisMachine:
    """Look at this machine. Raises ValueError where its memory is not told."""
    listed = _listed_gpus()
    names = tuple(name for name, _ in listed)
    return ThisMachine(memory_bytes=_memory_bytes(), gpu_names=names, gpus=_known(listed))


def _memory_bytes() -> int:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        raise ValueError(
            "this system does not tell how much memory it has, --ram 24GiB names it"
        ) from None
    limits = [_cgroup_limit(Path("/sys/fs/cgroup") / name) for name in _CGROUP_FILES]
    return min([total, *(limit for limit in limits if limit is not None)])


_CGROUP_FILES: Final = ("memory.max", "memory/memory.limit_in_bytes")
"""Files in which a container finds its limit, in version 2 and version 1 of cgroups"""


def _cgroup_limit(file: Path) -> int | None:
    try:
        text = file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isascii() and text.isdigit() and 0 < len(text) < 20 else None


def _listed_gpus() -> list[tuple[str, int]]:
    """Return name and MiB of each GPU; none where no driver tells."""
    try:
        run = subprocess.run(
            _LIST_GPUS, capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return read_gpus(run.stdout) if run.returncode == 0 else []


def read_gpus(listing: str) -> list[tuple[str, int]]:
    """Read lines of `name, MiB`, as a driver lists GPUs."""
    found = []
    for line in listing.splitlines():
        name, comma, size = line.rpartition(",")
        if comma and size.strip().isascii() and size.strip().isdigit():
            found.append((name.strip(), int(size)))
    return found


def _known(listed: list[tuple[str, int]]) -> Gpus | None:
    """Return the GPUs if all are of one known kind, by name and memory."""
    if not listed or len(set(listed)) > 1:
        return None
    name, mebibytes = listed[0]
    words = name.upper().replace("GEFORCE", "").replace("RTX ", "RTX").split()
    for word in words:
        for start in (word, word.partition("-")[0]):
            for known, accelerator in ACCELERATORS.items():
                is_named = start in (known.upper(), known.partition("-")[0].upper())
                # The driver shows a few per cent more or less than the data sheet.
                is_sized = abs(mebibytes * 2**20 / accelerator.memory_bytes - 1) < 0.1
                if is_named and is_sized:
                    return parse_gpus(f"{len(listed)}x{known}")
    return None
