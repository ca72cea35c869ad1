"""Processor, cores, memory and sandbox, as the operating system names them. Needs no torch."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from fulmen.doctor.finding import Finding

CGROUPS: Final = Path("/sys/fs/cgroup")
LITTLE_MEMORY: Final = 4 * 2**30
"""Memory below which only small models fit beside torch."""
BWRAP_SECONDS: Final = 10.0
"""Time that bubblewrap gets to start a program that ends at once."""

_FLAGS: Final = {
    "avx2": ("avx2", "fma", "f16c", "bmi2"),
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "avx512_vnni": ("avx512_vnni",),
    "avx512_bf16": ("avx512_bf16",),
    "amx": ("amx_tile", "amx_bf16", "amx_int8"),
    "neon": ("asimd",),
    "sve": ("sve",),
}
"""Instruction sets that matter here, and the flags of /proc/cpuinfo that each one needs."""


def find_processor() -> Finding:
    """Name the processor and its instruction sets."""
    name, flags = read_cpuinfo(_text(Path("/proc/cpuinfo")) or "")
    sets = instruction_sets(flags)
    machine = platform.machine() or "unknown"
    advice = []
    if flags and machine in ("x86_64", "AMD64") and "avx2" not in sets:
        advice.append("the C++ kernels need AVX2; without it Fulmen runs on plain torch, slowly")
    listed = ", ".join(sets) if sets else "instruction sets unknown" if not flags else "none of AVX"
    return Finding(
        name="processor",
        found=f"{name or platform.processor() or 'unknown'} ({machine}): {listed}",
        advice=tuple(advice),
        values={"name": name, "machine": machine, "instruction_sets": sets},
    )


def read_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Return the name and the flags of the first processor of /proc/cpuinfo."""
    name, flags = "", frozenset[str]()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and not name:
            name = value.strip()
        if key.strip() in ("flags", "Features") and not flags:
            flags = frozenset(value.split())
    return name, flags


def instruction_sets(flags: Iterable[str]) -> list[str]:
    """Return the instruction sets whose flags are all there."""
    there = set(flags)
    return [name for name, needed in _FLAGS.items() if there.issuperset(needed)]


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def find_cores() -> Finding:
    """Count the cores, those this process may use, and the time a container gives it."""
    present, usable = os.cpu_count() or 1, usable_cores()
    quota = cpu_quota()
    found = f"{usable} of {present}" if usable < present else str(present)
    advice = []
    if quota is not None and quota < usable:
        whole = max(1, int(quota))
        cores = "0" if whole == 1 else f"0-{whole - 1}"
        advice.append(
            f"a container limit gives the time of {quota:g} cores to threads on {usable}, which "
            f"slows all of them; start with `taskset -c {cores} fulmen ...`"
        )
    values = {"present": present, "usable": usable, "quota": quota}
    return Finding(name="cores", found=found, advice=tuple(advice), values=values)


def cpu_quota(root: Path = CGROUPS) -> float | None:
    """Return the number of cores whose time the container gives; None without a limit."""
    found = []
    for folder in cgroup_folders(root):
        words = (_text(folder / "cpu.max") or "").split()
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]) > 0:
            found.append(int(words[0]) / int(words[1]))
    quota = (_text(root / "cpu/cpu.cfs_quota_us") or "").strip()  # version 1
    period = (_text(root / "cpu/cpu.cfs_period_us") or "").strip()
    if quota.isdecimal() and period.isdecimal() and int(period) > 0:
        found.append(int(quota) / int(period))
    return min(found, default=None)


def memory_limit(root: Path = CGROUPS) -> int | None:
    """Return the bytes of memory the container allows; None without a limit."""
    files = [folder / "memory.max" for folder in cgroup_folders(root)]
    texts = [
        (_text(file) or "").strip() for file in (*files, root / "memory/memory.limit_in_bytes")
    ]
    # Version 1 writes a number near 2^63 where there is no limit.
    limits = [int(text) for text in texts if text.isdecimal() and int(text) < 2**60]
    return min(limits, default=None)


