"""A server under twice the load it has places for, with clients that behave badly.

    python benchmarks/soak.py --model smollm2 --minutes 30

Starts `fulmen serve` and asks it for so long over its socket: chat, messages, responses and
completions, streamed and whole, from twice as many clients as answers run at once. Some go away in
mid-answer, some read a few thousand bytes a second, from sockets that hold no more, some send what
is no request. First each question of the pool is asked alone; then every answer that came must be
that answer again.

Then the server is killed, as `kill -9` does, while conversations run that name a session, and
started again, --kills times.

What is checked, with exit code 1 if it does not hold: answers are equal to those alone; nothing but
refusals that say so (429, 503) takes the place of an answer; with the clients gone nothing runs or
waits; memory is flat from the first third on; after a kill every session has each turn that was
said to be saved, goes on from there without reading it again, and says what a conversation that
was never interrupted says. A table goes to stderr, one JSON line to stdout.
"""

import asyncio
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import typer
from measure import console, print_json, run
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

READY_SECONDS: Final = 600.0
ANSWER_SECONDS: Final = 300.0
"""Longest time an answer may take under load: more is a hang"""
NONSENSE_SECONDS: Final = 60.0
"""Longest time until what is no request is refused or its connection closed"""
CRAWL_SECONDS: Final = 60.0
"""Time that a slow reader reads once a second; then it reads on as fast as it can"""
CRAWL_BYTES: Final = 4096
"""Bytes that a slow reader's socket holds, and that it reads at once"""
LONG_QUESTIONS: Final = 2
"""Questions with an answer that no socket's buffer holds, for slow readers"""
SAMPLE_SECONDS: Final = 5.0
FLAT: Final = 1.05
"""Most that the last third's memory may be, as a multiple of the second third's"""
FLAT_BYTES: Final = 32 * 2**20
"""Growth that is always allowed: the allocator's own"""


@dataclass(frozen=True, slots=True)
class Question:
    """A request that has one right answer."""

    path: str
    body: dict[str, Any]

    def request(self, *, streams: bool) -> bytes:
        """Return it as HTTP."""
        body = json.dumps(self.body | {"stream": streams}).encode()
        return _request(self.path, body)


@dataclass(slots=True)
class Tally:
    """Sum of what came of all requests."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Answers that are not the one alone, and everything else that may not be"""
    memory: list[tuple[float, int]] = field(default_factory=list)
    """(seconds from the start, bytes of the server)"""


def make_questions(count: int, draw: random.Random) -> list[Question]:
    """Return questions of all dialects; some begin alike, some are long."""
    opening = " ".join(draw.choices(_WORDS, k=30))
    questions = []
    for number in range(count):
        text = " ".join(draw.choices(_WORDS, k=draw.choice((3, 12, 40, 80))))
        if number % 3 == 0:
            text = f"{opening} {text}"
        tokens, seed = draw.choice((4, 16, 48)), draw.randrange(2**31)
        messages = [{"role": "user", "content": text}]
        if number % 5 == 0:
            messages += [
                {"role": "assistant", "content": "Yes."},
                {"role": "user", "content": "Go on."},
            ]
        sampled = {"temperature": 1.0, "seed": seed}
        questions.append(
            Question("/v1/chat/completions", {"messages": messages, "max_tokens": tokens})
            if number % 4 == 0
            else Question("/v1/messages", {"messages": messages, "max_tokens": tokens})
            if number % 4 == 1
            else Question(
                "/v1/responses",
                {"input": messages, "max_output_tokens": max(16, tokens), "store": False},
            )
            if number % 4 == 2
            else Question("/v1/completions", {"prompt": text, "max_tokens": tokens})
        )
        greedy = questions[-1].path in ("/v1/messages", "/v1/responses")
        questions[-1].body.update({"temperature": 0.0} if greedy else sampled, model="soak")
    return questions


