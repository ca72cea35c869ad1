"""Limits: what is refused, in which words, and that what passes is left as it is."""

import asyncio
import gzip
import json
import logging
import random
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from starlette.testclient import TestClient

from fulmen.chat import FoundTurn
from fulmen.server import ServerConfig
from fulmen.server.asking import Report
from fulmen.server.errors import Refusal
from fulmen.server.logs import LOGGER, RequestLog
from fulmen.server.places import Places
from tests.server.serving import exchange, serving, small_app

KEY, OTHER = "sk-first-0123", "sk-second-4567"
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"


def client(**fields: Any) -> TestClient:
    app = small_app(ServerConfig(**fields))
    return TestClient(app, "http://localhost", raise_server_exceptions=False)


# ---- keys, ids, methods


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/health"), ("GET", "/ready"), ("HEAD", "/"), ("HEAD", "/ready")]
)
def test_signs_of_life_need_no_key(method: str, path: str) -> None:
    assert client(api_keys=(KEY,)).request(method, path).status_code == 200
    assert client(api_keys=(KEY,)).request("HEAD", "/api/hello").status_code == 200
    assert client(api_keys=(KEY,)).options(CHAT).status_code == 204


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "wrong-key"}])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/api/hello"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/v1/models/a"),
        ("HEAD", "/metrics"),
        ("POST", CHAT),
        ("POST", MESSAGES),
        ("GET", "/nowhere"),
        ("GET", "//health"),
        ("GET", "/health/"),
        ("GET", "/health/../metrics"),
        ("BREW", "/"),
    ],
)
def test_everything_else_needs_a_key(method: str, path: str, headers: dict[str, str]) -> None:
    answer = client(api_keys=(KEY,)).request(method, path, headers=headers, follow_redirects=False)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-should-retry"] == "false"
    if method != "HEAD":
        assert "error" in answer.json()


def test_two_keys_are_two_scopes() -> None:
    asked = client(api_keys=(KEY, OTHER))
    scopes = [
        asked.post(CHAT, headers=headers).json()["scope"]
        for headers in ({"x-api-key": KEY}, {"authorization": f"Bearer {OTHER}"})
    ]
    assert len({*scopes, ""}) == 3


def test_a_refusal_is_in_the_words_of_its_path() -> None:
    asked = client(api_keys=(KEY,))
    assert asked.post(CHAT).json()["error"]["type"] == "authentication_error"
    answer = asked.post(MESSAGES)
    assert answer.json()["type"] == "error"
    assert answer.json()["request_id"] == answer.headers["request-id"]
    answer = asked.get("/v1/models/a", headers={"anthropic-version": "2023-06-01"})
    assert answer.json()["type"] == "error"


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [("abc-123", True), ("x" * 128, True), ("x" * 129, False), ("", False), ("a b", False)],
)
@pytest.mark.parametrize("path", [CHAT, "/nowhere", "/v1/fail", MESSAGES])
def test_each_answer_has_a_request_id(path: str, sent: str, is_kept: bool) -> None:
    answer = client(max_body_bytes=1).post(path, headers={"x-request-id": sent}, content=b"12")
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert (answer.headers["request-id"] == sent) == is_kept
    assert answer.headers["request-id"]


def test_head_answers_as_get_without_a_body() -> None:
    asked = client()
    for path in ("/", "/health", "/v1/models/a", "/metrics", "/docs"):
        head, get = asked.head(path), asked.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == get.headers["content-length"]
    assert asked.head(CHAT).status_code == 405
    assert asked.head("/nowhere").status_code == 404


@pytest.mark.parametrize(
    ("path", "allowed"),
    [(CHAT, "OPTIONS, POST"), ("/", "GET, HEAD, OPTIONS"), ("/v1/models/a", "GET, HEAD, OPTIONS")],
)
def test_options_tells_the_methods(path: str, allowed: str) -> None:
    answer = client().options(path, headers={"origin": "http://elsewhere.example"})
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["allow"] == allowed
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert client().options("/nowhere").status_code == 404


# ---- web pages


