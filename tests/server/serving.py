"""A small application behind the real limits, in memory and on a real socket."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from fulmen.server import ServerConfig, serve
from fulmen.server.drain import Drain
from fulmen.server.keys import Keys
from fulmen.server.limits import with_limits
from fulmen.server.logs import RequestLog
from fulmen.server.metrics import Metrics


def small_app(config: ServerConfig) -> FastAPI:
    """Return an application with a route of each kind."""
    app = FastAPI()
    metrics = Metrics({config.model_name: object()})
    app.state.metrics = metrics
    with_limits(app, config, Keys(config.api_keys), metrics, RequestLog(config), Drain())

    for path in ("/", "/api/hello", "/health", "/ready", "/metrics", "/v1/models/{name}"):

        @app.get(path)
        async def get() -> dict[str, str]:
            return {"status": "ok"}

    @app.post("/v1/chat/completions")
    @app.post("/v1/messages")
    async def echo(request: Request) -> dict[str, Any]:
        body = await request.body()
        return {"body": body.decode("latin-1"), "scope": request.state.scope}

    @app.post("/v1/slow")
    async def slow(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    @app.post("/v1/fail")
    async def fail() -> None:
        raise RuntimeError("a secret of the server")

    @app.post("/v1/stream")
    @app.post("/v1/messages/stream")
    async def stream(request: Request, number: int, fails: bool = False) -> StreamingResponse:
        async def events() -> AsyncIterator[bytes]:
            try:
                for each in range(number):
                    yield b"data: %d\n\n" % each
                    await asyncio.sleep(0.02)
                if fails:
                    raise RuntimeError("a secret of the server")
                yield b"data: [DONE]\n\n"
            finally:
                app.state.num_closed = getattr(app.state, "num_closed", 0) + 1

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


@contextmanager
def serving(app: FastAPI, config: ServerConfig) -> Iterator[tuple[str, int]]:
    """Serve an application in a thread; give its address."""
    ready = threading.Event()
    url: list[str] = []
    state: dict[str, Any] = {}

    def on_ready(address: str) -> None:
        url.append(address)
        ready.set()

    async def run() -> None:
        state["loop"] = asyncio.get_running_loop()
        state["task"] = asyncio.current_task()
        await serve(app, config, on_ready=on_ready)

    def work() -> None:
        try:
            asyncio.run(run())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            state["error"] = error
        finally:
            ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(20)
        assert url, state.get("error")
        host, port = url[0].removeprefix("http://").rsplit(":", 1)
        yield host, int(port)
    finally:
        if thread.is_alive():
            state["loop"].call_soon_threadsafe(state["task"].cancel)
        thread.join(20)
        assert not thread.is_alive()


def exchange(address: tuple[str, int], *parts: bytes, wait_seconds: float = 20) -> bytes:
    """Send bytes over a connection and return all that comes until it is closed."""
    with socket.create_connection(address, timeout=wait_seconds) as connection:
        for part in parts:
            connection.sendall(part)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """Return all that comes until the other side closes."""
    received = b""
    while part := connection.recv(65536):
        received += part
    return received
