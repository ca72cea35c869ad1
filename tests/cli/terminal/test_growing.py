"""Text that comes in pieces: nothing is lost, and what grows stays short."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.cli.markdown import split_blocks
from fulmen.cli.terminal.growing import Growing, GrowingLines, GrowingMarkdown

MARKS = ["\n", "\n\n", "- ", "1. ", "# ", "`x`", "**", "| a | b |\n| - | - |\n", "> ", "a", "b c"]
TEXTS = st.lists(st.sampled_from(MARKS), max_size=60).map("".join)


def blocks(growing: Growing, pieces: list[str]) -> list[tuple[str, bool]]:
    """Return all blocks of a text that comes in pieces."""
    found = []
    for piece in pieces:
        growing.write(piece)
        found += growing.take()
    return [*found, *growing.close()]


def cut(text: str, places: list[int]) -> list[str]:
    """Return a text in pieces."""
    ends = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[first:last] for first, last in pairwise(ends)]


@given(TEXTS, st.lists(st.integers(0, 10**6), max_size=20))
def test_markdown_in_pieces_is_the_same_markdown(text: str, places: list[int]) -> None:
    found = blocks(GrowingMarkdown(), cut(text, places))
    together = "".join(block for block, _ in found)
    assert "".join(together.split()) == "".join(text.split())
    assert all(is_begin for _, is_begin in found)


@given(TEXTS, st.lists(st.integers(0, 10**6), max_size=20))
def test_lines_in_pieces_are_the_same_lines(text: str, places: list[int]) -> None:
    found = blocks(GrowingLines(), cut(text, places))
    assert "\n".join(block for block, _ in found) == text.lstrip("\n").rstrip("\n") or (
        not text.strip()
    )
    assert [is_begin for _, is_begin in found] == [place == 0 for place in range(len(found))]


@pytest.mark.parametrize("kind", [GrowingMarkdown, GrowingLines])
@pytest.mark.parametrize("unit", ["word ", "x", "line\n", "- item\n", "# head\n\n"])
def test_much_text_is_taken_in_linear_time(kind: type[Growing], unit: str) -> None:
    text = unit * (2**17 // len(unit))
    growing, longest, begin = kind(), 0, time.process_time()
    growing.write(text)
    count = 0
    for _ in range(2**17 // 64_000 + 1):  # a burst, of which a part is looked at each time
        count += sum(len("".join(block.split())) for block, _ in growing.take())
        longest = max(longest, len(growing.rest[0]))
    count += sum(len("".join(block.split())) for block, _ in growing.close())
    assert time.process_time() - begin < 10
    assert longest <= 6_000
    assert count == len("".join(text.split()))


def test_code_that_is_long_stays_code_in_every_part() -> None:
    code = "".join(f"value_{number} = {number}\n" for number in range(2000))
    found = blocks(
        GrowingMarkdown(), cut(f"Before.\n\n```python\n{code}```\n\nAfter.", [5000, 9000])
    )
    assert found[0][0].strip() == "Before."
    assert found[-1][0].strip() == "After."
    parts = [block for block, _ in found[1:-1]]
    assert len(parts) > 5
    for part in parts:
        assert part.startswith("```python\n")
        assert part.rstrip().endswith("\n```")
        assert split_blocks(part) == ([], part)
    lines = [line for part in parts for line in part.split("\n") if not line.startswith("```")]
    assert [line for line in lines if line] == code.splitlines()
    assert [is_begin for _, is_begin in found[:3]] == [True, True, False]


def test_control_characters_are_written_out() -> None:
    growing = GrowingMarkdown()
    growing.write("a\x1b[31mb\x07")
    assert growing.close() == [("a\\x1b[31mb\\x07", True)]
