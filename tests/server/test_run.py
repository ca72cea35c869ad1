"""One process that serves: its address, its end, and connections that only wait."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from fulmen.server import ServerConfig, bind, serve
from fulmen.server import run as run_file
from tests.server.serving import exchange, read_all, serving, small_app
from tests.warm import python

STREAM = b"POST /v1/stream?number=%d HTTP/1.1\r\nhost: ::1\r\ncontent-length: 0\r\n\r\n"
GET = b"GET %s HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


@contextlib.contextmanager
def program(**fields: Any) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    """Run a server in a process of its own; give its address."""
    process = subprocess.Popen(
        python("-m", "tests.server.run_small_app", json.dumps({"port": 0} | fields)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        host, _, port = url.removeprefix("http://").rpartition(":")
        yield process, (host, int(port))
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@contextlib.contextmanager
def streaming(address: tuple[str, int], number: int) -> Iterator[socket.socket]:
    """Open a stream of so many events, 20 ms each, that has begun."""
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(STREAM % number)
        begin = b""
        while b"data: 0" not in begin:
            begin += connection.recv(100)
        yield connection


# ---- the address


def test_the_address_is_told_once_requests_are_answered() -> None:
    config = ServerConfig(port=0)
    with serving(small_app(config), config) as (host, port):
        assert host == "127.0.0.1"
        assert exchange((host, port), GET % b"/ready").startswith(b"HTTP/1.1 200 ")


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=rf"^127.0.0.1:{port} is taken"):
            bind(ServerConfig(port=port))


def test_of_two_that_bound_a_port_one_serves() -> None:
    first = bind(ServerConfig(port=0))
    config = ServerConfig(port=first.getsockname()[1])
    second = bind(config)
    with first:
        first.listen()
        with pytest.raises(ValueError, match="is taken"):
            asyncio.run(serve(small_app(config), config, on_ready=print, sock=second))


@pytest.mark.parametrize("host", ["no such host", "x" * 300, "192.0.2.1", "a\x00b", "..", "1.2.3"])
def test_an_address_that_is_not_ours_is_one_sentence(host: str) -> None:
    with pytest.raises(ValueError, match=r"is no address|cannot be listened on") as caught:
        bind(ServerConfig(host=host, port=0, api_keys=("sk-first-0123",)))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_ipv6_address_is_told_as_a_url() -> None:
    try:
        bind(ServerConfig(host="::1", port=0)).close()
    except ValueError:
        pytest.skip("this machine has no IPv6")
    config = ServerConfig(host="::1", port=0)
    with serving(small_app(config), config) as (host, port):
        assert host == "[::1]"
        assert exchange(("::1", port), GET % b"/ready").startswith(b"HTTP/1.1 200 ")


# ---- the end


def test_sigterm_lets_running_answers_finish_and_refuses_new_ones() -> None:
    with program() as (process, address), streaming(address, 60) as stream:
        process.send_signal(signal.SIGTERM)
        for _ in range(100):
            refused = exchange(address, GET % b"/ready")
            if refused.startswith(b"HTTP/1.1 503 "):
                break
            time.sleep(0.02)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"the server is stopping" in refused
        assert exchange(address, GET % b"/health").startswith(b"HTTP/1.1 200 ")
        rest = read_all(stream)
        assert b"data: 59" in rest
        assert b"data: [DONE]" in rest
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "orderly\n")
    assert "Traceback" not in err
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_without_requests_a_signal_ends_it_at_once(number: signal.Signals) -> None:
    with program() as (process, address), socket.create_connection(address, timeout=20) as idle:
        idle.sendall(GET[:20])  # half a head keeps nobody
        start = time.perf_counter()
        process.send_signal(number)
        assert process.communicate(timeout=20)[0] == "orderly\n"
        assert process.returncode == 0
        assert time.perf_counter() - start < 5


def test_what_does_not_finish_in_time_ends_with_an_error_event() -> None:
    with program(drain_seconds=0.3) as (process, address), streaming(address, 100_000) as stream:
        slow = threading.Thread(target=lambda: answers.append(exchange(address, SLOW)))
        answers: list[bytes] = []
        slow.start()
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        rest = read_all(stream)
        slow.join(20)
        out, err = process.communicate(timeout=20)
    assert b'data: {"error":{"message":"the server is stopping"' in rest
    assert rest.endswith(b"\r\n0\r\n\r\n")
    assert answers[0].startswith(b"HTTP/1.1 503 ")
    assert (process.returncode, out) == (0, "orderly\n")
    assert "Traceback" not in err
    assert "2 requests may finish within 0.3 s" in err


SLOW = b"POST /v1/slow?seconds=60 HTTP/1.1\r\nhost: ::1\r\ncontent-length: 0\r\n\r\n"


def test_a_second_sigint_ends_it_at_once() -> None:
    with program() as (process, address), streaming(address, 100_000) as stream:
        process.send_signal(signal.SIGINT)
        time.sleep(0.4)
        assert process.poll() is None
        start = time.perf_counter()
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(ConnectionResetError):
            read_all(stream)
        out, err = process.communicate(timeout=20)
    assert time.perf_counter() - start < 5
    assert (process.returncode, out) == (0, "at once\n")
    assert "Traceback" not in err


def test_a_cancelled_server_stops_as_one_that_is_asked_to() -> None:
    config = ServerConfig(port=0)
    app = small_app(config)
    with contextlib.ExitStack() as streams:
        with serving(app, config) as address:
            stream = streams.enter_context(streaming(address, 30))
        assert b"data: [DONE]" in read_all(stream)
    assert app.state.drain.is_over


# ---- connections that only wait


def protocols() -> Iterator[Any]:
    yield H11Protocol
    with contextlib.suppress(ImportError):
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

        yield HttpToolsProtocol


@pytest.fixture(params=protocols(), ids=lambda protocol: protocol.__name__)
def address(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, int]]:
    """Address of a server that waits 0.4 s for a head, on each protocol that is installed."""
    limited = run_file._limited(request.param, 0.4, 0.5)
    monkeypatch.setattr(run_file, "_protocol", lambda config: limited)
    config = ServerConfig(port=0)
    with serving(small_app(config), config) as found:
        yield found


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: localhost\r\nx: "])
def test_a_head_that_does_not_arrive_closes_the_connection(
    address: tuple[str, int], sent: bytes
) -> None:
    start = time.perf_counter()
    received = exchange(address, *([sent] if sent else []))
    assert received.startswith(b"HTTP/1.1 408 ")
    assert 0.3 < time.perf_counter() - start < 5


def test_a_head_that_trickles_gets_no_more_time(address: tuple[str, int]) -> None:
    start = time.perf_counter()
    connection = socket.create_connection(address, timeout=20)
    with connection, contextlib.suppress(OSError):
        connection.sendall(b"GET / HTTP/1.1\r\n")
        while time.perf_counter() - start < 10:
            connection.sendall(b"x-%d: y\r\n" % time.perf_counter_ns())
            time.sleep(0.05)
    assert time.perf_counter() - start < 5


def test_the_next_head_on_a_connection_has_the_same_limit(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        for _ in range(2):
            connection.sendall((GET % b"/health").replace(b"connection: close\r\n", b""))
            received = b""
            while not received.endswith(b'"ok"}'):
                received += connection.recv(65536)
        time.sleep(0.6)  # between requests a client may take its time
        connection.sendall(b"GET /hea")
        start = time.perf_counter()
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")
        assert 0.3 < time.perf_counter() - start < 5


def test_a_running_answer_is_not_cut_by_the_limit_of_heads(address: tuple[str, int]) -> None:
    with streaming(address, 50) as stream:
        rest = b""
        while b"[DONE]" not in rest:
            part = stream.recv(65536)
            assert part
            rest += part


def test_a_head_without_end_is_refused(address: tuple[str, int]) -> None:
    received = b""
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 64 * 2**20:
                sent += connection.send(b"x: " + b"y" * 1000 + b"\r\n")
        with contextlib.suppress(OSError):
            received = read_all(connection)
    assert sent < 16 * 2**20
    assert not received or received.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))


def test_a_client_that_does_not_read_is_cut_off(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: ::1\r\ncontent-length: %d\r\n\r\n"
        size = 30 * 2**20
        connection.sendall(request % size + b"x" * size)
        time.sleep(1.5)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(2**20):
                received += len(part)
    assert received < size


def test_connections_beyond_the_most_are_turned_away(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_file, "_MAX_CONNECTIONS", 3)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(streaming(address, 1000))
        assert exchange(address).startswith(b"HTTP/1.1 503 ")
    for _ in range(100):
        if exchange(address, GET % b"/health").startswith(b"HTTP/1.1 200 "):
            return
        time.sleep(0.05)
    pytest.fail("places are not given back")


def test_nothing_of_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "FULMEN_API_KEY", "sk-first-0123")
    monkeypatch.setitem(os.environ, "WEB_CONCURRENCY", "4")
    monkeypatch.setitem(os.environ, "FORWARDED_ALLOW_IPS", "*")
    config = ServerConfig(port=0)
    with serving(small_app(config), config) as found:
        assert exchange(found, GET % b"/").startswith(b"HTTP/1.1 200 ")
