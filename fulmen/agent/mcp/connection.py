"""One MCP server while it is in use: connected, asked, begun anew once if it dies.

    call -> Connection -> [task: transport -> mcp.Client] -> result, or McpFailure

The package `mcp` wants a connection to be closed by the task that opened it, and a run is opened
and closed by different ones, so each connection is a task of its own. It first asks for the newest
protocol and falls back to that of before 2026; a server that cannot bear the question is started
once more and not asked.
"""

import asyncio
import logging
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from fulmen import __version__
from fulmen.agent.mcp.servers import McpServer
from fulmen.agent.mcp.stdio import started
from fulmen.files import shorten

_OPEN_SECONDS: Final = 30.0
_CLOSE_SECONDS: Final = 10.0
_MAX_PAGES: Final = 50
_SESSION_IS_GONE: Final = re.compile(r"session (was )?(not found|terminated|expired)", re.I)
"""Words of a server of the old era that was begun anew"""
_MAX_TOOLS: Final = 200


class McpFailure(Exception):
    """A server that did not do what it was asked to; the sentence is for the model."""


class Connection:
    """The connection to one server, for one event loop."""

    def __init__(self, server: McpServer, folder: Path) -> None:
        """
        folder  where a command begins
        """
        self.server = server
        self.said: deque[str] = deque(maxlen=8)
        """Last lines that a command wrote to stderr, for people"""
        self.protocol = ""
        """Version of the protocol that was agreed on"""
        self._folder = folder
        self._client: Any = None
        self._failed_to_start = False
        self._task: asyncio.Task[None] | None = None
        self._end = asyncio.Event()
        self._opening = asyncio.Lock()
        self._can_begin_anew = True

    async def open(self) -> None:
        """Connect. Raises McpFailure."""
        async with self._opening:
            await self._open()

    async def _open(self) -> None:
        try:
            await self._connect("auto")
        except McpFailure:
            if not self.server.command or self._failed_to_start:
                raise
            await self._connect("legacy")

    async def _connect(self, era: str) -> None:
        self._failed_to_start = False
        self._end = asyncio.Event()
        ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        ready.add_done_callback(lambda one: one.cancelled() or one.exception())
        self._task = asyncio.create_task(self._live(era, ready, self._end))
        try:
            await asyncio.wait_for(asyncio.shield(ready), _OPEN_SECONDS)
        except TimeoutError:
            await self.close()
            raise McpFailure(
                f"the server {self.server.name} did not answer for {_OPEN_SECONDS:.0f} s"
            ) from None
        except asyncio.CancelledError:
            await self.close()
            raise

    async def _live(self, era: str, ready: asyncio.Future[Any], end: asyncio.Event) -> None:
        """Hold the connection until it is to end."""
        name = self.server.name
        try:
            async with self._transport() as streams:
                from mcp import Client
                from mcp_types import Implementation

                transport = _Given(streams)
                about = Implementation(name="fulmen", version=__version__)
                client = Client(transport, mode=era, cache=None, client_info=about)
                async with client:
                    client.session.validate_tool_result = _unchecked
                    self.protocol = client.protocol_version
                    self._client = client
                    if not ready.done():
                        ready.set_result(None)
                    await end.wait()
        except ModuleNotFoundError as error:
            self._failed_to_start = True
            _fail(ready, f"MCP servers need pip install 'fulmen[mcp]' ({error.name} is missing)")
        except (OSError, ValueError) as error:
            self._failed_to_start = True
            _fail(ready, f"the server {name} cannot be started: {shorten(error, 300)}")
        except Exception as error:  # the outer edge of one connection
            _fail(ready, f"the server {name} cannot be used: {_reason(error)}")
        finally:
            self._client = None
            _fail(ready, f"the server {name} ended")

    @asynccontextmanager
    async def _transport(self) -> AsyncIterator[Any]:
        import mcp  # noqa: F401  # before a process is begun that nobody could speak to

        _silence()
        server = self.server
        if server.command:
            async with started(server, self._folder, os.environ, self.said) as streams:
                yield streams
            return
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        from fulmen.agent.bounded_http import BoundedTransport

        inner = BoundedTransport(httpx2.AsyncHTTPTransport(), has_streams=True)
        headers = server.expanded(server.headers, os.environ)
        timeout = httpx2.Timeout(_OPEN_SECONDS, read=server.timeout + _OPEN_SECONDS)
        async with (
            httpx2.AsyncClient(transport=inner, headers=headers, timeout=timeout) as client,
            streamable_http_client(server.url, http_client=client) as streams,
        ):
            yield streams

    async def close(self) -> None:
        """End the connection, and the server with it if it is a process."""
        task, self._task = self._task, None
        if task is None:
            return
        self._end.set()
        done, _ = await asyncio.wait([task], timeout=_CLOSE_SECONDS if self._client else 0)
        if not done:
            task.cancel()
            await asyncio.wait([task], timeout=_CLOSE_SECONDS)

    async def tools(self) -> Sequence[Any]:
        """Return the tools that the server has now, as it describes them. Raises McpFailure."""
        client, found, cursor = self._client, [], None
        if client is None:
            raise McpFailure(f"the server {self.server.name} ended")
        for _ in range(_MAX_PAGES):
            page = await self._answer(client, client.list_tools(cursor=cursor))
            found += page.tools
            cursor = page.next_cursor
            if not cursor or len(found) >= _MAX_TOOLS:
                break
        return found[:_MAX_TOOLS]

    async def call(self, tool: str, arguments: dict[str, Any]) -> Any:
        """Return the result of a call. Raises McpFailure: after that the server is begun anew for
        the next call, if it died and was not before; the call itself is not made again, since
        nobody knows how far it came."""
        async with self._opening:
            if self._client is None:
                if not self._can_begin_anew:
                    raise McpFailure(f"the server {self.server.name} is not running any more")
                self._can_begin_anew = False
                await self.close()
                await self._open()
        client, seconds = self._client, self.server.timeout
        call = client.call_tool(tool, arguments, read_timeout_seconds=seconds)
        return await self._answer(client, call)

    async def _answer(self, client: Any, call: Any) -> Any:
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED

        name, seconds = self.server.name, self.server.timeout
        try:
            return await asyncio.wait_for(call, seconds + 5)
        except (TimeoutError, MCPError) as error:
            if isinstance(error, MCPError) and error.code == CONNECTION_CLOSED:
                await self._lose(client)
                raise McpFailure(f"the server {name} ended before it answered") from None
            if self.server.url and _SESSION_IS_GONE.search(str(error)):
                await self._lose(client)
                raise McpFailure(f"the server {name} has forgotten this session") from None
            if isinstance(error, TimeoutError) or "timed out" in str(error).lower():
                raise McpFailure(f"the server {name} did not answer for {seconds:g} s") from None
            raise McpFailure(f"the server {name} refused: {shorten(error, 2000)}") from None
        except Exception as error:  # what a stranger's answer does to the library
            raise McpFailure(f"the server {name} failed: {_reason(error)}") from None

    async def _lose(self, client: Any) -> None:
        """Take note that a connection is over."""
        if client is self._client:
            self._client = None
            await self.close()


class _Given:
    """Streams that are open, as the transport of a client."""

    def __init__(self, streams: Any) -> None:
        self._streams = streams

    async def __aenter__(self) -> Any:
        return self._streams

    async def __aexit__(self, *_: object) -> None:
        pass


async def _unchecked(name: str, result: Any) -> None:
    """Take a result as it is. A server's schema may hold a pattern that takes forever to match."""


def _fail(ready: asyncio.Future[Any], text: str) -> None:
    if not ready.done():
        ready.set_exception(McpFailure(text))


def _reason(error: BaseException) -> str:
    """Return one sentence for an error, the first of those that came together."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return shorten(str(error) or type(error).__name__, 300)


def _silence() -> None:
    """Let the package log nothing by itself: it would print what a server said on a terminal."""
    for name in ("mcp", "client", "httpx2"):
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
        logger.propagate = False
