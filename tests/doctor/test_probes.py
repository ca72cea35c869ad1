"""Probes: what they make of a machine's files, of a broken one's too."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.doctor import PROBES, Finding, examine
from fulmen.doctor.machine import (
    cgroup_folders,
    cpu_quota,
    instruction_sets,
    memory_limit,
    read_cpuinfo,
    read_meminfo,
    try_bubblewrap,
    user_namespace_remedy,
)
from fulmen.doctor.software import explain_no_gpu, missing_kernels_advice, torch_build
from fulmen.doctor.speed import threads_advice
from fulmen.doctor.storage import read_rate

XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse4_2 fma avx f16c bmi2 avx2 avx512f avx512dq avx512bw avx512vl avx512_vnni \
avx512_bf16 amx_bf16 amx_tile amx_int8
processor\t: 1
model name\t: another
"""
GRAVITON = "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd aes sve i8mm bf16\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def program(folder: Path, text: str) -> str:
    file = folder / "bwrap"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def test_instruction_sets_are_read_from_the_flags_of_the_first_processor() -> None:
    name, flags = read_cpuinfo(XEON)
    assert name == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert instruction_sets(flags) == ["avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"]
    assert instruction_sets(read_cpuinfo(GRAVITON)[1]) == ["neon", "sve"]
    assert instruction_sets(flags - {"f16c"}) == ["avx512", "avx512_vnni", "avx512_bf16", "amx"]
    assert read_cpuinfo("") == ("", frozenset())


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "100000 0\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_container_limit_of_time_is_read(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    assert cpu_quota(write(tmp_path, files)) == quota


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"memory.max": "1073741824\n"}, 2**30),
        ({"memory.max": "max\n"}, None),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({"memory/memory.limit_in_bytes": "536870912\n"}, 2**29),
        ({}, None),
    ],
)
def test_a_container_limit_of_memory_is_read(
    tmp_path: Path, files: dict[str, str], limit: int | None
) -> None:
    assert memory_limit(write(tmp_path, files)) == limit


def test_limits_are_looked_for_in_no_folder_outside_the_root(tmp_path: Path) -> None:
    folders = cgroup_folders(tmp_path)
    assert tmp_path in folders
    assert all(folder.is_relative_to(tmp_path) for folder in folders)


@given(st.text())
def test_whatever_the_system_writes_is_read_without_an_error(text: str) -> None:
    assert all(size >= 0 for size in read_meminfo(text).values())
    name, flags = read_cpuinfo(text)
    assert isinstance(name, str)
    assert instruction_sets(flags) == [] or flags


def test_memory_is_read_in_bytes() -> None:
    text = "MemTotal:       24000 kB\nMemAvailable:   12000 kB\nHugePages_Total:   3\n"
    sizes = read_meminfo(text)
    assert sizes == {"MemTotal": 24_576_000, "MemAvailable": 12_288_000, "HugePages_Total": 3}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("exit 0", None),
        ("echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "No permissions"),
        ("exit 3", "exit code 3"),
        (r"printf '\377' >&2; exit 1", "�"),
    ],
)
def test_a_sandbox_that_does_not_work_says_why(
    tmp_path: Path, text: str, problem: str | None
) -> None:
    found = try_bubblewrap(program(tmp_path, text))
    assert found is None if problem is None else found is not None and problem in found


def test_a_sandbox_that_is_no_program_says_why(tmp_path: Path) -> None:
    assert try_bubblewrap(str(tmp_path / "bwrap")) == "no such file or directory"
    (tmp_path / "bwrap").write_bytes(b"\x7fELF")
    (tmp_path / "bwrap").chmod(0o700)
    assert try_bubblewrap(str(tmp_path / "bwrap")) == "exec format error"


