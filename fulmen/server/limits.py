"""Limits around the application: who may ask, how much, how long, and how many at once.

    request id -> CORS -> OPTIONS, HEAD -> key -> body, whole and decoded -> the application
                                                                          -> time is over

Every refusal is in the words of the path's dialect. It is plain ASGI: what passes costs next to
nothing for each event of a stream.
"""

import asyncio
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match

from fulmen.files import shorten
from fulmen.server.config import ServerConfig, is_loopback
from fulmen.server.drain import Drain
from fulmen.server.errors import Refusal, dialect_of, refusal_of
from fulmen.server.incoming import App, Bodies, Event, Incoming, Receive, Scope, Send
from fulmen.server.keys import Keys
from fulmen.server.logs import RequestLog
from fulmen.server.metrics import Metrics
from fulmen.server.page_files import is_of_page
from fulmen.server.sse import DONE, frame, to_json
from fulmen.server.traces import Traces

OPEN_PATHS: Final = ("/health", "/ready")
"""Paths that need no key"""
_OPEN_HEADS: Final = ("/", "/api/hello")
"""Paths whose HEAD is a client's first sign of life, sent before it has a key"""
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_ID_HEADERS: Final = (b"x-request-id", b"request-id")
_GRACE_SECONDS: Final = 1.0
"""Time after the deadline that a stream has to end by itself"""

_log = logging.getLogger(__name__)


# ---- the middleware -----------------------------------------------------------------------------


def with_limits(
    app: FastAPI,
    config: ServerConfig,
    keys: Keys,
    metrics: Metrics,
    log: RequestLog,
    drain: Drain,
    traces: Traces | None = None,
) -> None:
    """Put an application behind its limits. `app.state.drain` then ends it."""
    app.state.drain = drain
    app.add_middleware(
        Limits,
        config=config,
        keys=keys,
        metrics=metrics,
        log=log,
        traces=traces,
        drain=drain,
    )


