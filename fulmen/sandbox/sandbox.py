"""A sandbox: commands and file work with limits, or a refusal, never anything else.

Entering one takes a look at the folders (mounts.py), starts bubblewrap with the supervisor as the
first process inside, and speaks to that over a socket. A command that failed and a sandbox that
failed are different messages, so neither is ever guessed from an exit code. Whatever comes from
inside is taken for a stranger's: bounded, checked, and good for nothing but being shown.
"""

import asyncio
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self, get_args

from fulmen.files import parse_json, shorten
from fulmen.sandbox import bubblewrap
from fulmen.sandbox.access import Access, Limits
from fulmen.sandbox.bubblewrap import Namespaces
from fulmen.sandbox.cgroup import Cgroup, make_cgroup
from fulmen.sandbox.connection import Call, Connection, Running
from fulmen.sandbox.devices import Devices
from fulmen.sandbox.kernel import can_leave_abstract_sockets
from fulmen.sandbox.mounts import Mounts, plan_mounts
from fulmen.sandbox.results import (
    EndedBy,
    FileChangedError,
    FileContent,
    FileStatus,
    JobOutput,
    JobStatus,
    Outcome,
    Rows,
    SandboxError,
    SandboxUnavailableError,
)
from fulmen.sandbox.wire import MAX_BODY_BYTES

MAX_COMMAND_BYTES: Final = 100_000
"""Longest command: the system gives an argument no more than 128 KiB"""
START_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 90.0
"""Longest that file work and questions take, the supervisor's own limit included"""
_GRACE_SECONDS: Final = 30.0
_MAX_NOTES: Final = 200
_THREADS: Final = 8
"""Tasks of the kernel that each process may have"""
_OVERSHOOT_BYTES: Final = 64 * 2**20
"""Memory above the limit at which the kernel steps in, before which the supervisor should have"""


@dataclass(slots=True)
class _Parts:
    """Parts of a running sandbox, to be taken apart in the end."""

    mounts: Mounts
    devices: Devices | None = None
    cgroup: Cgroup | None = None
    namespaces: Namespaces | None = None
    control: socket.socket | None = None
    connection: Connection | None = None