def test_pages_may_ask_from_allowed_origins_alone() -> None:
    origin = "http://page.example:3000"
    asked = client(allowed_origins=(origin,), api_keys=(KEY,))
    preflight = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    answer = asked.options(CHAT, headers=preflight)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    refused = asked.post(CHAT, headers={"origin": origin})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == origin  # the page may read why
    answer = asked.options(CHAT, headers={**preflight, "origin": "http://other.example"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example", "content-type": "text/plain"}, 403),
        ({"origin": "null", "content-type": "application/x-www-form-urlencoded"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://evil.example", "content-type": "application/json"}, 403),
        # Its name leads to this machine.
        ({"origin": "http://evil.example:80", "host": "evil.example:80"}, 403),
        ({"origin": "http://localhost:80", "host": "localhost:80"}, 200),
        ({"origin": "http://[::1]:80", "host": "[::1]:80"}, 200),
        ({"origin": "app://ours", "content-type": "application/json"}, 200),
        ({"content-type": "text/plain"}, 200),
    ],
)
def test_a_strange_page_cannot_make_a_browser_ask(headers: dict[str, str], status: int) -> None:
    assert client().post(CHAT, headers=headers, content=b"{}").status_code == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("LOCALHOST:8000", 200),
        ("fulmen.localhost", 200),
        ("192.168.1.7:8000", 200),
        ("[fe80::1]:8000", 200),
        ("proxy.example", 200),
    ],
)
def test_a_page_whose_name_leads_here_reads_nothing(host: str, status: int) -> None:
    asked = client(allowed_hosts=("proxy.example",))
    assert asked.get("/v1/models/m", headers={"host": host}).status_code == status
    assert asked.post(CHAT, headers={"host": host}, content=b"{}").status_code == status
    keyed = client(api_keys=(KEY,))
    headers = {"host": host, "x-api-key": KEY}
    assert keyed.get("/v1/models/m", headers=headers).status_code == 200


def test_a_page_with_a_key_may_ask_from_its_own_host() -> None:
    headers = {"origin": "https://chat.example", "host": "chat.example", "x-api-key": KEY}
    assert client(api_keys=(KEY,)).post(CHAT, headers=headers, content=b"{}").status_code == 200


# ---- bodies


def chunks(total: int, size: int = 100) -> Iterator[bytes]:
    for start in range(0, total, size):
        yield b"x" * min(size, total - start)


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_body_of_the_limit_passes_and_one_byte_more_is_refused(path: str) -> None:
    asked = client(max_body_bytes=1000)
    assert len(asked.post(path, content=b"x" * 1000).json()["body"]) == 1000
    assert len(asked.post(path, content=chunks(1000)).json()["body"]) == 1000
    for content in (b"x" * 1001, chunks(1001), chunks(10**6)):
        answer = asked.post(path, content=content)
        assert answer.status_code == 413
        assert answer.json()["error"]["type"] == "request_too_large"
        assert "at most 1000" in answer.json()["error"]["message"]


@pytest.mark.parametrize("length", ["-1", "1e3", "abc", "9" * 5000, "0x10"])
def test_a_length_that_is_none_is_refused(length: str) -> None:
    answer = client().post(CHAT, headers={"content-length": length}, content=b"")
    assert answer.status_code in (400, 413)


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


ENCODERS = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("GZIP", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("identity", bytes),
]


@pytest.mark.parametrize(("encoding", "encode"), ENCODERS)
def test_a_compressed_body_arrives_as_it_was(encoding: str, encode: Any) -> None:
    body = bytes(random.Random(0).choices(range(256), k=100_000))
    asked = client(max_body_bytes=2 * len(body))
    answer = asked.post(CHAT, content=encode(body), headers={"content-encoding": encoding})
    assert answer.json()["body"].encode("latin-1") == body


