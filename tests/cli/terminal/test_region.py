"""Keys in the region, typed into a pipe, and all that reaches the terminal."""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.data_structures import Size
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding.key_processor import KeyPress
from rich.segment import Segment

from fulmen.cli.terminal.completing import FileNames, TypedCompleter
from fulmen.cli.terminal.region import Region
from fulmen.cli.terminal.screen import MAX_PASTE, PasteParser, Screen, WholeOutput, bound_pastes
from fulmen.cli.terminal.state import Entry, Front, Option, Said, Shell, Slash

COMMANDS = {"rewind": "go back", "help": "list them"}


class Written(io.StringIO):
    """A terminal that counts how often it was written to."""

    def __init__(self) -> None:
        super().__init__()
        self.num_writes = 0

    def write(self, text: str, /) -> int:
        self.num_writes += 1
        return super().write(text)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"


def new_output(columns: int = 80) -> tuple[WholeOutput, Written]:
    """Return a terminal of 24 lines, and what it gets."""
    written = Written()
    size = Size(rows=24, columns=columns)
    return WholeOutput(written, lambda: size, term="xterm", enable_cpr=False), written


@dataclass
class Noting:
    """A person's wishes, noted."""

    noted: list[str] = field(default_factory=list)
    lines: list[list[Segment]] = field(default_factory=list)

    def interrupt(self) -> None:
        self.noted.append("interrupt")

    def sent(self) -> None:
        self.noted.append("sent")

    def next_mode(self) -> None:
        self.noted.append("mode")

    def bar(self) -> Sequence[str]:
        return ["ask", "step 1", "cache 90%"]

    def doing(self) -> tuple[str, float]:
        return "thinking", 3.0

    def live(self) -> Sequence[Sequence[Segment]]:
        return self.lines


@dataclass
class Desk:
    """A region that runs, with somebody at the keys."""

    front: Front
    person: Noting
    region: Region
    screen: Screen
    keys: PipeInput
    written: Written

    async def type(self, text: str, until: Callable[[], bool] = lambda: True) -> None:
        """Type, and wait until something is so."""
        self.keys.send_text(text)
        await asyncio.sleep(0.05)
        end = time.monotonic() + 30
        while not until():
            assert time.monotonic() < end, self.written.getvalue()[-2000:]
            await asyncio.sleep(0.02)


@asynccontextmanager
async def at_desk(folder: Path, columns: int = 80) -> AsyncIterator[Desk]:
    """Run a region."""
    front, person = Front(tuple(COMMANDS)), Noting()
    output, written = new_output(columns)
    screen = Screen(output)
    with create_pipe_input() as keys:
        bound_pastes(keys)  # type: ignore[arg-type]
        region = Region(
            *(front, person),
            keys=keys,
            output=output,
            completer=TypedCompleter(COMMANDS, FileNames(folder)),
            history=InMemoryHistory(),
        )
        screen.app = region.app
        running = asyncio.create_task(region.app.run_async(handle_sigint=False))
        desk = Desk(front, person, region, screen, keys, written)
        await desk.type("", lambda: region.app.is_running)
        try:
            yield desk
        finally:
            region.app.exit()
            await running


def queued(front: Front) -> list[Entry]:
    """Return what waits, which then does no more."""
    found = list(front.queue)
    front.queue.clear()
    return found


def test_what_is_typed_is_sent_in_one_or_more_lines(tmp_path: Path) -> None:
    async def main() -> list[Entry]:
        async with at_desk(tmp_path) as desk:
            found = []
            for keys in ("one\r", "two\\\rlines\r", "a\x1b\rb\nc\r", "!ls\r", "/rew 3\r"):
                await desk.type(keys, lambda: bool(desk.front.queue))
                found += queued(desk.front)
            await desk.type("\x1b[A\x1b[A\r", lambda: bool(desk.front.queue))
            return found + queued(desk.front)

    assert asyncio.run(main()) == [
        *(Said("one"), Said("two\nlines"), Said("a\nb\nc"), Shell("ls"), Slash("rewind", "3")),
        Shell("ls"),
    ]


def test_keys_interrupt_and_leave_and_change_the_mode(tmp_path: Path) -> None:
    async def main() -> None:
        async with at_desk(tmp_path) as desk:
            front, noted = desk.front, desk.person.noted
            front.is_working = True
            await desk.type("\x1b", lambda: noted == ["interrupt"])
            await desk.type("\x1b[Z", lambda: noted[1:] == ["mode"])
            await desk.type("\x04", lambda: "it works" in front.notice)
            await desk.type("first\r", lambda: bool(front.queue))
            assert noted[2:] == ["sent"]
            await desk.type("\x1b[A", lambda: desk.region.buffer.text == "first")
            assert not front.queue
            await desk.type("\x03", lambda: noted[3:] == ["interrupt"])
            front.is_working = False
            await asyncio.sleep(1.6)
            await desk.type("\x03", lambda: not desk.region.buffer.text)
            await asyncio.sleep(1.6)
            await desk.type("\x1b", lambda: "Esc again" in front.notice)
            await desk.type("\x1b", lambda: list(front.queue) == [Slash("rewind")])
            front.queue.clear()
            await desk.type("\x03", lambda: "Ctrl-C again" in front.notice)
            assert not front.is_leaving
            await desk.type("\x03", lambda: front.is_leaving)

    asyncio.run(main())