class Sandbox:
    """Namespaces in which commands run until it is closed; use it in `async with`.

    Commands share folder, exported variables, /tmp, background processes and everything else of one
    small machine. Whatever still runs at the end is killed, also if this process is.
    """

    def __init__(self, access: Access, limits: Limits | None = None) -> None:
        self._access = access
        self._limits = limits or Limits()
        self._parts: _Parts | None = None
        self._is_closed = False
        self._folder: str | None = None
        self.notes: tuple[str, ...] = ()
        """Sentences on what is not as one would expect, such as files that were made read-only; in
        the end also on what was found then."""

    async def __aenter__(self) -> Self:
        """Make the sandbox. Raises SandboxUnavailableError where this machine cannot have one,
        SandboxError where it fails, ValueError for folders that cannot be given to one."""
        if self._parts is not None:
            raise ValueError("the sandbox is open already")
        bubblewrap.find_bubblewrap()
        path = os.environ.get("PATH", "")
        try:
            mounts = await self._plan_and_start(path)
        except OSError as error:
            await self._close()
            raise SandboxError(f"the sandbox did not start: {error}") from error
        except BaseException:
            await self._close()
            raise
        self.notes = tuple(mounts.notes)
        return self

    async def _plan_and_start(self, path: str) -> Mounts:
        for is_last in (False, True):
            mounts = await asyncio.to_thread(
                plan_mounts, self._access, self._limits, search_path=path
            )
            self._parts = _Parts(mounts)
            try:
                await self._start(self._parts)
            except SandboxError:
                # What was to be hidden may just have gone: /etc has such files while it is changed.
                if is_last or all(os.path.lexists(one) for one in mounts.private):
                    raise
                await self._close()
                self._is_closed = False
            else:
                return mounts
        raise AssertionError("the second try returns or raises")

    async def _start(self, parts: _Parts) -> None:
        is_scoped = self._access.has_network and can_leave_abstract_sockets()
        try:
            parts.devices = Devices()
        except OSError as error:
            raise SandboxUnavailableError(
                f"root's sandbox needs device nodes of its own, and they cannot be made: {error}; "
                "run it as an ordinary user"
            ) from None
        parts.control, inside = socket.socketpair()
        with inside:
            parts.namespaces = bubblewrap.start(
                parts.mounts,
                parts.devices.arguments,
                inside,
                has_network=self._access.has_network,
                has_unix_sockets=is_scoped or not self._access.has_network,
            )
        if self._access.has_network and not is_scoped:
            parts.mounts.notes.append(
                "with the network there are no Unix sockets inside: this kernel (before Linux "
                "6.12) could not keep the host's abstract ones out"
            )
        parts.control.setblocking(False)
        limits = self._limits
        parts.cgroup = make_cgroup(
            limits.memory_bytes + _OVERSHOOT_BYTES, _THREADS * limits.num_processes
        )
        # Until it is told to begin, the supervisor starts nothing: all else will be born in there.
        if parts.cgroup and parts.namespaces.first_pid:
            try:
                parts.cgroup.add(parts.namespaces.first_pid)
            except OSError:  # it may be made, and not be entered, where another owns its parent
                parts.cgroup.remove()
                parts.cgroup = None
        parts.connection = Connection(parts.control, parts.namespaces.kill)
        settings = json.dumps({**self._settings(parts), "is_scoped": is_scoped}).encode()
        try:
            await self._ask(Call(), START_SECONDS, settings, op="begin")
        except SandboxError:
            await asyncio.sleep(0)
            words = parts.namespaces.words()
            if words:
                raise bubblewrap.explain(words) from None
            raise
        except (OSError, ValueError) as error:
            raise SandboxError(f"the sandbox did not start: {error}") from None
        parts.devices.remove()  # they are mounted

    def _settings(self, parts: _Parts) -> dict[str, object]:
        limits, mounts = self._limits, parts.mounts
        num_tasks = _THREADS * limits.num_processes
        return {
            "workspace": str(mounts.workspace),
            "shell": bubblewrap.find_shell(),
            "environment": {**bubblewrap.environment(mounts), **self._access.environment},
            **{"hidden": mounts.hidden, "held": mounts.held, "tmpfs": mounts.tmpfs},
            **{"file_bytes": limits.file_bytes, "output_bytes": limits.output_bytes},
            **{"total_output_bytes": limits.total_output_bytes, "job_bytes": limits.job_bytes},
            **{"num_processes": limits.num_processes, "num_tasks": num_tasks},
            # Linux counts a user's tasks for each user namespace since 5.14, and never root's.
            "user_tasks": num_tasks if _linux() >= (5, 14) else None,
            "process_bytes": None if parts.cgroup else limits.memory_bytes,
            "memory_bytes": limits.memory_bytes,
        }

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def _close(self) -> None:
        parts, self._parts = self._parts, None
        if parts is None:
            return
        self._is_closed = True
        if parts.connection:
            parts.connection.close()
        # Done to the end, whatever happens to the caller meanwhile.
        notes = await asyncio.shield(asyncio.create_task(asyncio.to_thread(_take_apart, parts)))
        self.notes = (*self.notes, *notes)[:_MAX_NOTES]

    # Commands

    @property
    def folder(self) -> str:
        """Folder inside in which the next command begins: the workspace, or where the last one
        said that it ended. It need not be there any more."""
        return self._folder or str(self._opened().mounts.workspace)

    async def run(
        self,
        command: str,
        *,
        seconds: float | None = None,
        folder: str | None = None,
        on_output: Callable[[str], None] | None = None,
    ) -> Outcome:
        """Run a command in bash until it ends or `seconds` are over.

        folder     where it begins; `folder` of the sandbox, or the workspace if that is gone
        on_output  gets the first half of `output_bytes` as it comes

        It has the exported variables that the command before it left. Processes that it leaves in
        the background run on. Cancelling kills it. Raises OSError if it cannot begin in a folder
        that was given, such as FileNotFoundError; the next one then begins in the workspace.
        """
        text = _command_bytes(command)
        seconds = self._limits.seconds if seconds is None else seconds
        if not 0 < seconds <= 1_000_000:
            raise ValueError(f"seconds must be above 0 and at most 1,000,000, found {seconds}")
        parts = self._opened()
        killed_before = parts.cgroup.num_killed() if parts.cgroup else 0
        running = Running(self._limits.output_bytes, on_output)
        limit = seconds + _GRACE_SECONDS
        header, tail = await self._begin(folder, running, limit, text, op="run", seconds=seconds)
        self._restore_links()
        left = header.get("folder")
        if isinstance(left, str) and left.startswith("/"):
            self._folder = left
        ended_by = header.get("ended_by")
        exit_code = _exit_code(header)
        if parts.cgroup and ended_by in ("exit", "signal") and exit_code != 0:
            # The kernel kills the largest process; its shell then ends by itself.
            ended_by = "memory" if parts.cgroup.num_killed() > killed_before else ended_by
        dropped, took = header.get("dropped"), header.get("seconds")
        if not (
            ended_by in get_args(EndedBy)
            and isinstance(dropped, int)
            and 0 <= dropped < 2**60
            and isinstance(took, float)
            and 0 <= took < 2e6
        ):
            raise self._connection().fail("the sandbox told no end of a command and was ended")
        return Outcome(
            exit_code=exit_code,
            ended_by=ended_by,  # type: ignore[arg-type]
            output=_joined(bytes(running.head), dropped, tail),
            num_dropped_bytes=dropped,
            seconds=took,
        )

    async def start(self, command: str, *, folder: str | None = None) -> int:
        """Start a command in the background; return the number of the job. Raises OSError for a
        folder like `run`."""
        text = _command_bytes(command)
        header, _ = await self._begin(folder, Call(), ANSWER_SECONDS, text, op="start")
        return self._whole(header, "job")

    async def _begin(
        self, folder: str | None, call: Call, patience: float, text: bytes, **request: object
    ) -> tuple[dict[str, object], bytes]:
        place = self.folder if folder is None else folder
        try:
            return await self._ask(call, patience, text, folder=place, **request)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            self._folder = None
            if folder is not None or place == self.folder:
                raise
        return await self._ask(call.again(), patience, text, folder=self.folder, **request)

    async def jobs(self) -> list[JobStatus]:
        """Return the jobs, ended ones too until 64 are known."""
        _, body = await self._ask(Call(), ANSWER_SECONDS, op="jobs")
        found = []
        for row in self._rows(body, (int, str, int | None, str)):
            job, command, exit_code, ended_by = row
            found.append(
                JobStatus(job=job, command=command, exit_code=exit_code, ended_by=ended_by)  # type: ignore[arg-type]
            )
        return found

    async def read_job(self, job: int, *, cursor: int = 0) -> JobOutput:
        """Return a job's output from a place on, as far as it is kept. Raises ValueError for a job
        that there is not."""
        header, body = await self._ask(Call(), ANSWER_SECONDS, op="job", job=job, cursor=cursor)
        begin = self._whole(header, "begin")
        self._restore_links()
        return JobOutput(
            output=body.decode(errors="replace"),
            begin=begin,
            cursor=begin + len(body),
            exit_code=_exit_code(header),
            ended_by=str(header.get("ended_by"))[:20],
        )

    async def kill_job(self, job: int) -> None:
        """Kill a job and all its children. Raises ValueError for a job that there is not."""
        await self._ask(Call(), ANSWER_SECONDS, op="kill", job=job)

    async def settle_repositories(self) -> list[str]:
        """Look for repositories that were made inside now, not only in the end; return a sentence
        for each that is new."""
        mounts = self._opened().mounts
        mounts.repositories.known |= mounts.links.identities()
        notes = await asyncio.to_thread(mounts.repositories.settle)
        self.notes = (*self.notes, *notes)[:_MAX_NOTES]
        return notes

    # Files. A path that is not absolute begins in the workspace; an OSError is the kernel's word
    # from inside, such as FileNotFoundError, or PermissionError for what is read-only.

    async def read_file(
        self, path: str, *, offset: int = 0, max_bytes: int = MAX_BODY_BYTES
    ) -> FileContent:
        """Read a regular file, or a part of it, at most 8 MiB. Raises OSError, and ValueError for
        what is no regular file."""
        if offset < 0 or max_bytes < 1:
            raise ValueError(f"offset {offset} and max_bytes {max_bytes} are no part of a file")
        header, content = await self._work(path, do="read", offset=offset, max_bytes=max_bytes)
        return FileContent(
            content=content,
            size=self._whole(header, "size"),
            sha256=str(header.get("sha256"))[:64] or None,
            real=str(header.get("real")),
        )

    async def write_file(self, path: str, content: bytes, *, expected: str | None = None) -> str:
        """Write a file whole, and folders above it; return its SHA-256.

        expected  SHA-256 of what must be there now, "" for nothing

        Raises FileChangedError if something else is there, OSError, and ValueError for what is no
        regular file. The old file stays if anything fails.
        """
        if len(content) > MAX_BODY_BYTES:
            raise ValueError(
                f"a file of at most {MAX_BODY_BYTES:,} bytes can be written, found {len(content):,}"
            )
        header, _ = await self._work(path, content, do="write", expected=expected)
        return str(header.get("sha256"))[:64]

    async def stat(self, path: str) -> FileStatus:
        """Return kind, size, mode and time of a path. Raises OSError."""
        header, _ = await self._work(path, do="stat")
        modified = header.get("modified")
        return FileStatus(
            kind=str(header.get("type"))[:20],
            size=self._whole(header, "size"),
            mode=self._whole(header, "mode"),
            modified=modified if isinstance(modified, float) else 0.0,
            target=str(header.get("target")),
        )

    async def list_folder(
        self, path: str, *, depth: int = 1, max_entries: int = 2000, glob: str = ""
    ) -> Rows:
        """Return path, kind and size of what is in a folder, down to a depth, in order of names.

        glob  lists only what is no folder and has such a path, or such a name if it has no slash

        Raises OSError, and ValueError for what is no pattern.
        """
        header, body = await self._work(
            path, do="list", depth=depth, max_entries=max_entries, glob=glob
        )
        rows = self._rows(body, (str, str, int))
        return Rows(rows=tuple(rows), is_cut=header.get("is_cut") is True)  # type: ignore[arg-type]

    async def search(
        self,
        pattern: str,
        path: str = ".",
        *,
        glob: str = "",
        is_case_ignored: bool = False,
        max_matches: int = 500,
    ) -> Rows:
        """Return path, number and text of the lines in which a regular expression is found. The
        paths are those that `read_file` takes.

        glob  looks only into files of this name, or of this path in the folder if it has a slash

        Files that are no text or larger than 32 MiB, `.git` folders and links are passed over.
        Raises OSError, and ValueError for what is no regular expression.
        """
        header, body = await self._work(
            path,
            do="search",
            pattern=pattern,
            glob=glob,
            is_case_ignored=is_case_ignored,
            max_matches=max_matches,
        )
        rows = self._rows(body, (str, int, str))
        return Rows(rows=tuple(rows), is_cut=header.get("is_cut") is True)  # type: ignore[arg-type]

    async def _work(
        self, path: str, content: bytes = b"", **request: object
    ) -> tuple[dict[str, object], bytes]:
        try:
            answer = await self._ask(
                Call(), ANSWER_SECONDS, content, op="file", path=path, **request
            )
        except OSError as error:
            named = OSError(error.errno, error.strerror, path)
            if isinstance(named, BlockingIOError):
                raise FileChangedError(f"{path} has changed since it was read") from None
            raise named from None
        self._restore_links()
        return answer

    # Messages

    def _opened(self) -> _Parts:
        if self._is_closed:
            raise SandboxError("the sandbox is closed")
        if self._parts is None:
            raise ValueError("the sandbox is not open, use it in `async with`")
        return self._parts

    async def _ask(
        self, call: Call, patience: float, body: bytes = b"", **request: object
    ) -> tuple[dict[str, object], bytes]:
        return await self._connection().ask(call, patience, body, **request)

    def _connection(self) -> Connection:
        connection = self._opened().connection
        assert connection is not None
        return connection

    def _restore_links(self) -> None:
        if self._parts:
            self.notes = (*self.notes, *self._parts.mounts.links.restore())[:_MAX_NOTES]

    def _whole(self, header: dict[str, object], name: str) -> int:
        value = header.get(name)
        if not isinstance(value, int) or not 0 <= value < 2**63:
            raise self._connection().fail(f"the sandbox told no {name} and was ended")
        return value

    def _rows(self, body: bytes, kinds: tuple[object, ...]) -> list[tuple[object, ...]]:
        try:
            rows = parse_json(body, "a listing").get("rows")
            if not isinstance(rows, list):
                raise ValueError("a listing without rows")
            for row in rows:
                if not isinstance(row, list) or len(row) != len(kinds):
                    raise ValueError("a row of the wrong length")
                for value, kind in zip(row, kinds, strict=True):
                    if not isinstance(value, kind):  # type: ignore[arg-type]
                        raise ValueError("a field of the wrong kind")
        except ValueError as error:
            text = f"the sandbox sent what no sandbox sends ({shorten(error)}) and was ended"
            raise self._connection().fail(text) from None
        return [tuple(row) for row in rows]