class Limits:
    """Everything that holds for each request, whatever its route."""

    def __init__(
        self,
        app: App,
        *,
        config: ServerConfig,
        keys: Keys,
        metrics: Metrics,
        log: RequestLog,
        traces: Traces | None,
        drain: Drain,
    ) -> None:
        self._app = app
        self._config = config
        self._keys = keys
        self._metrics = metrics
        self._log = log
        self._traces = traces
        self._drain = drain
        self._bodies = Bodies(config)
        self._admitting: App = self._admit
        if config.allowed_origins:
            self._admitting = CORSMiddleware(
                self._admit,
                allow_origins=config.allowed_origins,
                allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS"],
                allow_headers=["*"],
                expose_headers=["request-id", "x-request-id", "retry-after", "fulmen-session"],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: with what the application says, or with a refusal."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(scope, receive, send)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.request_timeout_seconds
        request.state |= {"request_id": request.id, "scope": "", "deadline": deadline}
        started = time.perf_counter()
        try:
            await self._answer(request, deadline)
        finally:
            seconds = time.perf_counter() - started
            status = request.status or 499  # nginx's word for a client that went away
            self._metrics.request(
                request.method, request.template, status, request.state.get("model_name")
            )
            self._record(request, status, seconds)

    def _name_of_key(self, request: "_Request") -> str | None:
        """Return the name of the key that a request had; None if it had none that is known."""
        scope = request.state.get("scope", "")
        return self._keys.name_of(scope) if scope else None

    def _record(self, request: "_Request", status: int, seconds: float) -> None:
        """Write a request into the log and the traces, once its answers are over: some run in the
        background."""
        answers = request.state.get("answers")
        call_later = (lambda call: call()) if answers is None else answers.when_over
        told: dict[str, Any] = {
            "method": shorten(request.method, 20),
            "status": status,
            "request_id": request.id,
            "answers": answers,
            "is_gone": request.is_gone,
        }
        path = request.template or shorten(request.path, 80)
        key = self._name_of_key(request)
        call_later(partial(self._log.write, path=path, seconds=seconds, key=key, **told))
        if self._traces is not None:
            started = time.time_ns() - int(seconds * 1e9)
            headers, route = Headers(scope=request.scope), request.template
            call_later(
                partial(self._traces.record, headers=headers, route=route, started=started, **told)
            )

    async def _answer(self, request: "_Request", deadline: float) -> None:
        limit = asyncio.timeout_at(deadline + _GRACE_SECONDS)
        try:
            async with limit:
                with self._drain.holding(limit):
                    await self._admitting(request.scope, request.receive, request.send)
        except Exception as failure:
            error = self._time_is_over() if limit.expired() else failure
            if request.status is None:
                await self._refuse(request, error)
            elif request.is_stream and limit.expired():
                await request.end_stream(refusal_of(error))
            else:
                raise  # the connection is closed, so that nobody takes the part for the whole

    def _time_is_over(self) -> Refusal:
        if self._drain.is_over:
            return Refusal(503, "the server is stopping", retry_after=1)
        seconds = self._config.request_timeout_seconds
        return Refusal(504, f"the request took longer than {seconds:g} s, the longest allowed here")

    async def _refuse(self, request: "_Request", error: Exception) -> None:
        refusal = refusal_of(error)
        if refusal.status == 500:
            _log.error("request %s failed", request.id, exc_info=error)
        if isinstance(error, Refusal):
            self._metrics.rejected(refusal.status, request.state.get("model_name"))
        await request.refuse(refusal)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request that may be answered, with its whole body."""
        headers = Headers(scope=scope)
        path, method, state = scope["path"], scope["method"], scope["state"]
        if method == "OPTIONS":
            await self._tell_methods(scope, send)
            return
        incoming = Incoming(headers, receive)
        try:
            is_open = (
                path in OPEN_PATHS
                or (method == "HEAD" and path in _OPEN_HEADS)
                or (not self._config.no_page and is_of_page(path, headers.get("accept", "")))
            )
            if not is_open:
                state["scope"] = self._keys.scope_of(headers)
            if self._drain.is_begun and not _is_about_old_work(method, path):
                raise Refusal(503, "the server is stopping", retry_after=5)
            self._check_host(headers)
            self._check_origin(headers)
            if _matches(scope, "GET" if method == "HEAD" else method)[0] is Match.PARTIAL:
                raise Refusal(405, f"{method} is not allowed here")
            body = await self._bodies.read(headers, incoming)
        except Refusal as refusal:
            # Here and not further out, so that a browser's page may read it.
            self._metrics.rejected(refusal.status)
            await _send_refusal(scope, send, refusal, incoming)
            return
        if body is None:
            return
        await self._app(_for_app(scope, body), _replay(body, receive), _without_body(scope, send))

    async def _tell_methods(self, scope: Scope, send: Send) -> None:
        allowed = _methods_of(scope)
        if not allowed and scope["path"] != "*":
            refusal = Refusal(404, f"no route {shorten(scope['path'], 80)}")
            await _send_refusal(scope, send, refusal)
            return
        head = [(b"allow", _allow(scope).encode())]
        await send({"type": "http.response.start", "status": 204, "headers": head})
        await send({"type": "http.response.body", "body": b""})

    def _check_host(self, headers: Headers) -> None:
        """Refuse names that are not this machine's where no key tells who asks: a web page can make
        its own name lead here (DNS rebinding), and would then read whatever it likes."""
        name = _name_of(headers.get("host", "localhost")).lower()
        if self._keys or name in self._config.allowed_hosts or _is_own_name(name):
            return
        raise Refusal(
            403,
            f"this server is asked as {shorten(name, 80)}, without API keys it answers only as "
            "localhost, an address, or an allowed host",
        )

    def _check_origin(self, headers: Headers) -> None:
        """Refuse what a strange web page may send from a browser without asking first. It could not
        read the answer, and would cost one."""
        origin = headers.get("origin")
        allowed = self._config.allowed_origins
        if origin is None or origin in allowed or "*" in allowed:
            return
        scheme, _, host = origin.partition("://")
        is_ours = host == headers.get("host")
        is_asked_first = headers.get("content-type", "").startswith("application/json")
        is_web = scheme in ("http", "https")
        is_trusted = bool(self._keys) or not is_web or is_loopback(_name_of(host))
        has_body = "content-length" in headers or "transfer-encoding" in headers
        if has_body and not (is_trusted and (is_ours or is_asked_first)):
            raise Refusal(403, f"web pages of {shorten(origin, 80)} may not ask here")


def _name_of(host: str) -> str:
    """Return the name in "name:port"; an IPv6 address stands in brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_own_name(name: str) -> bool:
    """Return whether a host is this machine, or an address, which no web page can take over."""
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return name in ("", "localhost") or name.endswith(".localhost")


def _is_about_old_work(method: str, path: str) -> bool:
    """Return whether a request begins nothing new, so that it is answered while the server stops:
    a look at responses that still run, or their end."""
    is_response = path.startswith("/v1/responses/")
    return path == "/health" or (is_response and (method == "GET" or path.endswith("/cancel")))


class _Request:
    """One request on its way through, and what has been sent to it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.state: dict[str, Any] = scope.setdefault("state", {})
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.template = _template_of(scope)
        asked = Headers(scope=scope).get("x-request-id", "")
        self.id = asked if _REQUEST_ID.fullmatch(asked) else f"req_{secrets.token_hex(12)}"
        self.status: int | None = None
        """None until the answer began"""
        self.is_stream = False
        self.is_gone = False
        self._is_complete = False
        self._receive = receive
        self._send = send

    async def receive(self) -> Event:
        event = await self._receive()
        if event["type"] == "http.disconnect" and not self._is_complete:
            self.is_gone = True
        return event

    async def send(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.status = event["status"]
            headers = [pair for pair in event.get("headers", ()) if pair[0] not in _ID_HEADERS]
            self.is_stream = any(
                name == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in headers
            )
            ids = [(name, self.id.encode()) for name in _ID_HEADERS]
            event = {**event, "headers": [*headers, *ids]}
        elif event["type"] == "http.response.body" and not event.get("more_body", False):
            self._is_complete = True
        await self._send(event)

    async def refuse(self, refusal: Refusal) -> None:
        """Send a refusal, before anything was sent."""
        await _send_refusal(self.scope, self.send, refusal)

    async def end_stream(self, refusal: Refusal) -> None:
        """End a stream with an error event, unless its end was sent."""
        if self._is_complete:
            return
        dialect = dialect_of(self.path, Headers(scope=self.scope))
        event = "error" if dialect == "anthropic" else None
        body = frame(refusal.body(dialect, self.id), event=event)
        body += b"" if dialect == "anthropic" else DONE
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


# ---- requests -----------------------------------------------------------------------------------


def _matches(scope: Scope, method: str) -> tuple[Match, str | None]:
    """Return how well a method and the path match a route, and the route's template. A path that is
    a route's own word for word is no parameter of another."""
    best, template, is_own = Match.NONE, None, False
    asked = {**scope, "method": method}
    for route in _routes_of(scope.get("app")):
        match, _ = route.matches(asked)
        if match is Match.NONE:
            continue
        its_template = getattr(route, "path_format", getattr(route, "path", None))
        is_its_own = its_template == scope["path"]
        if (is_its_own, match.value) > (is_own, best.value):
            best, template, is_own = match, its_template, is_its_own
    return best, template


def _routes_of(app: Any) -> Iterator[Any]:
    """Yield the routes of an application, those of its routers too."""
    for route in getattr(app, "routes", ()):
        inner = getattr(route, "effective_route_contexts", None)
        if inner is None:
            yield route
        else:
            yield from (context.original_route for context in inner())


def _template_of(scope: Scope) -> str | None:
    """Return the template of a request's path; None for a path that there is not."""
    method = "GET" if scope["method"] in ("HEAD", "OPTIONS") else scope["method"]
    return _matches(scope, method)[1]


def _methods_of(scope: Scope) -> set[str]:
    """Return the methods that a path takes."""
    methods = ("GET", "POST", "PUT", "PATCH", "DELETE")
    allowed = {method for method in methods if _matches(scope, method)[0] is Match.FULL}
    return allowed | ({"HEAD"} if "GET" in allowed else set())


def _allow(scope: Scope) -> str:
    return ", ".join(sorted(_methods_of(scope) | {"OPTIONS"}))


def _for_app(scope: Scope, body: bytes) -> Scope:
    """Return a scope for a body that has been decoded; HEAD is answered as GET is."""
    headers = [
        pair
        for pair in scope["headers"]
        if pair[0] not in (b"content-encoding", b"content-length", b"transfer-encoding")
    ]
    if body:
        headers.append((b"content-length", b"%d" % len(body)))
    method = scope["method"]
    if method == "HEAD" and _matches(scope, "HEAD")[0] is not Match.FULL:
        method = "GET"
    return {**scope, "headers": headers, "method": method}


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a receive that gives a body that was read, and then what else comes."""
    pending: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Event:
        return pending.pop() if pending else await receive()

    return replay


def _without_body(scope: Scope, send: Send) -> Send:
    """Return a send that leaves out bodies, for HEAD."""
    if scope["method"] != "HEAD":
        return send

    async def send_head(event: Event) -> None:
        if event["type"] == "http.response.body":
            event = {**event, "body": b""}
        await send(event)

    return send_head


async def _send_refusal(
    scope: Scope, send: Send, refusal: Refusal, incoming: Incoming | None = None
) -> None:
    """Send a refusal in the path's dialect, before the body that comes in has been read."""
    dialect = dialect_of(scope["path"], Headers(scope=scope))
    body = to_json(refusal.body(dialect, scope["state"]["request_id"]))
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **refusal.headers,
    }
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refusal.status == 405:
        headers["allow"] = _allow(scope)
    if refusal.status == 415:
        headers["accept-encoding"] = "gzip, deflate"
    is_cut = incoming is not None and not incoming.is_whole
    if is_cut:
        headers["connection"] = "close"  # what follows would be the rest of the body
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    body = b"" if scope["method"] == "HEAD" else body
    await send({"type": "http.response.body", "body": body, "more_body": True})
    if incoming is not None:
        await incoming.drop()
    await send({"type": "http.response.body", "body": b"", "more_body": False})
