"""A file of requests, answered by an application without a socket, into a file of results.

    IN, line by line -> those without a result in OUT -> so many at once -> the application
                     -> one line of OUT for each, as they end

OUT is all that a run knows: it is appended to, one whole line after the other, so a run that was
stopped, or whose machine lost power, goes on from there. Lines are in OpenAI's batch format; those
with `params` are Anthropic's, and get Anthropic's results.
"""

import asyncio
import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from fulmen.chat import load_json
from fulmen.files import shorten
from fulmen.sampling import shown
from fulmen.server.batch_results import MAX_LINE_BYTES, Key, Results, read_lines
from fulmen.server.incoming import App, Event
from fulmen.server.sse import to_json

_PATH: Final = re.compile(r"/[\w./-]{1,200}")
_MESSAGES: Final = "/v1/messages"


@dataclass(slots=True)
class BatchCounts:
    """Requests of a batch, by what became of them."""

    num_requests: int = 0
    num_answered: int = 0
    num_failed: int = 0

    @property
    def num_done(self) -> int:
        """Requests that have a result."""
        return self.num_answered + self.num_failed

    @property
    def num_left(self) -> int:
        """Requests that have none."""
        return self.num_requests - self.num_done

    def add(self, is_answered: bool) -> None:
        """Count a result."""
        self.num_answered += is_answered
        self.num_failed += not is_answered