def cgroup_folders(root: Path = CGROUPS) -> Sequence[Path]:
    """Return this process's folder of control groups (version 2) and those above it."""
    relative = ""
    for line in (_text(Path("/proc/self/cgroup")) or "").splitlines():
        if line.startswith("0::"):
            relative = line.removeprefix("0::").strip("/")
    own = root / relative
    return [own, *(folder for folder in own.parents if folder.is_relative_to(root))]


def read_meminfo(text: str) -> dict[str, int]:
    """Return /proc/meminfo in bytes by name."""
    sizes = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdecimal():
            sizes[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return sizes


def available_memory() -> tuple[int, int] | None:
    """Return total and available bytes of memory within the container's limit; None if unknown."""
    sizes = read_meminfo(_text(Path("/proc/meminfo")) or "")
    if "MemTotal" not in sizes:
        return None
    total, available = sizes["MemTotal"], sizes.get("MemAvailable", sizes["MemTotal"])
    limit = memory_limit()
    if limit is not None and limit < total:
        return limit, min(limit, available)
    return total, available


def find_memory() -> Finding:
    """Measure how much memory there is, and how much is free."""
    both = available_memory()
    if both is None:
        return Finding(name="memory", found="unknown on this system")
    total, available = both
    advice = []
    if total < LITTLE_MEMORY:
        advice.append(
            "little memory: only small models such as smollm2 fit; "
            "`fulmen plan NAME` tells what a model needs"
        )
    elif available < total / 4:
        advice.append("most memory is in use: a model may not fit until other programs end")
    return Finding(
        name="memory",
        found=f"{available / 2**30:.1f} GiB available of {total / 2**30:.1f} GiB",
        advice=tuple(advice),
        values={"total_bytes": total, "available_bytes": available},
    )


def find_sandbox() -> Finding:
    """Try bubblewrap, which shuts a program into namespaces of its own."""
    unused = "nothing in this version needs it"
    if platform.system() != "Linux":
        return Finding(
            name="sandbox", found=f"bubblewrap is for Linux, {unused}", values={"usable": False}
        )
    program = shutil.which("bwrap")
    if program is None:
        return Finding(
            name="sandbox",
            found=f"bubblewrap is not installed; {unused}",
            values={"path": None, "usable": False},
        )
    reason = try_bubblewrap(program)
    values = {"path": program, "usable": reason is None}
    if reason is None:
        found = f"{program} works; {unused}"
        return Finding(name="sandbox", found=found, values=values)
    remedy = user_namespace_remedy() or "the system allows no new user namespaces"
    return Finding(
        name="sandbox",
        found=f"{program} does not work: {reason}; {unused}",
        advice=(remedy,),
        values=values,
    )


def try_bubblewrap(program: str) -> str | None:
    """Run a program that ends at once in bubblewrap; return what went wrong, None if nothing."""
    command = [program, "--ro-bind", "/", "/", "--unshare-all", "--die-with-parent", "true"]
    try:
        run = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=BWRAP_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {BWRAP_SECONDS:.0f} s"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    if run.returncode == 0:
        return None
    said = " ".join(run.stderr.split())[:200]
    return said or f"exit code {run.returncode}"


def user_namespace_remedy(root: Path = Path("/proc/sys")) -> str | None:
    """Return the setting that forbids user namespaces, and its remedy; None if none is known."""
    forbidding = {
        "kernel/unprivileged_userns_clone": ("0", "1"),
        "kernel/apparmor_restrict_unprivileged_userns": ("1", "0"),
        "user/max_user_namespaces": ("0", "15000"),
    }
    for name, (bad, good) in forbidding.items():
        if (_text(root / name) or "").strip() == bad:
            setting = name.replace("/", ".")
            return f"the system forbids user namespaces; an administrator can set {setting}={good}"
    return None


def _text(path: Path) -> str | None:
    """Return a small file of the system's; None where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
