"""A person who is asked: the event loop goes on until a line is typed, or a signal comes."""

import asyncio
import os
import pty
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from fulmen.cli.agent_asking import Interrupts


class Interrupted:
    """A run of which only interrupting it is of interest."""

    def __init__(self) -> None:
        self.count = 0

    def interrupt(self) -> None:
        self.count += 1


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make stdin a terminal; give the end at which somebody types."""
    end, terminal = pty.openpty()
    with os.fdopen(terminal) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        yield end
    os.close(end)


def test_the_event_loop_goes_on_while_nobody_types(keyboard: int) -> None:
    async def ask() -> tuple[bool, int]:
        loop, ticks = asyncio.get_running_loop(), 0
        loop.call_later(0.2, os.write, keyboard, b"yes\n")
        asking = asyncio.create_task(Interrupts().has_line())
        while not asking.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return await asking, ticks

    has_line, ticks = asyncio.run(ask())
    assert has_line
    assert ticks > 5


def test_a_signal_ends_a_question_and_the_next_one_leaves(keyboard: int) -> None:
    interrupts, work = Interrupts(), Interrupted()
    some: Any = work

    async def ask() -> bool:
        interrupts.loop = asyncio.get_running_loop()
        interrupts.loop.call_later(0.1, os.kill, os.getpid(), signal.SIGINT)
        has_line = await interrupts.has_line()
        assert work.count == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return has_line

    with interrupts.installed(), interrupts.interrupting(some):
        assert not asyncio.run(ask())
