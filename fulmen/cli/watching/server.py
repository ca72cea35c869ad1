"""The page's server: on this machine's own address alone, for those who have its token.

    GET /              the page and its files, which hold nothing of the run
    GET /events?after  what happened after an event, and what happens from now on
    POST /answers/ID   {"answer": "once" | "always" | "no", "words": "..."}

The token stands behind the # of the printed address, which browsers send to nobody; the page sends
it in a header. A request that names another host is refused, so no foreign name leads here.
"""

import asyncio
import hmac
import json
import secrets
import socket
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any, Final

from fulmen.cli.watching.feed import Feed, Reply
from fulmen.server import PAGE_HEADERS, PageFile, ServerConfig, bind, page_files, read_files

_PAGE: Final = Path(__file__).parent / "page"
_HOST: Final = "127.0.0.1"
_MAX_BODY: Final = 64 * 2**10
_MAX_WATCHING: Final = 16
_TICK_SECONDS: Final = 0.1
_ALIVE_TICKS: Final = 100
_END_SECONDS: Final = 5.0
_COMES_BACK_SECONDS: Final = 2.0
"""Time in which a browser that lost its connection has another one"""
_ANSWERS: Final = ("once", "always", "no")


class AgentPage:
    """A server that runs in a thread of its own until it is closed."""

    def __init__(self, feed: Feed, port: int = 0) -> None:
        """port: 0 for one that is free. Raises ValueError for one that is taken."""
        self.feed = feed
        self.token = secrets.token_urlsafe(24)
        self._socket: socket.socket = bind(ServerConfig(host=_HOST, port=port))
        self.port: int = self._socket.getsockname()[1]
        self._server: Any = None
        self._thread: threading.Thread | None = None
        self._is_closing = False

    @property
    def url(self) -> str:
        """Address for a browser; whoever has it may answer questions."""
        return f"http://{_HOST}:{self.port}/#{self.token}"

    def open(self) -> None:
        """Serve from now on."""
        import uvicorn

        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
            limit_concurrency=4 * _MAX_WATCHING,
        )
        self._socket.listen(64)
        self._server = uvicorn.Server(config)
        run = self._server.run
        self._thread = threading.Thread(
            target=run, kwargs={"sockets": [self._socket]}, daemon=True, name="agent page"
        )
        self._thread.start()

    def close(self) -> None:
        """Tell those who watch what is left to tell, for a while, and end."""
        end = time.monotonic() + _END_SECONDS
        while self.feed.owes(_COMES_BACK_SECONDS) and time.monotonic() < end:
            time.sleep(_TICK_SECONDS / 2)
        self._is_closing = True
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(_END_SECONDS)
        self._socket.close()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request; an application of ASGI."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): one.decode("latin-1") for name, one in scope["headers"]}
        method, path = scope["method"], scope["path"]
        hosts = (f"{_HOST}:{self.port}", f"localhost:{self.port}")
        origin = headers.get("origin")
        if headers.get("host") not in hosts:
            await _told(send, 421, f"this page is {hosts[0]}")
        elif origin is not None and origin not in [f"http://{host}" for host in hosts]:
            await _told(send, 403, "another page may not ask here")
        elif method == "GET" and path in _files():
            await _file(send, _files()[path], headers)
        elif not self._is_known(headers.get("authorization", "")):
            await _told(send, 401, "the address of this page has its token behind the #")
        elif method == "GET" and path == "/events":
            await self._events(scope, receive, send)
        elif method == "POST" and path.startswith("/answers/"):
            await self._answer(path.removeprefix("/answers/"), headers, receive, send)
        else:
            await _told(send, 404, "there is no such page")

    def _is_known(self, authorization: str) -> bool:
        given = authorization.removeprefix("Bearer ").encode("utf-8", "replace")
        return hmac.compare_digest(given, self.token.encode())

    async def _events(self, scope: Any, receive: Any, send: Any) -> None:
        query = scope["query_string"].decode("latin-1")
        number = query.removeprefix("after=")
        after = int(number) if number.isascii() and number.isdigit() and len(number) < 16 else 0
        if self.feed.watching(1) > _MAX_WATCHING:
            self.feed.watching(-1)
            await _told(send, 429, f"{_MAX_WATCHING} watch already, which is the most that may")
            return
        left = asyncio.ensure_future(_left(receive))
        try:
            await _head(send, 200, "text/event-stream", {"cache-control": "no-store"})
            await self._tell(after, left, send)
            await send({"type": "http.response.body", "body": b""})
        finally:
            left.cancel()
            self.feed.watching(-1)

    async def _tell(self, after: int, left: "asyncio.Future[None]", send: Any) -> None:
        """Send events as they come, and in between what grows, until the browser leaves or all is
        told. What was sent counts as told once the browser was still there a moment later."""
        seen, ticks = -1, 0
        self.feed.told(after)
        while not left.done():
            is_last, text = self._is_closing, b""
            if seen != self.feed.num_changes:
                seen, ticks = self.feed.num_changes, 0
                found, after = self.feed.since(after)
                lines = [*found, self.feed.live()]
                text = "".join(f"data: {line}\n\n" for line in lines).encode("utf-8", "replace")
            elif ticks % _ALIVE_TICKS == _ALIVE_TICKS - 1:
                text = b": alive\n\n"
            if text:
                await send({"type": "http.response.body", "body": text, "more_body": True})
            if is_last:
                return
            ticks += 1
            await asyncio.sleep(_TICK_SECONDS)
            if not left.done():
                self.feed.told(after)

    async def _answer(self, id: str, headers: Any, receive: Any, send: Any) -> None:
        try:
            if headers.get("content-type", "").partition(";")[0] != "application/json":
                raise ValueError("an answer is sent as application/json")
            given = json.loads(await _body(receive))
            if not isinstance(given, dict) or given.get("answer") not in _ANSWERS:
                raise ValueError(f"answer must be one of {', '.join(_ANSWERS)}")
            words = given.get("words", "")
            if not isinstance(words, str):
                raise ValueError("words must be a text")
            if not (id.isascii() and id.isdigit() and len(id) < 16):
                raise ValueError("an answer is to the number of a question")
            was_first = self.feed.answer(int(id), Reply(given["answer"], words.strip()))
        except (ValueError, RecursionError) as error:
            await _told(send, 400, str(error))
            return
        if was_first:
            await _told(send, 200, "answered")
        else:
            await _told(send, 409, "this question waits no more")


