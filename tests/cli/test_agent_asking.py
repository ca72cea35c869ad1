"""A person who is asked: the event loop goes on until a line is typed, or a signal comes."""

import asyncio
import os
import pty
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fulmen.agent import Part, Verdict
from fulmen.chat import ToolCall
from fulmen.cli.agent_asking import Asker, Interrupts, question
from fulmen.cli.agent_view import TerminalView


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


def test_what_was_typed_before_a_question_is_no_answer_to_it(keyboard: int) -> None:
    view = TerminalView(is_answer_last=False, show_thinking=False)
    verdict = Verdict("ask", (Part("rm -rf x", "no rule allows it"),))

    async def ask() -> str | None:
        os.write(keyboard, b"y\n" * 3)
        await asyncio.sleep(0.1)  # the terminal has it
        asyncio.get_running_loop().call_later(0.3, os.write, keyboard, b"not this\n")
        call = ToolCall("bash", {"command": "rm -rf x"})
        return await Asker(view, Interrupts(), asks=True)(call, verdict, "rm -rf x")

    answer = asyncio.run(asyncio.wait_for(ask(), 10))
    assert answer == "the user did not allow this, and says: not this"


def test_nor_to_a_question_about_settings(keyboard: int) -> None:
    os.write(keyboard, b"y\n")
    time.sleep(0.1)
    timer = threading.Timer(0.3, os.write, [keyboard, b"n\n"])
    timer.start()
    assert question("let them hold? ") == "n"
    timer.join()


def test_a_terminal_that_is_closed_ends_the_work_and_the_process_in_good_order() -> None:
    interrupts, work = Interrupts(), Interrupted()
    some: Any = work

    async def wait() -> None:
        interrupts.loop = asyncio.get_running_loop()
        signal.raise_signal(signal.SIGHUP)
        while not work.count:
            await asyncio.sleep(0.01)

    with interrupts.installed():
        with interrupts.interrupting(some):
            asyncio.run(asyncio.wait_for(wait(), 10))
        assert interrupts.exit_code == 129
        with pytest.raises(SystemExit) as end:
            signal.raise_signal(signal.SIGHUP)
        assert end.value.code == 129
        interrupts.is_closing = True  # a shell and the kernel may both send it
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)


def test_nohup_holds() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts().installed():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_at_the_end_of_an_answer_does_not_meet_the_next_one() -> None:
    interrupts, work = Interrupts(), Interrupted()
    some: Any = work

    async def end() -> None:
        interrupts.loop = asyncio.get_running_loop()
        signal.raise_signal(signal.SIGINT)
        interrupts.ended()

    async def begin() -> None:
        await asyncio.sleep(0.05)

    with interrupts.installed():
        with interrupts.interrupting(some):
            asyncio.run(end())
        with interrupts.interrupting(some):
            asyncio.run(begin())
    assert work.count == 0