def make_long_questions(num_tokens: int, draw: random.Random) -> list[Question]:
    """Return questions whose answers have so many tokens, each with its most likely others."""
    asked = {"max_tokens": num_tokens, "ignore_eos": True, "temperature": 0.0, "model": "soak"}
    told = {"logprobs": True, "top_logprobs": 5}
    return [
        Question(
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": " ".join(draw.choices(_WORDS, k=8))}]}
            | asked
            | told,
        )
        for _ in range(LONG_QUESTIONS if num_tokens else 0)
    ]


_WORDS: Final = (
    *("river", "clock", "paper", "stone", "cloud", "light", "bread", "glass"),
    *("über", "日本", "𝄞", "naïve"),
)


# ---- HTTP as a client writes it


def _request(path: str, body: bytes, *lines: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json"]
    head += [f"content-length: {len(body)}", "connection: close", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()


class BrokenOff(ConnectionError):
    """A response that ended before its body did."""


async def exchange(port: int, request: bytes) -> tuple[int, bytes]:
    """Return the status and the body of a request's answer.

    Raises TimeoutError for one that takes too long, BrokenOff as `parse` does.
    """
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                await writer.drain()
                data = await reader.read(-1)
            finally:
                writer.close()
    except TimeoutError:
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:g} s") from None
    return parse(data)


def parse(data: bytes) -> tuple[int, bytes]:
    """Return the status and the body of a whole response.

    Raises BrokenOff for one that ends before its body does.
    """
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        raise BrokenOff("the answer broke off before its body")
    status = int(head.split(b" ", 2)[1])
    if b"transfer-encoding: chunked" in head.lower():
        parts, rest = [], body
        while True:
            size, _, rest = rest.partition(b"\r\n")
            if not size:
                raise BrokenOff("the answer broke off in mid-body")
            length = int(size, 16)
            if not length:
                return status, b"".join(parts)
            parts.append(rest[:length])
            rest = rest[length + 2 :]
    length = re.search(rb"content-length: *(\d+)", head.lower())
    if length and len(body) < int(length[1]):
        raise BrokenOff("the answer broke off in mid-body")
    return status, body


def said(path: str, body: bytes, *, streams: bool) -> Any:
    """Return what an answer says, the same for one that is streamed and one that is whole."""
    if not streams:
        return _said_whole(path, json.loads(body))
    texts: Counter[str] = Counter()
    parts: dict[str, str] = {"thinking": "", "text": ""}
    reason = None
    for line in body.decode().splitlines():
        data = line.removeprefix("data: ")
        if data == line or data == "[DONE]":
            continue
        event = json.loads(data)
        if event.get("error"):
            return {"error": event["error"]}
        if path == "/v1/messages":
            delta = event.get("delta", {})
            parts["thinking"] += delta.get("thinking", "")
            parts["text"] += delta.get("text", "")
            reason = delta.get("stop_reason") or reason
        elif path == "/v1/responses":
            if event["type"] in ("response.completed", "response.incomplete"):
                return _said_whole(path, event["response"])
            texts[event["type"]] += 1
        else:
            for choice in event["choices"]:
                delta = choice.get("delta", choice)
                parts["thinking"] += delta.get("reasoning_content") or ""
                parts["text"] += delta.get("content") or delta.get("text") or ""
                reason = choice.get("finish_reason") or reason
    return {**parts, "reason": reason}


def _said_whole(path: str, answer: dict[str, Any]) -> Any:
    if path == "/v1/messages":
        found = {"thinking": "", "text": ""}
        for block in answer["content"]:
            if block["type"] in found:
                found[block["type"]] += block[block["type"]]
        return {**found, "reason": answer["stop_reason"]}
    if path == "/v1/responses":
        parts = [part for item in answer["output"] for part in item.get("content") or ()]
        return {
            "thinking": "".join(part["text"] for part in parts if "reasoning" in part["type"]),
            "text": "".join(part["text"] for part in parts if part["type"] == "output_text"),
            "reason": answer["status"],
        }
    (choice,) = answer["choices"]
    message = choice.get("message", choice)
    return {
        "thinking": message.get("reasoning_content") or "",
        "text": message.get("content") or message.get("text") or "",
        "reason": choice["finish_reason"],
    }


# ---- clients


class Clients:
    """Clients of one server, good and bad."""

    def __init__(
        self, port: int, questions: list[Question], expected: list[Any], num_long: int = 0
    ) -> None:
        """num_long: how many of the questions, the last ones, are for slow readers alone"""
        self.port = port
        self.questions = questions
        self.expected = expected
        self.num_short = len(questions) - num_long
        self.tally = Tally()

    async def run(self, number: int, ends_at: float) -> None:
        """Behave as one client until a time."""
        draw = random.Random(number)
        while time.monotonic() < ends_at:
            kind = draw.choices(
                (self.ask, self.leave, self.crawl, self.babble), weights=(70, 15, 5, 10)
            )[0]
            try:
                await kind(draw)
            except (TimeoutError, BrokenOff) as error:
                self.tally.wrong.append(f"{kind.__name__}: {error}")
            except OSError as error:
                self.tally.counts[f"{kind.__name__}: {type(error).__name__}"] += 1

    async def ask(self, draw: random.Random) -> None:
        """Ask and read to the end."""
        place, streams = draw.randrange(self.num_short), draw.random() < 0.6
        question = self.questions[place]
        status, body = await exchange(self.port, question.request(streams=streams))
        self.judge(place, status, body, streams=streams)

    async def crawl(self, draw: random.Random) -> None:
        """Ask, and read a stream far more slowly than it comes.

        The buffers hold little on both sides: the client's by its size, the server's because the
        kernel measures it by the client's largest segment. So the server must wait.
        """
        places = range(len(self.questions))
        place = draw.choice(places[self.num_short :] or places)
        loop, data = asyncio.get_running_loop(), b""
        limit = CRAWL_SECONDS + 2 * ANSWER_SECONDS  # a long answer, and then the rest of it
        with socket.socket() as peer:
            peer.setblocking(False)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CRAWL_BYTES)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)
            try:
                async with asyncio.timeout(limit):
                    await loop.sock_connect(peer, ("127.0.0.1", self.port))
                    await loop.sock_sendall(peer, self.questions[place].request(streams=True))
                    fast_from = loop.time() + CRAWL_SECONDS
                    while chunk := await loop.sock_recv(peer, CRAWL_BYTES):
                        data += chunk
                        if loop.time() < fast_from:
                            await asyncio.sleep(1)
            except TimeoutError:
                raise TimeoutError(f"no answer within {limit:g} s") from None
        self.tally.counts["read slowly"] += 1
        self.judge(place, *parse(data), streams=True)

    async def leave(self, draw: random.Random) -> None:
        """Ask, and go before the answer or in the middle of it, politely or not."""
        question = self.questions[draw.randrange(self.num_short)]
        request = question.request(streams=draw.random() < 0.7)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request[: draw.choice((len(request), len(request), len(request) // 2))])
            with suppress(TimeoutError):
                async with asyncio.timeout(draw.choice((0, 0.02, 0.2, 1))):
                    await reader.read(draw.choice((1, 200, 2000)))
            if draw.random() < 0.5:
                writer.transport.abort()
        finally:
            writer.close()
        self.tally.counts["left"] += 1

    async def babble(self, draw: random.Random) -> None:
        """Send what is no request; anything but a 4xx, a 501 or a closed connection is wrong."""
        request = draw.choice(_NONSENSE)(draw)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            if draw.random() < 0.3:
                with suppress(OSError):
                    writer.write_eof()
            try:
                async with asyncio.timeout(NONSENSE_SECONDS):
                    data = await reader.read(65536)
            except TimeoutError:
                raise TimeoutError(
                    f"nothing within {NONSENSE_SECONDS:g} s for {request[:80]!r}"
                ) from None
        finally:
            writer.close()
        if not data:
            self.tally.counts["nonsense: closed"] += 1
            return
        status = int(data.split(b" ", 2)[1])
        self.tally.counts[f"nonsense: {status}"] += 1
        if not 400 <= status < 500 and status != 501:
            self.tally.wrong.append(f"{status} for {request[:80]!r}")

    def judge(self, place: int, status: int, body: bytes, *, streams: bool) -> None:
        """Compare an answer with the one alone."""
        question = self.questions[place]
        self.tally.counts[f"{question.path}: {status}"] += 1
        if status in (429, 503):
            return
        if status != 200:
            self.tally.wrong.append(f"{question.path}: {status}: {body[:200]!r}")
            return
        found = said(question.path, body, streams=streams)
        if found != self.expected[place]:
            self.tally.wrong.append(
                f"{question.path} {'streamed' if streams else 'whole'}: {found!r} in place of "
                f"{self.expected[place]!r}"[:600]
            )


_NONSENSE: Final = (
    lambda draw: draw.randbytes(draw.randrange(1, 3000)),
    lambda draw: _request("/v1/chat/completions", draw.randbytes(500)),
    lambda draw: _request("/v1/messages", b'{"messages": ['),
    lambda draw: _request("/v1/messages", b'{"messages": 5, "max_tokens": "x"}'),
    lambda draw: _request("/v1/chat/completions", b"[" * draw.randrange(1, 100_000)),
    lambda draw: _request("/v1/responses", b'{"input": [{"type": "?"}], "store": 7}'),
    lambda draw: _request("/v1/completions", b'{"prompt": [-1, 1.5], "n": 1e9}'),
    lambda draw: _request("/v1/chat/completions", b"{}", "content-length: 7"),
    lambda draw: _request("/v1/chat/completions", b"{}", "transfer-encoding: chunked"),
    lambda draw: _request("/v1/nowhere/" + "../" * 50, b"{}"),
    lambda draw: _request("/v1/chat/completions", b"{}", "x-long: " + "y" * 100_000),
    lambda draw: b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    lambda draw: b"BREW /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
)
"""Bytes that are no request, each kind with something wrong of its own"""


# ---- the server


class Server:
    """`fulmen serve` in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process = process
        self.port = port

    def memory(self) -> int:
        """Return its resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) * 1024 if found else 0

    async def gauges(self) -> tuple[float, float]:
        """Return how many requests run and wait."""
        _, body = await exchange(self.port, _get("/metrics"))
        found = [
            re.search(rf"^fulmen:num_requests_{what}\{{.*\}} (\S+)$", body.decode(), re.MULTILINE)
            for what in ("running", "waiting")
        ]
        if None in found:
            raise ValueError("/metrics has no gauge of what runs and waits")
        running, waiting = (float(match[1]) for match in found if match)
        return running, waiting


@contextmanager
def serving(model: str, folder: Path, num_places: int) -> Iterator[Server]:
    """Give a server that is ready; ended afterwards. folder takes its log and what it keeps."""
    command = [sys.executable, "-m", "fulmen", "serve", model, "--port", "0"]
    command += ["--max-num-seqs", str(num_places), "--max-queued", str(num_places // 2)]
    command += ["--transcripts", str(folder / "transcripts.sqlite3")]
    command += ["--sessions", str(folder / "sessions")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise ValueError(f"the server did not start: {(folder / 'log').read_text()[-500:]}")
            yield Server(process, int(url.rpartition(":")[2]))
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def soak(
    server: Server, num_clients: int, num_questions: int, long_tokens: int, seconds: float
) -> Tally:
    """Return what came of the load. long_tokens: tokens of the answers that are read slowly"""
    long_questions = make_long_questions(long_tokens, random.Random(2))
    questions = make_questions(num_questions, random.Random(0)) + long_questions
    expected = []
    for question in questions:
        status, body = await exchange(server.port, question.request(streams=False))
        if status != 200:
            raise ValueError(f"{question.path} alone answered {status}: {body[:300]!r}")
        expected.append(said(question.path, body, streams=False))
    clients = Clients(server.port, questions, expected, len(long_questions))
    tally = clients.tally
    began = time.monotonic()
    load = asyncio.gather(*(clients.run(n, began + seconds) for n in range(num_clients)))
    with Progress(
        *Progress.get_default_columns()[:2],
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        task = progress.add_task("soak", total=seconds)
        while not load.done():
            await asyncio.wait({load}, timeout=SAMPLE_SECONDS)
            passed = time.monotonic() - began
            tally.memory.append((passed, server.memory()))
            progress.update(
                task,
                completed=min(passed, seconds),
                description=f"{sum(tally.counts.values()):,} requests, {len(tally.wrong)} wrong",
            )
    await load
    try:
        await check_idle(server, tally)
        for place, question in enumerate(questions[:8]):  # and it still answers
            status, body = await exchange(server.port, question.request(streams=False))
            clients.judge(place, status, body, streams=False)
            if status != 200:
                tally.wrong.append(f"afterwards {question.path} alone answered {status}")
    except OSError as error:
        tally.wrong.append(f"afterwards: {error}")
    check_memory(tally, seconds)
    return tally


# ---- kills


class Conversation:
    """A conversation that names a session, and what the server said is saved of it."""

    def __init__(self, name: str, draw: random.Random) -> None:
        self.name = name
        self.messages: list[dict[str, Any]] = []
        self.num_saved = 0
        """Messages that are saved, as the server said"""
        self._draw = draw

    def body(self) -> dict[str, Any]:
        """Return the request for the next turn."""
        text = " ".join(self._draw.choices(_WORDS, k=4))
        self.messages = [*self.messages[: self.num_saved], {"role": "user", "content": text}]
        return {"model": "soak", "messages": self.messages, "max_tokens": 12, "temperature": 0}

    async def talk(self, port: int) -> None:
        """Ask turn after turn, and have each saved, until the server goes away."""
        with suppress(OSError):
            while True:
                request = _request(
                    "/v1/chat/completions",
                    json.dumps(self.body() | {"session": self.name}).encode(),
                )
                status, body = await exchange(port, request)
                if status != 200:
                    await asyncio.sleep(0.05)
                    continue
                self.messages.append(json.loads(body)["choices"][0]["message"])
                status, _ = await exchange(port, _request(f"/v1/sessions/{self.name}/save", b""))
                if status == 200:
                    self.num_saved = len(self.messages)

    async def check(self, port: int) -> str | None:
        """Return what is lost or wrong after a kill; None if nothing is."""
        if not self.num_saved:
            return None
        try:
            return await self._check(port)
        except OSError as error:
            return f"session {self.name}: {error}"

    async def _check(self, port: int) -> str | None:
        kept = self.messages[: self.num_saved]
        status, stored = await exchange(port, _get(f"/v1/sessions/{self.name}"))
        if status != 200:
            return f"session {self.name} is lost: {status}: {stored[:200]!r}"
        found = json.loads(stored)["messages"]
        if [said_by(message) for message in found[: len(kept)]] != list(map(said_by, kept)):
            return f"session {self.name} has {found!r} in place of {kept!r}"[:600]
        body = self.body()
        answers = []
        for fields in ({"session": self.name}, {}):
            request = _request("/v1/chat/completions", json.dumps(body | fields).encode())
            status, answer = await exchange(port, request)
            if status != 200:
                return f"session {self.name} does not go on: {status}: {answer[:200]!r}"
            answers.append(json.loads(answer))
        first, second = (said_by(answer["choices"][0]["message"]) for answer in answers)
        if first != second:
            return f"session {self.name} says {first!r}, the conversation anew {second!r}"[:600]
        usage = answers[0]["usage"]
        if not usage["prompt_tokens_details"]["cached_tokens"]:
            return f"session {self.name} is read again, all {usage['prompt_tokens']} tokens"
        return None


def said_by(message: dict[str, Any]) -> tuple[Any, ...]:
    """Return what a message says, however it writes that nothing stands in a field."""
    thought = message.get("reasoning_content") or message.get("thinking") or ""
    return message["role"], message.get("content") or "", thought


async def kill(model: str, folder: Path, num_places: int, num_kills: int) -> tuple[int, list[str]]:
    """Return how many turns were saved, and what was lost or wrong after kills."""
    draw, wrong = random.Random(1), list[str]()
    conversations = [Conversation(f"talk-{number}", draw) for number in range(num_places)]
    for _ in range(num_kills):
        with serving(model, folder, num_places) as server:
            for conversation in conversations:
                if (sentence := await conversation.check(server.port)) is not None:
                    wrong.append(sentence)
            talks = [asyncio.ensure_future(each.talk(server.port)) for each in conversations]
            await asyncio.sleep(draw.uniform(2, 6))
            server.process.kill()
            await asyncio.gather(*talks)
    with serving(model, folder, num_places) as server:
        found = [await conversation.check(server.port) for conversation in conversations]
    return sum(each.num_saved // 2 for each in conversations), wrong + list(filter(None, found))


# ---- checks


async def check_idle(server: Server, tally: Tally) -> None:
    """Note it if something still runs when all clients are gone."""
    deadline = time.monotonic() + 60
    while (left := await server.gauges()) != (0, 0):
        if time.monotonic() > deadline:
            tally.wrong.append(f"{left[0]:g} requests run and {left[1]:g} wait without a client")
            return
        await asyncio.sleep(0.5)


def check_memory(tally: Tally, seconds: float) -> None:
    """Note it if the server's memory grew."""
    thirds = [
        [size for passed, size in tally.memory if low <= passed / seconds < low + 1 / 3]
        for low in (1 / 3, 2 / 3)
    ]
    if not all(thirds):
        return
    before, after = map(statistics.median, thirds)
    if after > max(before * FLAT, before + FLAT_BYTES):
        tally.wrong.append(f"memory grew from {before / 2**20:.0f} to {after / 2**20:.0f} MiB")


def main(
    model: Annotated[str, typer.Option(help="A model to serve; see fulmen serve.")] = "smollm2",
    minutes: Annotated[float, typer.Option(help="How long.")] = 30.0,
    places: Annotated[int, typer.Option(help="Answers that run at once.")] = 8,
    questions: Annotated[int, typer.Option(help="Different questions.")] = 48,
    long_tokens: Annotated[
        int, typer.Option(help="Tokens of the answers that are read slowly; 0: short ones are.")
    ] = 2000,
    kills: Annotated[int, typer.Option(help="How often the server is killed.")] = 5,
) -> None:
    """Loads a server with clients that behave badly, and checks all that it says."""
    if minutes <= 0 or places < 1 or questions < 1 or min(kills, long_tokens) < 0:
        raise typer.BadParameter(
            "minutes, places and questions must be positive, kills and long-tokens not negative"
        )
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    num_clients = 2 * (places + places // 2)
    with TemporaryDirectory() as name:
        folder = Path(name)
        with serving(model, folder, places) as server:
            tally = asyncio.run(soak(server, num_clients, questions, long_tokens, minutes * 60))
        num_saved, lost = asyncio.run(kill(model, folder, places, kills))
    tally.wrong += lost
    table = Table(title=f"{minutes:g} minutes, {num_clients} clients, {places} places")
    table.add_column("what")
    table.add_column("how often", justify="right")
    for what, count in sorted(tally.counts.items()):
        table.add_row(what, f"{count:,}")
    console.print(table)
    sizes = [size for _, size in tally.memory]
    console.print(
        f"memory from {min(sizes) / 2**20:.0f} to {max(sizes) / 2**20:.0f} MiB, "
        f"{sizes[-1] / 2**20:.0f} at the end"
    )
    console.print(f"{num_saved} turns were saved around {kills} kills, {len(lost)} things wrong")
    for sentence in tally.wrong[:20]:
        console.print(f"wrong: {sentence}", style="red", markup=False)
    print_json(
        "soak",
        {
            "minutes": minutes,
            "clients": num_clients,
            "places": places,
            "counts": dict(tally.counts),
            "kills": kills,
            "saved_turns": num_saved,
            "wrong": tally.wrong,
            "memory": tally.memory,
        },
    )
    if tally.wrong:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