@pytest.mark.parametrize(("encoding", "encode"), ENCODERS[:5])
def test_a_bomb_is_refused_within_the_limit(encoding: str, encode: Any) -> None:
    bomb = encode(bytes(32 * 2**20))
    asked = client(max_body_bytes=2**20)
    assert len(bomb) < 2**20
    start = time.perf_counter()
    answer = asked.post(CHAT, content=bomb, headers={"content-encoding": encoding})
    assert answer.status_code == 413
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("content", "encoding", "status"),
    [
        (gzip.compress(b"abc", mtime=0)[:-1], "gzip", 400),
        (gzip.compress(b"abc", mtime=0) + b"x", "gzip", 400),
        (gzip.compress(b"", mtime=0) * 30_000, "gzip", 400),
        (b"not gzip", "gzip", 400),
        (b"\x00", "deflate", 400),
        (b"abc", "br", 415),
        (b"abc", "zstd", 415),
        (gzip.compress(gzip.compress(b"abc", mtime=0), mtime=0), "gzip, gzip", 415),
        (b"abc", "\xff" * 10_000, 415),
    ],
)
def test_what_cannot_be_decoded_is_refused(content: bytes, encoding: str, status: int) -> None:
    headers = {"content-encoding": encoding.encode("latin-1")}
    answer = client().post(CHAT, content=content, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == status
    assert len(answer.json()["error"]["message"]) < 300


# ---- time


def test_a_request_that_takes_too_long_is_refused() -> None:
    answer = client(request_timeout_seconds=0.1).post("/v1/slow?seconds=30")
    assert answer.status_code == 504
    assert "0.1 s" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/messages/stream"])
def test_a_stream_that_takes_too_long_ends_with_an_error_event(path: str) -> None:
    app = small_app(ServerConfig(request_timeout_seconds=0.1))
    text = TestClient(app, base_url="http://localhost").post(f"{path}?number=100000").text
    assert text.startswith("data: 0\n\n")
    *_, last = text.strip().removesuffix("\n\ndata: [DONE]").split("\n\n")
    assert text.endswith("data: [DONE]\n\n") is ("messages" not in path)
    name, _, data = last.rpartition("data: ")
    assert name == ("event: error\n" if "messages" in path else "")
    assert json.loads(data)["error"]["type"] == "timeout_error"
    assert app.state.num_closed == 1


def test_a_failure_tells_the_log_and_not_the_client(caplog: pytest.LogCaptureFixture) -> None:
    answer = client().post("/v1/fail")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["request-id"] in caplog.text
    assert "a secret of the server" in caplog.text


# ---- places


def places(max_queued: int) -> Places:
    return Places(object(), ServerConfig(max_queued=max_queued))


def test_more_answers_than_places_are_refused_with_numbers() -> None:
    taken = places(2)
    most = taken.max_running + 2
    leases = [taken.acquire() for _ in range(most)]
    with pytest.raises(Refusal, match=f"{taken.max_running} answers run and 2 wait") as caught:
        taken.acquire()
    assert caught.value.status == 429
    assert caught.value.headers == {"retry-after": "1"}
    leases[0].release()
    leases[0].release()
    with pytest.raises(Refusal):
        taken.acquire(2)
    with taken.acquire():
        assert taken.num_taken == most
    assert taken.num_taken == most - 1


def test_more_answers_than_there_can_be_places_are_the_callers_fault() -> None:
    with pytest.raises(Refusal, match="at most") as caught:
        places(0).acquire(1000)
    assert caught.value.status == 400


@pytest.mark.parametrize(("mean", "needed", "seconds"), [(0.1, 1, 1), (80, 2, 20), (9999, 1, 60)])
def test_a_caller_is_told_when_to_come_again(mean: float, needed: int, seconds: int) -> None:
    taken = places(0)
    taken._seconds.extend([mean] * 5)
    taken.acquire(taken.max_running)
    with pytest.raises(Refusal) as caught:
        taken.acquire(needed)
    assert taken.max_running == 8
    assert caught.value.retry_after == seconds


def test_places_are_counted_exactly_under_cancellation() -> None:
    rng = random.Random(1)

    async def answer(taken: Places) -> None:
        with taken.acquire(rng.randint(1, 3)):
            await asyncio.sleep(rng.random() * 0.01)

    async def storm() -> int:
        taken = places(8)
        for _ in range(20):
            tasks = [asyncio.create_task(answer(taken)) for _ in range(20)]
            await asyncio.sleep(0.002)
            assert taken.num_taken <= taken.max_running + 8
            for task in tasks:
                if rng.random() < 0.5:
                    task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError, Refusal):
                    await task
        return taken.num_taken

    assert asyncio.run(storm()) == 0


# ---- the log


class _Usage:
    num_cached_tokens, num_new_tokens, num_thinking_tokens = 5, 7, 3


class _Reply:
    content = "the secret answer"


class _Completion:
    usage, reply, finish_reason = _Usage, _Reply, "stop"


class _Ask:
    model = "gpt-4o\nforged=line"
    messages = ({"role": "user", "content": "the secret question"},)
    texts = ()


class _Answers:
    """Answers as a line reads them."""

    ask, num_prompt_tokens, first_token_seconds, num_new_tokens = _Ask, 3, 0.25, 7
    completions = (_Completion, None)
    report = Report(
        [FoundTurn(1, "matched"), FoundTurn(3, "rendered"), FoundTurn(5, "matched")],
        repairs=["the secret repair"],
        num_missed_tokens=12,
    )


def line(caplog: pytest.LogCaptureFixture, **fields: Any) -> str:
    with caplog.at_level(logging.INFO, LOGGER):
        RequestLog(ServerConfig(**fields)).write(
            request_id="req_1",
            method="POST",
            path=CHAT,
            status=200,
            seconds=1.5,
            key="01234567",
            answers=_Answers,
        )
    (record,) = [record for record in caplog.records if record.name == LOGGER]
    return record.getMessage()


