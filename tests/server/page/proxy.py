"""A proxy between the browser and the server: behind a path, with a cable to pull, and requests
that wait or are refused."""

import http.client
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Proxy(ThreadingHTTPServer):
    """Passes requests below a path on to a server."""

    def __init__(self, server: str, path: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(server).netloc
        self.path = path
        self.is_cut = False
        self.num_refused = 0
        self.open: set[socket.socket] = set()
        self.refusals: dict[str, int] = {}
        """Statuses of requests whose method and path fit a pattern"""
        self.held: dict[str, threading.Event] = {}
        """Patterns of requests that wait"""
        self.num_waiting = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{self.path}/"

    def cut(self) -> None:
        """End all connections, and let no new ones in until `mend`."""
        self.is_cut = True
        for connection in list(self.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.is_cut = False

    @contextmanager
    def refusing(self, pattern: str, status: int) -> Iterator[None]:
        """Refuse requests meanwhile, such as "POST /v1/responses$"."""
        self.refusals[pattern] = status
        try:
            yield
        finally:
            del self.refusals[pattern]

    @contextmanager
    def holding(self, pattern: str) -> Iterator[None]:
        """Let requests wait meanwhile."""
        self.held[pattern] = threading.Event()
        try:
            yield
        finally:
            self.held.pop(pattern).set()

    def status_for(self, request: str) -> int | None:
        """Return the status that a request is refused with, once it need not wait; None if it goes
        on."""
        for pattern, event in list(self.held.items()):
            if re.match(pattern, request):
                self.num_waiting += 1
                event.wait(60)
        fitting = (status for p, status in list(self.refusals.items()) if re.match(p, request))
        return next(fitting, None)


class _Handler(BaseHTTPRequestHandler):
    server: Proxy

    def _pass_on(self) -> None:
        if self.server.is_cut:
            self.server.num_refused += 1
            return
        if not self.path.startswith(f"{self.server.path}/"):
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get("content-length", 0))) or None
        request = f"{self.command} {self.path.removeprefix(self.server.path)}"
        if (status := self.server.status_for(request)) is not None:
            self.server.num_refused += 1
            self.send_error(status)
            return
        target = http.client.HTTPConnection(self.server.target, timeout=60)
        self.server.open.add(self.connection)
        try:
            path = self.path.removeprefix(self.server.path)
            target.request(self.command, path, body, dict(self.headers))
            reply = target.getresponse()
            self.send_response(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.end_headers()
            while part := reply.read1(65536):
                self.wfile.write(part)
        except OSError:
            pass  # one side is gone
        finally:
            self.server.open.discard(self.connection)
            target.close()

    do_GET = do_POST = do_PATCH = do_DELETE = _pass_on

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def behind(server: str, path: str = "") -> Iterator[Proxy]:
    """Give a proxy before a server."""
    proxy = Proxy(server, path)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.cut()
        proxy.shutdown()
        thread.join()
        proxy.server_close()
