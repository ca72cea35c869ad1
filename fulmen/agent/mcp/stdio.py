"""A server as a process: its messages as lines, bounded, and nothing of it left in the end.

The package `mcp` has such a transport, whose line may be of any length; this one ends a server
whose line is too long. A server's processes carry a mark in their environment, so that those which
left its process group are found too.
"""

import asyncio
import os
import secrets
import signal
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from fulmen.agent.mcp.servers import McpServer

MAX_LINE_BYTES: Final = 8 * 2**20
_GRACE_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 0.2
_MARK: Final = "FULMEN_MCP_SERVER"
_INHERITED: Final = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "USER")
"""Variables of the user's that a server gets unasked; what is secret it gets by name alone"""
_TOLD_LINES: Final = 5


@asynccontextmanager
async def started(
    server: McpServer, folder: Path, environment: Mapping[str, str], said: deque[str]
) -> AsyncIterator[tuple[Any, Any]]:
    """Start a server; yield the streams on which the package `mcp` reads and writes messages.

    said  receives the last lines of its stderr

    Raises OSError if it cannot be started, ValueError for a variable that is not set.
    """
    import anyio

    mark = secrets.token_hex(16)
    given = {name: environment[name] for name in _INHERITED if name in environment}
    process = await asyncio.create_subprocess_exec(
        *server.command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env={**given, **server.expanded(server.env, environment), _MARK: mark},
        start_new_session=True,
        limit=MAX_LINE_BYTES,
    )
    incoming, read = anyio.create_memory_object_stream[Any](0)
    write, outgoing = anyio.create_memory_object_stream[Any](0)
    tasks = [
        asyncio.create_task(_read(process, incoming)),
        asyncio.create_task(_write(process, outgoing, incoming)),
        asyncio.create_task(_listen(process, said)),
        asyncio.create_task(_watch(process, incoming)),
    ]
    try:
        yield read, write
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for stream in (incoming, read, write, outgoing):
            stream.close()
        await _end(process, mark)


async def _read(process: asyncio.subprocess.Process, incoming: Any) -> None:
    """Hand on each message; a line that is none is left out, as servers print this and that."""
    import anyio
    from mcp.shared.message import SessionMessage
    from mcp_types import jsonrpc_message_adapter

    assert process.stdout is not None
    with incoming, suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        while True:
            try:
                line = await process.stdout.readline()
            except (ValueError, OSError):  # a line beyond the limit
                return
            if not line:
                return
            try:
                message = jsonrpc_message_adapter.validate_json(line, by_name=False)
            except (ValueError, RecursionError):
                continue
            await incoming.send(SessionMessage(message))


async def _write(process: asyncio.subprocess.Process, outgoing: Any, incoming: Any) -> None:
    assert process.stdin is not None
    try:
        async for one in outgoing:
            text = one.message.model_dump_json(by_alias=True, exclude_unset=True)
            process.stdin.write(text.encode() + b"\n")
            await process.stdin.drain()
    except (OSError, ValueError):
        incoming.close()  # the session sees that nobody will answer


async def _watch(process: asyncio.subprocess.Process, incoming: Any) -> None:
    """Let the session see that a server ended, also where processes that it left hold its pipes."""
    while process.returncode is None:
        await asyncio.sleep(_LOOK_SECONDS)
    await asyncio.sleep(_LOOK_SECONDS)  # for what is still in the pipe
    incoming.close()


async def _listen(process: asyncio.subprocess.Process, said: deque[str]) -> None:
    """Keep the last of what a server says on stderr."""
    assert process.stderr is not None
    with suppress(OSError):
        while chunk := await process.stderr.read(4096):
            lines = ("".join(said) + chunk.decode(errors="replace"))[-4096:].splitlines(True)
            said.clear()
            said.extend(lines[-_TOLD_LINES:])


async def _end(process: asyncio.subprocess.Process, mark: str) -> None:
    """Close a server's stdin, wait, then end all processes that it left."""
    if process.stdin is not None:
        process.stdin.close()
    if not await _has_ended(process):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        await _has_ended(process)
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for _ in range(5):  # one may begin another meanwhile
        found = await asyncio.to_thread(_marked, mark)
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            break
        await asyncio.sleep(0.02)
    await _has_ended(process)
    process._transport.close()  # type: ignore[attr-defined]  # a child may hold the pipes


async def _has_ended(process: asyncio.subprocess.Process) -> bool:
    # Not process.wait(), which also waits for the pipes to be closed by all children.
    deadline = asyncio.get_running_loop().time() + _GRACE_SECONDS
    while process.returncode is None:
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


def _marked(mark: str) -> list[int]:
    """Return the processes of one server, where the system tells; none elsewhere."""
    wanted = f"{_MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found
