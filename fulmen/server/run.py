"""One process that serves an application, from a bound socket to the last answer.

    bind -> accept -> /ready answers 200 -> on_ready(url)
    SIGTERM, SIGINT -> new requests get 503 -> running answers finish, for a while -> the rest end
                       with an error event -> the application closes
    a second SIGINT -> everything ends at once

uvicorn has no limit on the time or the size of a request's head, nor on connections. Its protocols
get them here.
"""

import asyncio
import contextlib
import errno
import importlib
import importlib.util
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, Final, TypeVar

import uvicorn
from fastapi import FastAPI

from fulmen.server.config import ServerConfig
from fulmen.server.drain import Drain

T = TypeVar("T")

_BACKLOG: Final = 2048
_MAX_CONNECTIONS: Final = 1024
_MAX_HEAD_BYTES: Final = 64 * 2**10
_KEEP_ALIVE_SECONDS: Final = 60
"""Time that an idle connection stays open: longer than clients keep theirs, which would else send
a request into a connection that is being closed"""
_END_SECONDS: Final = 5
"""Time that ended answers get to say so"""
_POLL_SECONDS: Final = 0.05
_STALLS: Final = 4
"""Read time-outs that a client may leave an answer unread: it holds a place all the while"""

_log = logging.getLogger(__name__)


def bind(config: ServerConfig) -> socket.socket:
    """Return a socket that is bound to the address of a server. Done before a model is loaded, it
    saves the wait for a port that is taken.

    Raises ValueError for an address that is taken, or is none of this machine.
    """
    host, port = config.host, config.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ValueError(f"host is {host}, which is no address: {error.strerror}") from None
    except UnicodeError:
        raise ValueError(f"host is {host[:80]!r}, which is no address") from None
    family, *_, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    # asyncio sends at once only on sockets that name their protocol; others hold the end of an
    # answer until the client has acknowledged its beginning, for 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if sys.platform != "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _unusable(config, error) from None
    return sock


def _unusable(config: ServerConfig, error: OSError) -> ValueError:
    where = f"{_in_url(config.host)}:{config.port}"
    if error.errno == errno.EADDRINUSE:
        return ValueError(f"{where} is taken by another program, choose another port")
    reason = (error.strerror or str(error)).lower()
    return ValueError(f"{where} cannot be listened on: {reason}")


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the fastest event loop that is installed."""
    factory = None
    if importlib.util.find_spec("uvloop") is not None:
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


async def serve(
    app: FastAPI,
    config: ServerConfig,
    *,
    on_ready: Callable[[str], None],
    sock: socket.socket | None = None,
) -> bool:
    """Serve an application of `create_app` until a signal or a cancellation ends it.

    on_ready  called with the address, once /ready answers 200
    sock      socket of `bind`; else one is bound

    Returns True after an orderly end, False if a second signal cut it short. Raises ValueError for
    an address that cannot be listened on.
    """
    sock = sock or bind(config)
    try:
        sock.listen(_BACKLOG)
    except OSError as error:  # a port that two have bound is taken by the first that listens
        sock.close()
        raise _unusable(config, error) from None
    server = _Server(app, config)
    watch = asyncio.create_task(_tell_when_ready(server, config, sock, on_ready))
    serving = asyncio.create_task(server.serve([sock]))
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        sock.close()
    return not server.force_exit


class _Server(uvicorn.Server):
    """A server that drains before it stops, and stops with exit code 0."""

    def __init__(self, app: FastAPI, config: ServerConfig) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_protocol(config),
                ws="none",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_END_SECONDS,
            )
        )
        # Its own news would only repeat ours.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._drain: Drain = app.state.drain
        self._drain_seconds = config.drain_seconds

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that end a program. Unlike uvicorn's, none is raised again at the end:
        to be asked to stop, and to stop, is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second SIGINT stops at once."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running answers finish, end the others, and close."""
        self._drain.begin()
        loop = asyncio.get_running_loop()
        until = loop.time() + self._drain_seconds
        if self._drain.num_running and not self.force_exit:
            _log.info(
                "stopping: %d requests may finish within %g s, Ctrl+C ends them now",
                self._drain.num_running,
                self._drain_seconds,
            )
        while self._drain.num_running and loop.time() < until and not self.force_exit:
            await asyncio.sleep(_POLL_SECONDS)
        self._drain.end()
        if self.force_exit:
            await asyncio.sleep(2 * _POLL_SECONDS)  # for the error events of streams
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves it out then
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self.lifespan.shutdown()


