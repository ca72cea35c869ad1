"""The terminal without a terminal: what is sent, waits, is asked and chosen."""

import asyncio

import pytest

from fulmen.cli.terminal.state import (
    MAX_TEXT,
    MAX_WAITING,
    QUIET_SECONDS,
    Front,
    Option,
    Said,
    Shell,
    Slash,
    read_entry,
)

COMMANDS = ("rewind", "help", "mode")


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("make it pass", Said("make it pass")),
        ("//etc is full", Said("/etc is full")),
        ("/rewind 3", Slash("rewind", "3")),
        ("/re", Slash("rewind")),
        ("! ls -l", Shell("ls -l")),
        ("!", Said("!")),
    ],
)
def test_a_text_is_words_or_a_command(text: str, entry: object) -> None:
    assert read_entry(text, COMMANDS) == entry


def test_a_mistake_is_told_and_the_text_stays() -> None:
    front = Front((*COMMANDS, "model"))
    for text, sentence in [
        ("/nothing", "/nothing is no command"),
        ("/mo", "/mo begins /mode, /model"),
        ("x" * (MAX_TEXT + 1), "a message has at most 4,194,304 characters"),
    ]:
        assert not front.submit(text)
        assert sentence in front.notice
    assert not front.submit("  ")
    for number in range(MAX_WAITING):
        assert front.submit(f"{number}")
    assert not front.submit("one more")
    assert "100 messages wait already" in front.notice


def test_words_that_wait_together_are_one_message() -> None:
    async def taken() -> list[object]:
        front, found = Front(COMMANDS), []
        for text in ("one", "two", "!ls", "three", "/help"):
            front.submit(text)
        while front.queue:
            found.append(await front.next())
        front.leave()
        return [*found, await front.next()]

    assert asyncio.run(taken()) == [
        Said("one\n\ntwo"),
        Shell("ls"),
        Said("three"),
        Slash("help"),
        None,
    ]


def test_what_waits_can_be_taken_back_to_be_changed() -> None:
    front = Front(COMMANDS)
    texts = ["one", "//two", "!ls", "/rewind 2"]
    for text in texts:
        front.submit(text)
    assert [front.take_back() for _ in range(5)] == [*reversed(texts), None]


def test_an_empty_line_goes_on_only_where_the_work_was_ended() -> None:
    front = Front(COMMANDS)
    assert not front.submit("")
    front.can_go_on = True
    assert front.submit("")
    front.queue.clear()
    front.is_working = True
    assert not front.submit("")


def test_keys_before_a_question_was_seen_do_not_answer_it() -> None:
    now = 100.0
    front = Front(COMMANDS, clock=lambda: now)

    async def asked() -> tuple[str, int]:
        nonlocal now
        front.key_pressed()
        asking = asyncio.create_task(
            front.choose("may it?", [Option("yes", "y"), Option("no", "n")], is_sudden=True)
        )
        await asyncio.sleep(0)
        assert front.choice is not None
        for _ in range(20):  # somebody writes on, faster than they can have read it
            now += QUIET_SECONDS / 2
            front.key_pressed()
            assert not front.takes_choice
        now += QUIET_SECONDS
        front.key_pressed()
        assert front.takes_choice
        assert not front.choice.press("x")
        assert front.choice.press("n")
        return await asking

    assert asyncio.run(asked()) == ("enter", 1)
    assert front.choice is None


def test_a_list_is_walked_and_a_row_chosen_for_something_else() -> None:
    async def chosen() -> tuple[str, int]:
        front = Front(COMMANDS)
        rows = [Option(str(number)) for number in range(5)]
        asking = asyncio.create_task(
            front.choose("go to", rows, index=4, actions={"f": "forks from there"})
        )
        await asyncio.sleep(0)
        assert front.choice is not None
        for by in (1, -100, 1, 1):
            front.choice.move(by)
        front.choice.press("f")
        front.choice.press("enter")  # it is decided
        return await asking

    assert asyncio.run(chosen()) == ("f", 2)


def test_one_question_is_shown_at_a_time() -> None:
    async def chosen() -> list[tuple[str, int]]:
        front = Front(COMMANDS)
        rows = [Option("yes", "y"), Option("no", "n")]
        asking = [asyncio.create_task(front.choose(str(number), rows)) for number in range(3)]
        for number in range(3):
            while front.choice is None or front.choice.title != str(number):
                await asyncio.sleep(0)
            front.choice.press("yn"[number % 2])
        return [await one for one in asking]

    assert asyncio.run(chosen()) == [("enter", 0), ("enter", 1), ("enter", 0)]