class Batch:
    """A file of requests and the file of their results; `with` holds the latter for one process.

        with Batch(source, out) as batch:
            if batch.counts.num_left:
                await batch.run(app, max_running=8)

    Entering raises ValueError for a custom_id that stands twice, and for an `out` that holds
    something else or is written by another process; OSError for a file that cannot be opened.
    """

    def __init__(self, source: Path, out: Path) -> None:
        self.source = source
        self.counts = BatchCounts()
        """Counts of the whole file so far, those of earlier runs included"""
        self._results = Results(out, source)
        self._left: set[int] = set()
        """Numbers of the lines without a result"""

    def __enter__(self) -> Self:
        numbers = _number_requests(self.source)
        known = self._results.__enter__().known
        self.counts.num_requests = len(numbers)
        for key, number in numbers.items():
            if key in known:
                self.counts.add(known[key])
            else:
                self._left.add(number)
        return self

    def __exit__(self, *error: object) -> None:
        self._results.__exit__(*error)

    async def run(
        self,
        app: App,
        *,
        max_running: int,
        on_progress: Callable[[BatchCounts], None] = lambda counts: None,
    ) -> None:
        """Answer the requests that have no result yet.

        app          application of `create_app`
        max_running  requests that run at once
        on_progress  called with the counts so far, first of all with those of earlier runs

        A line that is no request gets an error for a result, and the others are answered. If this
        is cancelled, what has a result stays, and the rest can be answered later. Raises OSError
        where a result cannot be written.
        """
        lines = (each for each in read_lines(self.source) if each[0] in self._left)
        on_progress(self.counts)

        async def work() -> None:
            for number, line in lines:
                result, is_answered = await _answer(app, self.source, number, line)
                self._results.add(result)
                self._left.discard(number)
                self.counts.add(is_answered)
                on_progress(self.counts)

        workers = [asyncio.create_task(work()) for _ in range(min(max_running, len(self._left)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


def _number_requests(source: Path) -> dict[Key, int]:
    """Return the number of the line of each request."""
    numbers: dict[Key, int] = {}
    for number, line in read_lines(source):
        try:
            key: Key = _read(line).custom_id or number
        except _LineError as error:
            key = error.custom_id or number
        if key in numbers:
            raise ValueError(
                f"{source} has the custom_id {shown(key)} twice, in lines {numbers[key]} and "
                f"{number}: each request needs one of its own"
            )
        numbers[key] = number
    return numbers


# ---- one line -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Request:
    """Request of one line."""

    custom_id: str
    path: str
    body: Mapping[str, Any]
    is_anthropics: bool
    """The line has Anthropic's form, and so has its result"""


class _LineError(ValueError):
    """A line that is no request."""

    def __init__(
        self, sentence: str, custom_id: str | None = None, *, is_anthropics: bool = False
    ) -> None:
        super().__init__(sentence)
        self.custom_id = custom_id
        self.is_anthropics = is_anthropics


def _read(line: bytes | None) -> _Request:
    """Read a line; None is one that is too long. Raises a _LineError."""
    if line is None:
        raise _LineError(f"it has more than {MAX_LINE_BYTES:,} bytes")
    try:
        given = load_json(line.decode("utf-8-sig"))
    except ValueError as error:
        raise _LineError(f"it cannot be read as JSON: {shorten(error)}") from None
    if not isinstance(given, dict):
        raise _LineError(f"it is {shown(given)}, it must be a JSON object")
    custom_id = given.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise _LineError(f"its custom_id is {shown(custom_id)}, it must be a text")
    is_anthropics = "params" in given and "body" not in given
    name = "params" if is_anthropics else "body"
    path, body = _MESSAGES if is_anthropics else given.get("url"), given.get(name)

    def wrong(name: str, value: object, needed: str) -> _LineError:
        sentence = f"its {name} is {shown(value)}, {needed}"
        return _LineError(sentence, custom_id, is_anthropics=is_anthropics)

    if (method := given.get("method", "POST")) != "POST":
        raise wrong("method", method, "it must be POST")
    if not isinstance(path, str) or _PATH.fullmatch(path) is None:
        raise wrong("url", path, "it must be a path such as /v1/chat/completions")
    if not isinstance(body, dict):
        raise wrong(name, body, "it must be an object")
    for field in ("stream", "background"):
        if body.get(field):
            raise wrong(f"{name}.{field}", body[field], "a result is one whole answer")
    return _Request(custom_id, path, body, is_anthropics)


async def _answer(
    app: App, source: Path, number: int, line: bytes | None
) -> tuple[dict[str, Any], bool]:
    """Return the result of a line, and whether it is an answer."""
    try:
        request = _read(line)
    except _LineError as error:
        return _refused(error, f"{source.name}, line {number}: {error}", number), False
    status, request_id, reply = await _post(app, request.path, to_json(request.body))
    is_answered = status == 200
    if request.is_anthropics:
        result = (
            {"type": "succeeded", "message": reply}
            if is_answered
            else {"type": "errored", "error": reply}
        )
        return {"custom_id": request.custom_id, "result": result}, is_answered
    response = {"status_code": status, "request_id": request_id, "body": reply}
    return {
        "id": _new_id(),
        "custom_id": request.custom_id,
        "response": response,
        "error": None,
    }, is_answered


def _refused(error: _LineError, sentence: str, number: int) -> dict[str, Any]:
    if error.is_anthropics and error.custom_id is not None:
        reason = {"type": "invalid_request_error", "message": sentence}
        result = {"type": "errored", "error": {"type": "error", "error": reason}}
        return {"custom_id": error.custom_id, "result": result}
    reason_of_line = {"code": "invalid_line", "message": sentence, "line": number}
    return {
        "id": _new_id(),
        "custom_id": error.custom_id,
        "response": None,
        "error": reason_of_line,
    }


def _new_id() -> str:
    return f"batch_req_{secrets.token_hex(12)}"


async def _post(app: App, path: str, body: bytes) -> tuple[int, str, Any]:
    """Send a request to an application; return status, request id and the reply's JSON."""
    received: list[Event] = []
    pending: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Event:
        if pending:
            return pending.pop()
        await asyncio.Event().wait()  # nobody goes away
        raise AssertionError

    async def send(event: Event) -> None:
        received.append(event)

    headers = {"host": "localhost", "content-type": "application/json"}
    headers["content-length"] = str(len(body))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        "state": {},
    }
    await app(scope, receive, send)
    start, *parts = received
    sent = dict(start["headers"])
    reply = b"".join(part.get("body", b"") for part in parts)
    return start["status"], sent.get(b"x-request-id", b"").decode(), _json(reply)


def _json(reply: bytes) -> Any:
    try:
        return json.loads(reply)
    except ValueError:
        return reply.decode(errors="replace")
