"""Processes inside the sandbox as its first process sees them: how many, how large, whose.

Runs inside, with nothing but the standard library. The numbers come from the sandbox's own /proc.
"""

import contextlib
import os
import signal
from typing import Final

_RESERVE: Final = 0.05
"""Part of the machine's memory below which a sandbox that took much gives up"""


class Usage:
    """Counts of one moment."""

    def __init__(self) -> None:
        self.num_processes = 0
        self.num_tasks = 0
        self.memory_bytes = 0


def pids() -> list[int]:
    """Return the ids of all processes but the first."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal() and name != "1"]


def measure(tmpfs: list[str]) -> Usage:
    """Count processes, threads, and the bytes that only they keep in memory, files of the given
    file systems in memory included. Pages that processes share are counted by each of them."""
    usage = Usage()
    for pid in pids():
        with contextlib.suppress(OSError, ValueError):
            fields = _fields(f"/proc/{pid}/status")
            usage.num_processes += 1
            usage.num_tasks += fields.get("Threads:", 0)
            usage.memory_bytes += 1024 * (fields.get("RssAnon:", 0) + fields.get("RssShmem:", 0))
    usage.memory_bytes += _bytes_of_files(tmpfs)
    return usage


def memory_once(tmpfs: list[str]) -> int:
    """Measure memory like `measure`, each page once. Slower: the kernel walks all page tables."""
    total = _bytes_of_files(tmpfs)
    for pid in pids():
        try:
            fields = _fields(f"/proc/{pid}/smaps_rollup")
            total += 1024 * (fields.get("Pss_Anon:", 0) + fields.get("Pss_Shmem:", 0))
        except OSError:  # it hides itself (PR_SET_DUMPABLE), or is gone
            with contextlib.suppress(OSError):
                fields = _fields(f"/proc/{pid}/status")
                total += 1024 * (fields.get("RssAnon:", 0) + fields.get("RssShmem:", 0))
    return total


def available_bytes() -> int:
    """Return the memory that the machine still has to give."""
    return 1024 * _fields("/proc/meminfo").get("MemAvailable:", 0)


def is_machine_short(before: int, limit: int) -> bool:
    """Return whether the machine has nearly run out of memory, of which more than the sandbox's
    limit went since `before`: kernel objects that no process is charged for, for example."""
    fields = _fields("/proc/meminfo")
    now, total = 1024 * fields.get("MemAvailable:", 0), 1024 * fields.get("MemTotal:", 0)
    return now < _RESERVE * total and before - now > limit


def _bytes_of_files(tmpfs: list[str]) -> int:
    """Return the bytes held by file systems in memory and by shared memory of System V."""
    total = 0
    for folder in tmpfs:
        status = os.statvfs(folder)
        total += (status.f_blocks - status.f_bfree) * status.f_frsize
    with contextlib.suppress(OSError), open("/proc/sysvipc/shm") as file:
        names = file.readline().split()
        total += sum(int(line.split()[names.index("rss")]) for line in file)
    return total


def _fields(path: str) -> dict[str, int]:
    """Read lines of a name and a number."""
    with open(path, "rb", buffering=0) as file:
        lines = file.read(16384).decode(errors="replace").splitlines()
    found = (line.split(maxsplit=2) for line in lines)
    return {words[0]: int(words[1]) for words in found if len(words) > 1 and words[1].isdecimal()}


def kill_tree(root: int) -> None:
    """Kill the process group of a child that is not reaped yet, and everything descended from it.

    A descendant whose parents are gone is no longer known as one.
    """
    for _ in range(3):  # some may be born meanwhile
        found = _descendants(root)
        with contextlib.suppress(OSError):
            os.killpg(root, signal.SIGKILL)
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if len(found) == 1:
            return


def _descendants(root: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid in pids():
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may hold anything; the parent's id is second after it.
            parent = int(file.read(4096).rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(pid)
    found = {root}
    level = [root]
    while level:
        level = [child for pid in level for child in children.get(pid, []) if child not in found]
        found.update(level)
    return found


def kill_all() -> None:
    """Kill every process of the sandbox but the first, in one system call."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
