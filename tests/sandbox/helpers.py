"""A sandbox in a temporary folder, and an adversary's scripts in it."""

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fulmen.sandbox import Access, Limits, Outcome, Sandbox, SandboxUnavailableError

T = TypeVar("T")
PYTHON = os.path.realpath("/proc/self/exe")
"""The interpreter that every sandbox of this process has inside"""
EVIL = "git config core.fsmonitor 'touch pwned; false'"
"""Setting of a repository that runs a program with the next `git status`"""


@cache
def why_there_is_no_sandbox() -> str:
    """Return why this machine cannot have a sandbox; an empty text if it can."""

    async def try_one() -> str:
        try:
            async with Sandbox(Access(folder=Path(__file__).parent, is_read_only=True)):
                return ""
        except SandboxUnavailableError as error:
            return str(error)

    return asyncio.run(try_one())


def skip_without_sandbox() -> None:
    """Skip a test where this machine can have no sandbox."""
    skip_if_missing(why_there_is_no_sandbox())


def skip_if_missing(reason: str) -> None:
    """Skip a test for a reason, if there is one; where sandboxes must be, as FULMEN_NEEDS_SANDBOX
    says, fail it."""
    if reason and os.environ.get("FULMEN_NEEDS_SANDBOX"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def inside(
    folder: Path,
    use: Callable[[Sandbox], Awaitable[T]],
    *,
    limits: Limits | None = None,
    **access: object,
) -> T:
    """Use a sandbox over a folder, from its start to its end."""
    skip_without_sandbox()

    async def run() -> T:
        given = Access(folder=folder, **access)  # type: ignore[arg-type]
        async with Sandbox(given, limits) as sandbox:
            return await use(sandbox)

    return asyncio.run(asyncio.wait_for(run(), 120))


def run_inside(folder: Path, command: str, **options: object) -> Outcome:
    """Run one command in a sandbox of its own."""

    async def use(sandbox: Sandbox) -> Outcome:
        return await sandbox.run(command)

    return inside(folder, use, **options)  # type: ignore[arg-type]


def python(program: str) -> str:
    """Return a shell command that runs a Python program."""
    return f"{PYTHON} -I -S - <<'PROGRAM'\n{program}\nPROGRAM"


def num_processes(mark: str) -> int:
    """Return how many processes of this machine have a mark in their command line."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return sum(mark in line for line in listed.stdout.splitlines())


def closed(folder: Path, command: str, **access: Any) -> list[str]:
    """Run a command; return the notes of the sandbox once it is closed."""
    boxes: list[Sandbox] = []

    async def use(sandbox: Sandbox) -> None:
        boxes.append(sandbox)
        outcome = await sandbox.run(command)
        assert outcome.exit_code == 0, outcome.output

    inside(folder, use, **access)
    return list(boxes[0].notes)
