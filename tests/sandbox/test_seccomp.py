"""The filter, run instruction by instruction, against the tables it is made of."""

import errno
import os
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.sandbox import seccomp
from tests.examples import examples

ALLOW, KILL = 0x7FFF0000, 0x80000000
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
HEADERS = {
    0: "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    1: "/usr/include/asm-generic/unistd.h",
}
BY_ARGUMENT = {
    **{"clone": seccomp.CLONE, "ioctl": seccomp.IOCTL, "socket": seccomp.SOCKET},
    **{"socketpair": seccomp.SOCKETPAIR, "prlimit64": seccomp.PRLIMIT},
    "personality": seccomp.PERSONALITY,
    **{name: tuple(both) for name, (*both, _) in (seccomp.MODES | seccomp.OPENS).items()},
}
MODES = {
    **{"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "creat": 1, "mkdir": 1},
    **{"mkdirat": 2, "mknod": 1, "mknodat": 2, "open": 2, "openat": 3},
}
"""Number of the argument that is the mode of a file"""


def verdict(program: bytes, architecture: int, number: int, arguments: tuple[int, ...]) -> int:
    """Run classic BPF as the kernel does."""
    call = struct.pack("<IIQ6Q", number, architecture, 0, *arguments)
    code = list(struct.iter_unpack("<HBBI", program))
    accumulator = place = 0
    while True:
        operation, if_true, if_false, value = code[place]
        place += 1
        if operation == 0x06:
            return int(value)
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", call, value)
            continue
        is_true = {
            0x15: accumulator == value,
            0x35: accumulator >= value,
            0x45: bool(accumulator & value),
        }[operation]
        place += if_true if is_true else if_false


def deny(number: int) -> int:
    return 0x00050000 | number


def expected(machine: str, number: int, arguments: tuple[int, ...], has_unix: bool) -> int:
    """Say in plain Python what the filter is to decide."""
    column = ARCHITECTURES[machine][0]
    first, second, third = (one & 0xFFFFFFFF for one in arguments[:3])
    if machine == "x86_64" and number >= 0x40000000:
        return KILL
    denied = {numbers[column] for numbers in seccomp.EVERYWHERE.values()}
    denied |= set(seccomp.ONLY_X86_64.values()) if machine == "x86_64" else set()
    if number in denied:
        return deny(errno.EPERM)
    if number in {numbers[column] for numbers in seccomp.AS_MISSING.values()}:
        return deny(errno.ENOSYS)
    name = next((name for name, both in BY_ARGUMENT.items() if both[column] == number), "")
    namespaces = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000
    if name in MODES and arguments[MODES[name]] & 0o6000:
        flags = arguments[MODES[name] - 1]
        makes = name not in ("open", "openat") or flags & (
            os.O_CREAT | os.O_TMPFILE & ~os.O_DIRECTORY
        )
        return deny(errno.EPERM) if makes else ALLOW
    if name == "clone" and first & (namespaces | 0x40000000):
        return deny(errno.EPERM)
    if name == "ioctl" and second in (0x5412, 0x541C):
        return deny(errno.EPERM)
    if name == "prlimit64" and first:
        return deny(errno.EPERM)
    if name == "personality" and first not in (0, 8, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF):
        return deny(errno.EPERM)
    if name == "socketpair" and first != 1:
        return deny(errno.EAFNOSUPPORT)
    if name == "socket" and first not in ((1, 2, 10, 16) if has_unix else (2, 10, 16)):
        return deny(errno.EAFNOSUPPORT)
    if name == "socket" and first == 16 and third:
        return deny(errno.EPROTONOSUPPORT)
    return ALLOW


ARGUMENT = st.one_of(
    st.integers(0, 50),
    st.sampled_from([os.O_CREAT, os.O_TMPFILE, 0o4755, 0o2755, 0o755]),
    st.sampled_from([0x5412, 0x541C, 0x20000, 0x40000, 0xFFFFFFFF, 2**32, 2**32 + 1, 2**63]),
    st.integers(0, 31).map(lambda bit: 1 << bit),
    st.integers(0, 2**64 - 1),
)


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize("has_unix", [True, False])
def test_every_system_call_is_decided_as_the_tables_say(machine: str, has_unix: bool) -> None:
    program = seccomp.filter_program(machine, has_unix_sockets=has_unix)
    architecture = ARCHITECTURES[machine][1]
    for number in (*range(600), 0x40000000, 0x40000000 + 165, 2**32 - 1):
        arguments = (0, 0, 0, 0, 0, 0)
        found = verdict(program, architecture, number, arguments)
        assert found == expected(machine, number, arguments, has_unix), number


@pytest.mark.parametrize("machine", ARCHITECTURES)
@given(st.data())
@settings(max_examples=examples(100))
def test_any_arguments_are_decided_as_said(machine: str, data: st.DataObject) -> None:
    column, architecture = ARCHITECTURES[machine]
    numbers = [number for both in BY_ARGUMENT.values() if (number := both[column])]
    number = data.draw(st.sampled_from(numbers))
    arguments = data.draw(st.tuples(*[ARGUMENT] * 6))
    has_unix = data.draw(st.booleans())
    program = seccomp.filter_program(machine, has_unix_sockets=has_unix)
    found = verdict(program, architecture, number, arguments)
    assert found == expected(machine, number, arguments, has_unix)


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_another_architecture_is_killed(machine: str) -> None:
    program = seccomp.filter_program(machine)
    for architecture in (0x40000003, 0, 0xC00000B7 if machine == "x86_64" else 0xC000003E):
        assert verdict(program, architecture, 0, (0,) * 6) == KILL


@pytest.mark.parametrize("column", HEADERS)
def test_numbers_are_those_of_the_kernels_headers(column: int) -> None:
    header = Path(HEADERS[column])
    if not header.exists():
        pytest.skip(f"{header} is not here")
    text = header.read_text()
    known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text))
    ours = {**seccomp.EVERYWHERE, **seccomp.AS_MISSING, **BY_ARGUMENT}
    numbers = {name: both[column] for name, both in ours.items()}
    numbers = {name: number for name, number in numbers.items() if number is not None}
    numbers |= seccomp.ONLY_X86_64 if column == 0 else {}
    checked = {name for name in numbers if name in known}
    assert {name: numbers[name] for name in checked} == {name: int(known[name]) for name in checked}
    assert len(checked) > len(numbers) - 8  # a header may be older than the newest calls


def test_a_machine_without_numbers_is_named() -> None:
    with pytest.raises(ValueError, match="not riscv64"):
        seccomp.filter_program("riscv64")