def test_a_line_holds_numbers_and_no_content(caplog: pytest.LogCaptureFixture) -> None:
    text = line(caplog)
    assert text.startswith("time=")
    assert text.partition(" ")[2] == (
        f"request_id=req_1 method=POST path={CHAT} status=200 ms=1500.0 key=01234567 "
        'model="gpt-4o\\\\nforged=line" prompt_tokens=3 cached_tokens=5 new_tokens=7 '
        "thinking_tokens=3 finish_reason=stop turns=matched:2,rendered:1 missed_tokens=12 "
        "repairs=1 ttft_ms=250.0"
    )
    assert "secret" not in text


def test_a_line_of_json_has_the_same_values(caplog: pytest.LogCaptureFixture) -> None:
    values = json.loads(line(caplog, log_format="json", log_content=True))
    assert (values["status"], values["new_tokens"], values["key"]) == (200, 7, "01234567")
    assert values["question"] == "the secret question"
    assert values["answer"] == "the secret answer"


def test_a_request_is_one_line_whatever_it_sends(caplog: pytest.LogCaptureFixture) -> None:
    asked = client(api_keys=(KEY,))
    with caplog.at_level(logging.INFO, LOGGER):
        asked.post(CHAT, headers={"x-api-key": KEY}, content=b"the secret question")
        asked.get("/nowhere/%0Atime=forged%1b[2J/" + "x" * 500, headers={"x-api-key": KEY})
        asked.get("/v1/models/secret?question=secret", headers={"x-request-id": "a\tb"})
        asked.get("/health")
    lines = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert len(lines) == 3  # signs of life are not worth a line
    for text in lines:
        assert text.isprintable()
        assert len(text) < 400
        assert "secret" not in text
        assert KEY not in text
    assert "path=/v1/models/{name} status=401" in lines[2]


# ---- over a socket


def test_a_refused_body_is_read_so_that_the_refusal_arrives() -> None:
    config = ServerConfig(port=0, max_body_bytes=1000)
    size = 8 * 2**20  # more than the buffers of two sockets
    head = b"POST %s HTTP/1.1\r\nhost: localhost\r\n" % CHAT.encode()
    with serving(small_app(config), config) as address:
        received = exchange(address, head + b"content-length: %d\r\n\r\n" % size, bytes(size))
        assert received.startswith(b"HTTP/1.1 413 ")
        chunk = b"%x\r\n%s\r\n" % (size, bytes(size))
        received = exchange(
            address, head + b"transfer-encoding: chunked\r\n\r\n", chunk + b"0\r\n\r\n"
        )
        assert received.startswith(b"HTTP/1.1 413 ")
        # One that waits to be asked is told before it sends.
        received = exchange(
            address, head + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % size
        )
        assert received.startswith(b"HTTP/1.1 413 ")


def test_a_body_that_trickles_is_refused_in_time() -> None:
    config = ServerConfig(port=0, read_timeout_seconds=0.3)
    head = b"POST %s HTTP/1.1\r\nhost: ::1\r\ncontent-length: 100\r\n\r\n" % MESSAGES.encode()
    with serving(small_app(config), config) as address:
        start = time.perf_counter()
        received = exchange(address, head, b"abc")
        assert time.perf_counter() - start < 8
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"within 0.3 s, 3 bytes of it did" in received


def test_a_client_that_leaves_ends_its_stream() -> None:
    config = ServerConfig(port=0)
    app = small_app(config)
    request = b"POST /v1/stream?number=100000 HTTP/1.1\r\nhost: ::1\r\ncontent-length: 0\r\n\r\n"
    with serving(app, config) as address:
        with socket.create_connection(address, timeout=20) as connection:
            connection.sendall(request)
            connection.recv(100)
        for _ in range(200):
            if getattr(app.state, "num_closed", 0):
                break
            time.sleep(0.02)
        assert app.state.num_closed == 1


def test_a_stream_that_fails_is_cut_and_not_ended() -> None:
    config = ServerConfig(port=0)
    request = b"POST /v1/stream?number=1&fails=1 HTTP/1.1\r\nhost: ::1\r\ncontent-length: 0\r\n\r\n"
    with serving(small_app(config), config) as address:
        received = exchange(address, request)
    assert b"data: 0" in received
    assert b"secret" not in received
    assert not received.endswith(b"0\r\n\r\n")  # no last chunk: the client knows that it is a part