# ---- readiness ----------------------------------------------------------------------------------


def _url(config: ServerConfig, sock: socket.socket) -> str:
    return f"http://{_in_url(config.host)}:{sock.getsockname()[1]}"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _tell_when_ready(
    server: _Server, config: ServerConfig, sock: socket.socket, on_ready: Callable[[str], None]
) -> None:
    """Call on_ready as soon as /ready answers 200 over a real connection."""
    url = _url(config, sock)
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    while not server.should_exit:
        if server.started and await _is_ready(host, port):
            on_ready(url)
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _is_ready(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                return (await reader.readline()).split()[1:2] == [b"200"]
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


# ---- connections --------------------------------------------------------------------------------


def _protocol(config: ServerConfig) -> type[asyncio.Protocol]:
    """Return uvicorn's fastest protocol that is installed, with our limits."""
    if importlib.util.find_spec("httptools") is not None:
        base = importlib.import_module("uvicorn.protocols.http.httptools_impl").HttpToolsProtocol
    else:
        base = importlib.import_module("uvicorn.protocols.http.h11_impl").H11Protocol
    return _limited(base, config.read_timeout_seconds, _STALLS * config.read_timeout_seconds)


def _limited(base: Any, head_seconds: float, stall_seconds: float) -> type[asyncio.Protocol]:
    """Return a protocol of uvicorn's that closes connections which keep it waiting.

    head_seconds   time in which a request's head must arrive
    stall_seconds  time that a client may leave what we send unread
    """

    class Limited(base):  # type: ignore[misc]
        """A connection whose heads have a limit of time and size."""

        _head_timer: asyncio.TimerHandle | None = None
        _stall_timer: asyncio.TimerHandle | None = None
        _num_head_bytes = 0

        @property
        def _waits_for_head(self) -> bool:
            """True unless a request is under way."""
            return self.cycle is None or bool(self.cycle.response_complete)

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > _MAX_CONNECTIONS:
                self._turn_away(b"503 Service Unavailable")
            else:
                self._head_timer = self.loop.call_later(head_seconds, self._head_is_late)

        def data_received(self, data: bytes) -> None:
            waited = self._waits_for_head
            super().data_received(data)
            if not self._waits_for_head:
                self._stop_head_timer()
                self._num_head_bytes = 0
                return
            if not waited:
                return
            # Part of a head, or of a body that was answered before it had arrived.
            self._num_head_bytes += len(data)
            if self._num_head_bytes > _MAX_HEAD_BYTES:
                self._turn_away(b"431 Request Header Fields Too Large")
            elif self._head_timer is None and not self.transport.is_closing():
                self._head_timer = self.loop.call_later(head_seconds, self._head_is_late)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stall_timer = self.loop.call_later(stall_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._stall_timer is not None:
                self._stall_timer.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_head_timer()
            if self._stall_timer is not None:
                self._stall_timer.cancel()
            super().connection_lost(exc)

        def _head_is_late(self) -> None:
            self._head_timer = None
            if self._waits_for_head:
                self._turn_away(b"408 Request Timeout")

        def _stop_head_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _turn_away(self, status: bytes) -> None:
            """Close a connection on which no request is under way."""
            if self.transport.is_closing():
                return
            self.transport.write(
                b"HTTP/1.1 %s\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % status
            )
            self.transport.close()

    return Limited