def _take_apart(parts: _Parts) -> list[str]:
    """Kill everything inside, wait until it is dead, and leave the host as it was; return a
    sentence for each thing that was put right."""
    if parts.namespaces:
        namespaces = parts.namespaces
        namespaces.kill()
        if namespaces.first is not None:
            select.select([namespaces.first], [], [], START_SECONDS)
        with contextlib.suppress(subprocess.TimeoutExpired):
            namespaces.process.wait(START_SECONDS)
        namespaces.close()
    if parts.control:
        parts.control.close()
    if parts.devices:
        parts.devices.remove()
    if parts.cgroup:
        parts.cgroup.remove()
    return parts.mounts.settle()


def _command_bytes(command: str) -> bytes:
    text = command.encode(errors="surrogateescape")
    if len(text) > MAX_COMMAND_BYTES:
        raise ValueError(
            f"a command has at most {MAX_COMMAND_BYTES:,} bytes, found {len(text):,}: write a file"
        )
    if b"\0" in text:
        raise ValueError("a command cannot hold a null character")
    return text


def _exit_code(header: dict[str, object]) -> int | None:
    code = header.get("exit_code")
    return code if isinstance(code, int) and 0 <= code < 256 else None


def _joined(head: bytes, num_dropped: int, tail: bytes) -> str:
    if not num_dropped:
        return (head + tail).decode(errors="replace")
    middle = f"\n[... {num_dropped:,} bytes left out ...]\n"
    return head.decode(errors="replace") + middle + tail.decode(errors="replace")


def _linux() -> tuple[int, int]:
    if sys.platform == "win32":
        return 0, 0
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor) if minor.isdecimal() else 0