@cache
def _files() -> dict[str, PageFile]:
    """Return the files of the page by their paths, those of the chat page among them."""
    own = {f"/{path}": file for path, file in read_files(_PAGE).items()}
    shared = {f"/page/{path}": file for path, file in page_files().items() if path != "index.html"}
    return {"/": own.pop("/index.html"), **own, **shared}


async def _file(send: Any, file: PageFile, headers: Any) -> None:
    if file.is_in(headers.get("if-none-match", "")):
        await _head(send, 304, file.media_type, {**PAGE_HEADERS, "etag": file.etag})
        await send({"type": "http.response.body", "body": b""})
        return
    await _head(send, 200, file.media_type, {**PAGE_HEADERS, "etag": file.etag})
    await send({"type": "http.response.body", "body": file.content})


async def _told(send: Any, status: int, text: str) -> None:
    """Answer with one sentence, as all of the project's servers do."""
    key = {"message": text} if status < 400 else {"error": {"message": text}}
    await _head(send, status, "application/json", {"cache-control": "no-store"})
    await send({"type": "http.response.body", "body": json.dumps(key).encode()})


async def _head(send: Any, status: int, kind: str, more: Any) -> None:
    pairs = {"content-type": kind, "x-content-type-options": "nosniff", **more}
    listed = [(name.encode(), one.encode()) for name, one in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": listed})


async def _body(receive: Any) -> bytes:
    """Return the body of a request. Raises ValueError for one that is too long."""
    found = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ValueError("the connection ended")
        found += message.get("body", b"")
        if len(found) > _MAX_BODY:
            raise ValueError(f"an answer has at most {_MAX_BODY:,} bytes")
        if not message.get("more_body"):
            return bytes(found)


async def _left(receive: Any) -> None:
    """Return once the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
