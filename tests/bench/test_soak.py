"""The soak test's own clients: they read slowly when they say so, and know an answer that broke
off."""

import asyncio
import json
import random
import time
from contextlib import suppress
from types import ModuleType

import pytest

from tests.bench.test_scripts import script

BODY = b'{"choices": [{"message": {"role": "assistant", "content": "Yes."}}]}'
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"".join(
    b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:20], BODY[20:], b"")
)


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("soak", monkeypatch)


@pytest.mark.parametrize("whole", [WHOLE, CHUNKED], ids=["length", "chunked"])
def test_an_answer_is_whole_or_broke_off_wherever_it_is_cut(whole: bytes, soak: ModuleType) -> None:
    assert soak.parse(whole) == (200, BODY)
    for end in range(len(whole)):
        with suppress(soak.BrokenOff):
            assert soak.parse(whole[:end]) == (200, BODY)


def test_a_conversation_outlives_a_server_that_dies_in_mid_answer(soak: ModuleType) -> None:
    async def main() -> int:
        asked = 0

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            asked += 1
            await reader.readuntil(b"\r\n\r\n")
            writer.write(WHOLE[:-10] if asked == 3 else WHOLE)  # an answer, its saving, a death
            writer.close()

        async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
            talking = soak.Conversation("a", random.Random(0))
            await asyncio.wait_for(talking.talk(server.sockets[0].getsockname()[1]), 10)
        return int(talking.num_saved)

    assert asyncio.run(main()) == 2


def test_a_server_waits_for_a_slow_reader_who_still_reads_all(
    soak: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "CRAWL_SECONDS", 1.5)
    event = {"choices": [{"delta": {"content": "x" * 1000}, "finish_reason": "length"}]}
    line = b"data: %s\n\n" % json.dumps(event).encode()
    num_events, waited = 400, list[float]()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        start = time.monotonic()
        for _ in range(num_events):
            writer.write(line)
            await writer.drain()
        waited.append(time.monotonic() - start)
        writer.close()

    async def main() -> list[str]:
        questions = soak.make_long_questions(5, random.Random(0))
        said = {"thinking": "", "text": "x" * 1000 * num_events, "reason": "length"}
        async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            clients = soak.Clients(port, questions, [said] * 2, len(questions))
            await clients.crawl(random.Random(0))
        assert clients.tally.counts["read slowly"] == 1
        return list(clients.tally.wrong)

    assert asyncio.run(main()) == []
    assert waited[0] > 1


def test_a_server_that_says_nothing_ends_the_exchange(
    soak: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "ANSWER_SECONDS", 0.05)

    async def main() -> str:
        is_over = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()
            is_over.set()

        async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
            with pytest.raises(TimeoutError) as error:
                await soak.exchange(server.sockets[0].getsockname()[1], b"GET / HTTP/1.1\r\n\r\n")
            await is_over.wait()
        return str(error.value)

    assert asyncio.run(main()) == "no answer within 0.05 s"