@pytest.mark.parametrize(
    ("file", "text", "setting"),
    [
        ("kernel/unprivileged_userns_clone", "0\n", "kernel.unprivileged_userns_clone=1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1\n",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("user/max_user_namespaces", "0\n", "user.max_user_namespaces=15000"),
        ("user/max_user_namespaces", "90000\n", None),
    ],
)
def test_the_setting_that_forbids_namespaces_is_named(
    tmp_path: Path, file: str, text: str, setting: str | None
) -> None:
    remedy = user_namespace_remedy(write(tmp_path, {file: text}))
    assert remedy is None if setting is None else remedy is not None and setting in remedy


@pytest.mark.parametrize(
    ("build", "has_nvidia", "reason", "found", "advice"),
    [
        ("CPU", False, "", "none", None),
        ("CPU", True, "", "none that this CPU build", "CUDA build"),
        ("CUDA 13.0", False, "", "none", "CPU build does not"),
        ("CUDA 13.0", True, "driver too old", "none that torch can use: driver too old", "driver"),
        ("CUDA 13.0", False, "driver too old", "none that torch can use: driver", "CUDA"),
        ("ROCm 7.0", False, "", "none", "ROCm build"),
    ],
)
def test_a_missing_gpu_is_explained(
    build: str, has_nvidia: bool, reason: str, found: str, advice: str | None
) -> None:
    said, given = explain_no_gpu(build, has_nvidia=has_nvidia, reason=reason)
    assert said.startswith(found)
    assert given == () if advice is None else advice in given[0]


def test_a_build_of_torch_is_named() -> None:
    assert torch_build("13.0", None) == "CUDA 13.0"
    assert torch_build(None, "7.1") == "ROCm 7.1"
    assert torch_build(None, None) == "CPU"


@pytest.mark.parametrize(
    ("system", "machine", "compiler", "advice"),
    [
        ("Linux", "x86_64", None, "apt install g++"),
        ("Linux", "x86_64", "/usr/bin/c++", "/usr/bin/c++ is there"),
        ("Linux", "aarch64", "/usr/bin/c++", "this is Linux on aarch64"),
        ("Darwin", "arm64", "/usr/bin/c++", "this is Darwin on arm64"),
        ("Windows", "AMD64", None, "this is Windows on AMD64"),
    ],
)
def test_missing_kernels_have_a_remedy_only_where_there_is_one(
    system: str, machine: str, compiler: str | None, advice: str
) -> None:
    assert advice in missing_kernels_advice(system, machine, compiler)


@pytest.mark.parametrize(
    ("of_torch", "environment", "advice"),
    [
        (8, {"OMP_NUM_THREADS": "8"}, None),
        (4, {}, None),
        (1, {"OMP_NUM_THREADS": "1"}, "OMP_NUM_THREADS=1 limits torch to 1 thread on 8 cores"),
        (64, {"MKL_NUM_THREADS": "64"}, "MKL_NUM_THREADS=64 raises torch to 64 threads"),
    ],
)
def test_a_variable_that_changes_the_number_of_threads_is_named(
    of_torch: int, environment: dict[str, str], advice: str | None
) -> None:
    given = threads_advice(8, of_torch, environment)
    assert given == () if advice is None else given[0].startswith(advice)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system always reads through a cache")
def test_a_disk_is_read_for_a_rate_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(2**20) * 20 + b"an odd end")
    rate = read_rate(file)
    assert rate is None or rate > 0
    file.write_bytes(b"")
    assert read_rate(file) is None
    assert read_rate(tmp_path / "absent") is None


def test_every_probe_is_named_as_its_finding() -> None:
    quick = set(PROBES) - {"memory rate"}
    findings = [PROBES[name]() for name in PROBES if name in quick]
    assert [finding.name for finding in findings] == [name for name in PROBES if name in quick]
    assert all("\n" not in line for each in findings for line in (each.found, *each.advice))


def test_a_probe_that_fails_is_a_finding_and_the_next_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> Finding:
        raise RuntimeError("first line\nsecond line")

    def work() -> Finding:
        return Finding(name="good", found="there")

    monkeypatch.setattr("fulmen.doctor.doctor.PROBES", {"bad": fail, "good": work})
    bad, good = examine()
    assert (bad.name, bad.status) == ("bad", "unknown")
    assert bad.found == "cannot be examined: first line second line"
    assert (good.name, good.status) == ("good", "ok")


def test_the_number_of_threads_is_as_before_after_the_rate_of_memory_was_measured() -> None:
    import torch

    before = torch.get_num_threads()
    finding = PROBES["memory rate"]()
    assert torch.get_num_threads() == before
    rates = finding.values["gb_per_s"]
    assert isinstance(rates, dict)
    assert all(rate > 0 for rate in rates.values())
