"""The kernel's own limit on memory and processes, where the caller may set one.

Every version of cgroups will do; a caller who may not make one gets None, and the supervisor's
watch is then the limit.
"""

import contextlib
import os
import time
import uuid
from pathlib import Path
from typing import Final

_PREFIX: Final = "fulmen-sandbox-"


class Cgroup:
    """Folders in the kernel's cgroup tree, one for both limits or one for each."""

    def __init__(self, folders: list[Path], deaths: Path) -> None:
        self._folders = folders
        self._deaths = deaths

    def add(self, pid: int) -> None:
        """Put a process in, with all the children it will have."""
        for folder in self._folders:
            (folder / "cgroup.procs").write_text(str(pid))

    def num_killed(self) -> int:
        """Return how many processes the kernel has killed for want of memory."""
        with contextlib.suppress(OSError, ValueError):
            for line in self._deaths.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
        return 0

    def remove(self) -> None:
        """Remove the folders; for the moment that dead processes take to leave them, wait."""
        for folder in self._folders:
            for _ in range(50):
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.01)


def make_cgroup(memory_bytes: int, num_tasks: int) -> Cgroup | None:
    """Make a cgroup with these limits; None where this process may not."""
    for make in (_make_unified, _make_separate):
        with contextlib.suppress(OSError, StopIteration, ValueError):
            return make(memory_bytes, num_tasks)
    return None


def _make_unified(memory_bytes: int, num_tasks: int) -> Cgroup:
    """Make one in version 2, beside our own or below it."""
    mount, own = _places("")
    for parent in (own, own.parent):
        if not parent.is_relative_to(mount):
            continue
        _remove_left(parent)
        folder = parent / f"{_PREFIX}{uuid.uuid4().hex}"
        try:
            folder.mkdir()
            (folder / "memory.max").write_text(str(memory_bytes))
            (folder / "pids.max").write_text(str(num_tasks))
            with contextlib.suppress(OSError):  # where there is no swap
                (folder / "memory.swap.max").write_text("0")
            _try(folder)
            return Cgroup([folder], folder / "memory.events")
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
    raise ValueError("no cgroup of version 2 may be made here")


def _make_separate(memory_bytes: int, num_tasks: int) -> Cgroup:
    """Make two in version 1, below our own."""
    limits = {"memory": ("memory.limit_in_bytes", memory_bytes), "pids": ("pids.max", num_tasks)}
    folders: list[Path] = []
    try:
        for controller, (name, value) in limits.items():
            _, own = _places(controller)
            _remove_left(own)
            folder = own / f"{_PREFIX}{uuid.uuid4().hex}"
            folder.mkdir()
            folders.append(folder)
            (folder / name).write_text(str(value))
            _try(folder)
        with contextlib.suppress(OSError):  # where swap is not counted
            (folders[0] / "memory.memsw.limit_in_bytes").write_text(str(memory_bytes))
    except BaseException:
        for folder in folders:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return Cgroup(folders, folders[0] / "memory.oom_control")


def _places(controller: str) -> tuple[Path, Path]:
    """Return where a controller's tree is mounted, and our own folder in it; "" for version 2."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    fields = (line.split(":", 2) for line in lines)
    path = next(path for _, names, path in fields if controller in names.split(","))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        is_it = kind == "cgroup2" if not controller else controller in options.split(",")
        if is_it and kind.startswith("cgroup"):
            root, point = before.split(" ")[3:5]
            below = os.path.relpath(path, root)
            mount = Path(point)
            return mount, Path(os.path.normpath(mount / below))
    raise ValueError("no such cgroup tree is mounted")


def _try(folder: Path) -> None:
    """Find out, with a process that does nothing, whether one may be moved in."""
    with (folder / "cgroup.procs").open("r+"):
        pass


def _remove_left(parent: Path) -> None:
    """Remove what a killed process has left: the kernel refuses where anything still runs."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_mtime < time.time() - 60:  # a new one is about to be used
                folder.rmdir()