def test_a_question_takes_keys_once_it_can_be_read_and_the_draft_stays(tmp_path: Path) -> None:
    async def main() -> None:
        async with at_desk(tmp_path) as desk:
            front, buffer = desk.front, desk.region.buffer
            rows = [Option("yes", "y"), Option("no", "n"), Option("say", "t")]
            await desk.type("draft", lambda: buffer.text == "draft")
            asking = asyncio.create_task(front.choose("may it?", rows, is_sudden=True))
            await desk.type("y", lambda: buffer.text == "drafty")
            assert not asking.done()
            await asyncio.sleep(0.6)
            await desk.type("\x1b[200~y\x1b[201~", lambda: buffer.text == "draftyy")
            await asyncio.sleep(0.6)
            await desk.type("t", asking.done)
            assert await asking == ("enter", 2)
            saying = asyncio.create_task(desk.region.ask_text("instead > "))
            await desk.type("", lambda: not buffer.text)
            await desk.type("not this\r", saying.done)
            assert await saying == "not this"
            assert buffer.text == "draftyy"
            assert "may it?" in desk.written.getvalue()

    asyncio.run(main())


def has_text(buffer: Buffer, text: str) -> bool:
    """Return whether a line holds a text."""
    return buffer.text == text


def test_commands_and_files_are_completed(tmp_path: Path) -> None:
    (tmp_path / "src/deep").mkdir(parents=True)
    for name in ("src/deep/add.py", "read me.md", "bad\x1bname", ".hidden"):
        (tmp_path / name).touch()

    async def main() -> None:
        async with at_desk(tmp_path) as desk:
            buffer = desk.region.buffer
            for typed, completed in [
                ("/re", "/rewind"),
                ("see @add", "see @src/deep/add.py"),
                ("see @rea", 'see @"read me.md"'),
                ('see @"read', 'see @"read me.md"'),
            ]:
                await desk.type(typed, lambda: buffer.complete_state is not None)
                await desk.type("\t", partial(has_text, buffer, completed))
                buffer.reset()

    asyncio.run(main())
    names = FileNames(tmp_path).names()
    assert set(names) == {"src/", "src/deep/", "src/deep/add.py", "read me.md", ".hidden"}


def test_a_long_paste_is_one_word_in_the_line_and_whole_in_the_message(tmp_path: Path) -> None:
    pasted = "".join(f"line {number}\n" for number in range(50_000))

    async def main() -> tuple[str, list[Entry]]:
        async with at_desk(tmp_path) as desk:
            await desk.type("look: ", lambda: bool(desk.region.buffer.text))
            loop = asyncio.get_running_loop()
            text = f"\x1b[200~{pasted}\x1b[201~"
            sending = loop.run_in_executor(None, desk.keys.send_text, text)
            await desk.type("", lambda: "pasted" in desk.region.buffer.text)
            await sending
            shown = desk.region.buffer.text
            await desk.type(" end\r", lambda: bool(desk.front.queue))
            return shown, queued(desk.front)

    shown, (entry,) = asyncio.run(main())
    assert shown == "look: [pasted 1: 50,001 lines, 538,890 characters]"
    assert entry == Said(f"look: {pasted} end")


def keys_of(kind: type[Vt100Parser], text: str, size: int) -> list[KeyPress]:
    """Return the keys in a text that comes in pieces."""
    found: list[KeyPress] = []
    parser = kind(found.append)
    for at in range(0, len(text), size):
        parser.feed(text[at : at + size])
    return found


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_pastes_are_the_keys_that_they_were(size: int) -> None:
    text = "a\x1b[200~b\x1b[20\nc\x1b[201~\x1b[A\x1b[200~\x1b[201~d\x1b[200~e"
    assert keys_of(PasteParser, text, size) == keys_of(Vt100Parser, text, 1)


def test_a_huge_paste_is_cut_in_linear_time() -> None:
    begin = time.process_time()
    found = keys_of(PasteParser, "\x1b[200~" + "x" * (4 * MAX_PASTE) + "\x1b[201~\r", 1024)
    assert time.process_time() - begin < 5
    assert [len(one.data) for one in found] == [MAX_PASTE, 1]


@pytest.mark.parametrize("columns", [20, 80, 200])
def test_what_is_printed_and_the_region_below_it_come_in_one_write(
    tmp_path: Path, columns: int
) -> None:
    async def main() -> None:
        async with at_desk(tmp_path, columns) as desk:
            desk.person.lines = [[Segment("grows")]]
            desk.region.app.invalidate()
            await desk.type("typed", lambda: "grows" in desk.written.getvalue())
            await asyncio.sleep(0.2)
            before, place = desk.written.num_writes, len(desk.written.getvalue())
            desk.screen.console.print("finished")
            desk.screen.console.print("too")
            await desk.type("", lambda: "too" in desk.written.getvalue())
            text = desk.written.getvalue()[place:]
            assert desk.written.num_writes == before + 1
            assert text.startswith("\x1b[?2026h")
            assert text.endswith("\x1b[?2026l")
            printed = [text.index(one) for one in ("finished", "too", "grows", "typed", "ask")]
            assert printed == sorted(printed)

    asyncio.run(main())
