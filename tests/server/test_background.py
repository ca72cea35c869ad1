"""The events of a response that runs in the background: every reader gets all of them."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.server.background import EventLog


@settings(deadline=500)  # less than a reader waits before it looks again
@given(
    steps=st.lists(st.sampled_from(["add", "read", "read"]), max_size=30),
    after=st.integers(-1, 3),
)
def test_a_reader_that_is_slow_gets_all_events_in_order(steps: list[str], after: int) -> None:
    async def run() -> None:
        log = EventLog()
        reader = log.read(after, ping_seconds=60)
        added, read = 0, b""
        for step in steps:
            if step == "add":
                log.add([b"%d " % added])
                added += 1
            elif added > after + 1 + len(read.split()):
                read += await anext(reader)
        log.end()
        async for part in reader:
            read += part
        assert read.split() == [b"%d" % number for number in range(after + 1, added)]

    asyncio.run(run())


def test_events_that_come_while_a_reader_takes_others_are_not_lost() -> None:
    async def run() -> bytes:
        log = EventLog()
        log.add([b"a"])
        reader = log.read(-1, ping_seconds=60)
        read = await anext(reader)
        log.add([b"b"])  # the reader has not come back for more yet
        log.end()
        async for part in reader:
            read += part
        return read

    assert asyncio.run(run()) == b"ab"


def test_a_reader_is_told_how_far_the_answer_is() -> None:
    async def run() -> bytes:
        signs = ["ping 1/9 prompt tokens"]
        log = EventLog(lambda: signs[-1])
        reader = log.read(-1, ping_seconds=60)
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        signs.append("ping 9/9 prompt tokens")
        return await waiting

    assert asyncio.run(run()) == b": ping 9/9 prompt tokens\n\n"
