"""A server at a URL, whatever it does: an answer, or one sentence in bounded time and memory."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.llm import http
from fulmen.llm.http import EventReader, Peer, PeerConfig, PeerError, ServerEvent

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
QUICK = PeerConfig(
    first_byte_seconds=0.2, idle_seconds=0.2, max_retries=2, first_retry_seconds=0.001
)
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
CHUNKED = EVENTS[:-2] + b"transfer-encoding: chunked\r\n\r\n"


@asynccontextmanager
async def listening(talk: Talk) -> AsyncIterator[int]:
    """Give the port of a server that talks so to each connection, and closes it then."""
    talks: list[asyncio.Future[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        done = asyncio.get_running_loop().create_future()
        talks.append(done)
        try:
            await talk(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            done.set_result(None)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*talks)


@asynccontextmanager
async def peer_of(*answers: bytes | None) -> AsyncIterator[tuple[Peer, list[bytes]]]:
    """Give a server that answers its connections with these bytes in turn, the last one from then
    on, and what it was sent. None: it says nothing and holds the connection."""
    asked: list[bytes] = []
    released = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        answer = answers[min(len(asked), len(answers)) - 1]
        if answer is None:
            await released.wait()
        elif answer.endswith(b"..."):  # it goes silent
            writer.write(answer[:-3])
            await writer.drain()
            await released.wait()
        else:
            writer.write(answer)

    async with (
        listening(talk) as port,
        Peer(f"http://127.0.0.1:{port}/base/", config=QUICK) as peer,
    ):
        yield peer, asked
        released.set()


def answer(body: bytes, status: int = 200, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def asked_of(*answers: bytes | None) -> tuple[Any, int]:
    """Return what a POST comes to, a value or a PeerError, and after how many tries."""

    async def main() -> tuple[Any, int]:
        async with peer_of(*answers) as (peer, asked):
            try:
                return await peer.post("/v1/x", {"a": 1}), len(asked)
            except PeerError as error:
                return error, len(asked)

    return asyncio.run(main())


async def events_of(peer: Peer) -> list[ServerEvent]:
    async with aclosing(peer.events("/v1/x", {})) as events:
        return [event async for event in events]


def streamed(*answers: bytes | None) -> Any:
    """Return the events of a stream up to its end or its error, and the error."""

    async def main() -> Any:
        got: list[str] = []
        async with peer_of(*answers) as (peer, _):
            try:
                async with aclosing(peer.events("/v1/x", {})) as events:
                    async for event in events:
                        got.append(event.data)
            except PeerError as error:
                return got, error
        return got, None

    return asyncio.run(main())


def test_an_object_comes_back_and_the_path_is_put_behind_the_url() -> None:
    async def main() -> None:
        async with peer_of(answer(b'{"b": 2}')) as (peer, asked):
            assert await peer.get("/v1/y") == {"b": 2}
            assert asked[0].startswith(b"GET /base/v1/y HTTP/1.1\r\n")

    asyncio.run(main())


@pytest.mark.parametrize("size", [3, 300_000])
def test_a_body_arrives_as_it_is_and_others_go_on_while_a_large_one_is_written(size: int) -> None:
    body = {"ids": list(range(size)), "deep": {"bias": {str(key): -0.5 for key in range(size)}}}
    bodies: list[bytes] = []
    num_ticks = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        bodies.append(await reader.readexactly(length))
        writer.write(answer(b"{}"))

    async def tick() -> None:
        nonlocal num_ticks
        while not bodies:
            num_ticks += 1
            await asyncio.sleep(0.001)

    async def main() -> None:
        async with listening(talk) as port, Peer(f"http://127.0.0.1:{port}") as peer:
            ticking = asyncio.ensure_future(tick())
            await peer.post("/", body)
            await ticking

    asyncio.run(main())
    assert bodies == [json.dumps(body).encode()]
    assert num_ticks > 10 or size == 3


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_tried_again(status: int) -> None:
    assert asked_of(answer(b"", status), answer(b"{}")) == ({}, 2)
    error, tries = asked_of(answer(b'{"error": {"message": "busy"}}', status))
    assert tries == 3
    assert error.peer_status == status
    assert str(error).endswith(f"/base/v1/x answered with {status}: busy")


def test_a_retry_after_is_waited_for_and_passed_on() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with peer_of(answer(b"", 429, retry_after="0.3"), answer(b"{}")) as (peer, _):
            began = loop.time()
            await peer.get("/")
            assert loop.time() - began >= 0.3

    asyncio.run(main())
    error, _ = asked_of(answer(b"", 429, retry_after="0.01"))
    assert error.retry_after == 0.01
    for text in ("soon", "-1", "nan", "inf", "Wed, 21 Oct 2026 07:28:00 GMT"):
        error, _ = asked_of(answer(b"", 429, retry_after=text))
        assert error.retry_after is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "no such model"}}', "no such model"),
        (b'{"error": "no such model"}', "no such model"),
        (b'{"type": "error", "error": {"type": "x", "message": "too long"}}', "too long"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"detail": [{"loc": ["body"], "msg": "field required"}]}', "field required"),
        (b'{"object": "error", "message": "bad", "code": 400}', "bad"),
        (b"<html><body>nginx</body></html>", "a page of HTML"),
        (b"plain\x1b[31m words\n", r"plain\x1b[31m words"),
        (b"", "nothing else"),
        (b"\xff\xfe", "\ufffd"),
        (b"[" * 200_000, "["),
    ],
)
def test_a_refusal_says_what_the_other_side_said(body: bytes, said: str) -> None:
    error, tries = asked_of(answer(body, 400))
    assert tries == 1
    assert said in str(error)
    assert len(str(error)) < 400
    assert str(error).isprintable()


@pytest.mark.parametrize(
    ("given", "sentence", "tries"),
    [
        ((None,), "did not begin to answer within 0.2 s", 1),
        ((b"",), "cannot be reached", 3),
        ((b"SSH-2.0-OpenSSH_9\r\n",), "spoke no HTTP", 3),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{...",), "sent nothing more", 1),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{",), "broke off", 3),
        ((answer(b"", 302, location="http://10.0.0.1/"),), "sends elsewhere, to http://10.0", 1),
        ((answer(b"[1]"),), "must hold a JSON object", 1),
        ((answer(b"<html>"),), "is not valid JSON", 1),
        ((answer(b'{"a":' * 5000),), "nested too deeply", 1),
        ((answer(b"\x1f\x8b", content_encoding="gzip"),), "answered compressed", 1),
    ],
)
def test_a_server_that_fails_is_one_sentence(
    given: tuple[bytes | None, ...], sentence: str, tries: int
) -> None:
    error, asked = asked_of(*given)
    assert isinstance(error, PeerError)
    assert sentence in str(error)
    assert "\n" not in str(error)
    assert asked == tries
    assert error.status == (504 if "within" in sentence or "more" in sentence else 502)
    assert error.peer_status in (None, 302)  # nothing was refused


def test_an_object_that_broke_off_is_asked_for_again() -> None:
    cut = b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"b"'
    assert asked_of(cut, answer(b'{"b": 2}')) == ({"b": 2}, 2)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (CHUNKED, ["one"]),  # it dies behind its head
        (CHUNKED + b"8\r\n: ping\n\n\r\n", ["one"]),  # and behind a comment
        (CHUNKED + b"c\r\ndata: zero\n\n\r\n", ["zero"]),  # this one was given on
    ],
)
def test_events_are_asked_for_again_until_the_first_was_given_on(
    first: bytes, expected: list[str]
) -> None:
    got, error = streamed(first, EVENTS + b"data: one\n\n")
    assert got == expected
    assert (error is None) == (got == ["one"])


def test_a_prompt_may_be_read_behind_the_head_of_its_answer() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(EVENTS)
        await asyncio.sleep(0.3)
        writer.write(b"data: one\n\n")
        await reader.read()

    async def main() -> None:
        config = PeerConfig(first_byte_seconds=5, idle_seconds=0.1)
        async with (
            listening(talk) as port,
            Peer(f"http://127.0.0.1:{port}", config=config) as peer,
            aclosing(peer.events("/", {})) as events,
        ):
            assert (await anext(events)).data == "one"
            with pytest.raises(PeerError, match="sent nothing more within 0"):
                await anext(events)

    asyncio.run(main())


def test_a_body_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_JSON_BYTES", 1000)
    error, _ = asked_of(answer(b" " * 5000))
    assert "more than 1,000 bytes" in str(error)


def test_an_answer_ends_in_time_however_slowly_it_drips() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(EVENTS)
        while not writer.is_closing():
            writer.write(b": still here\n\n")
            try:
                await writer.drain()
            except OSError:
                break
            await asyncio.sleep(0.02)

    async def main() -> None:
        config = PeerConfig(answer_seconds=0.3)
        async with (
            listening(drip) as port,
            Peer(f"http://127.0.0.1:{port}", config=config) as peer,
        ):
            with pytest.raises(PeerError, match="did not end in time"):
                await events_of(peer)

    asyncio.run(main())


def test_nobody_at_the_address() -> None:
    async def main() -> None:
        async with Peer("http://127.0.0.1:9", config=QUICK) as peer:
            with pytest.raises(PeerError, match=r"^http://127.0.0.1:9 cannot be reached: "):
                await peer.get("/v1/models")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        (b"...", "sent nothing more within 0.2 s"),
        (b"data: {", None),  # some servers leave out the last empty line
        (b"x" * 3000, "an event of more than 1,000 bytes"),
        (b"data: ab\n" * 400, "an event of more than 1,000 bytes"),
    ],
)
def test_a_stream_gives_what_came_before_it_failed(
    end: bytes, sentence: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_EVENT_BYTES", 1000)
    got, error = streamed(EVENTS + b"data: one\n\ndata: two\n\n" + end)
    if sentence is None:
        assert (got, error) == (["one", "two", "{"], None)
    else:
        assert got == ["one", "two"]
        assert sentence in str(error)


def test_what_is_no_stream_of_events_is_named() -> None:
    _, error = streamed(answer(b"<html>", content_type="text/html"))
    assert "answered with text/html in place of a stream of events: a page of HTML" in str(error)


def test_a_chunked_stream_that_breaks_off_is_an_error() -> None:
    got, error = streamed(CHUNKED + b"b\r\ndata: one\n\n\r\n")
    assert got == ["one"]
    assert "broke off" in str(error)


def test_closing_the_events_closes_the_connection() -> None:
    closed = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(EVENTS + b"data: one\n\n")
        await reader.read()  # returns when the other side goes
        closed.set()

    async def main() -> None:
        async with listening(talk) as port, Peer(f"http://127.0.0.1:{port}") as peer:
            async with aclosing(peer.events("/", {})) as events:
                assert (await anext(events)).data == "one"
            await asyncio.wait_for(closed.wait(), 5)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("127.0.0.1:8000", "no URL"),
        ("ftp://host/", "must look like http"),
        ("http://", "no URL of a server"),
        ("http://host:99999999/", "no URL"),
        ("http://host/?key=1", "has a query"),
        ("", "no URL"),
    ],
)
def test_a_wrong_url_is_a_sentence(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Peer(url)


@pytest.mark.parametrize("value", ["k\r\nx-admin: 1", "k\n", "k\x00", "schlüssel"])
def test_a_header_cannot_be_smuggled(value: str) -> None:
    with pytest.raises(ValueError, match="no header can hold") as error:
        Peer("http://127.0.0.1:9", headers={"authorization": value})
    assert value not in str(error.value)


def test_a_password_in_the_url_is_in_no_error() -> None:
    async def main() -> None:
        async with Peer("http://me:secret@127.0.0.1:9", config=QUICK) as peer:
            with pytest.raises(PeerError) as error:
                await peer.get("/")
            assert "secret" not in str(error.value)

    asyncio.run(main())


@pytest.mark.parametrize(
    "url", ["ftp://me:secret@h", "me:secret@h:1", "http://me:sec/ret@h:1", "http://me:secret@h?a=1"]
)
def test_a_password_in_a_wrong_url_is_in_no_error(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(ftp://|http://)?h") as error:
        Peer(url)
    assert "sec" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (b"", "SGLang cannot be reached"),
        (answer(b"oh", 400), "SGLang answered with 400: oh"),
        (answer(b"see http://10.0.0.9/x, please", 400), "400: see another address, please"),
        (answer(b"", 302, location="http://10.0.0.1/"), "SGLang sends elsewhere, to another addr"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", "the answer of SGLang broke off"),
        (None, "SGLang did not begin to answer within 0.2 s"),
    ],
)
def test_a_sentence_without_an_address_names_the_kind(given: bytes | None, sentence: str) -> None:
    async def main() -> str:
        async with peer_of(given) as (peer, _):
            with pytest.raises(PeerError) as caught:
                await peer.post("/v1/x", {})
            return caught.value.without_address(peer.shown_url, "SGLang")

    said = asyncio.run(main())
    assert sentence in said
    assert "127.0.0.1" not in said
    assert "10.0.0" not in said


TEXTS = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)


@given(
    st.lists(st.tuples(st.none() | TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 400), max_size=8),
)
def test_events_do_not_depend_on_how_their_bytes_are_cut(
    events: list[tuple[str | None, list[str]]], end: str, cuts: list[int]
) -> None:
    text = ": a comment" + end
    for name, lines in events:
        text += "".join(f"event: {name}{end}" for _ in range(name is not None))
        text += "".join(f"data: {line}{end}" for line in lines) + end
    data = text.encode()
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reader = EventReader("it")
    got = [event for start, stop in pairwise(places) for event in reader.feed(data[start:stop])]
    got += reader.end()
    assert got == [ServerEvent("\n".join(lines), name) for name, lines in events]


@given(st.binary(max_size=200))
def test_any_bytes_are_events_or_nothing(data: bytes) -> None:
    reader = EventReader("it")
    for event in [*reader.feed(data), *reader.end()]:
        with suppress(PeerError):
            assert isinstance(event.json("it"), dict)


def test_a_transport_takes_the_place_of_the_network() -> None:
    def handle(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={"got": json.loads(request.content)})

    async def main() -> None:
        async with Peer("http://model", transport=httpx2.MockTransport(handle)) as peer:
            assert await peer.post("/", {"a": [1]}) == {"got": {"a": [1]}}

    asyncio.run(main())
