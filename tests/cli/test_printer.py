"""Markdown on a terminal: every word once, in order, whatever its size and its shape."""

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fulmen.cli.markdown import render, split_blocks
from fulmen.cli.printer import MarkdownPrinter, PlainPrinter
from tests.examples import examples

MARKDOWN = """\
# Title

A paragraph with **bold** text, `code` and a [link](https://example.org/page).
Its second line has <b>html</b> and a formula \\( x^2 \\).

1. one
2. two
   - nested

```python
def f(x):
    return x  # comment
```

| left | right |
|------|-------|
| a    | b     |

<div>
raw
</div>

[ref]: https://example.org/ref
![picture](https://example.org/p.png)

> quoted

The end.
"""


def screen(written: str, width: int, height: int) -> list[str]:
    """Return the lines that a terminal shows after some output, those that scrolled away too."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part == "\x1b[2K":
            lines[row] = ""
        elif found := re.fullmatch(r"\x1b\[(\d*)A", part):
            row -= int(found[1] or 1)
            assert row >= len(lines) - height, "the cursor goes above the screen"
        elif part[0] != "\x1b":
            assert column + len(part) <= width
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]


def printed(text: str, *, pieces: int = 3, width: int = 60, height: int = 12) -> list[str]:
    """Return what a terminal shows of a text that comes in pieces, each of them drawn."""
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=True, width=width, height=height, color_system=None
    )
    printer = MarkdownPrinter(console)
    for start in range(0, len(text), pieces):
        printer._next_drawing = 0.0
        printer.write(text[start : start + pieces])
    printer.close()
    return screen(stream.getvalue(), width, height)


def test_markdown_is_rendered_and_nothing_of_it_is_lost() -> None:
    text = "\n".join(printed(MARKDOWN))
    for shown in (
        "A paragraph with bold text, code and a link",
        "(https://example.org/page)",
        "<b>html</b> and a formula \\( x^2 \\).",
        " 2 two",
        "    • nested",
        "     return x  # comment",
        " a     b",
        "<div>\nraw\n</div>",
        "[ref]: https://example.org/ref",
        "https://example.org/p.png",
        "▌ quoted",
    ):
        assert text.count(shown) == 1, (shown, text)
    assert "**" not in text
    assert "\n\n\n" not in text


@pytest.mark.parametrize("height", [3, 12, 50])
@pytest.mark.parametrize("pieces", [1, 7, 10_000])
def test_a_long_answer_is_on_the_screen_once(pieces: int, height: int) -> None:
    items = [f"- item{number}." for number in range(40)]
    text = "Before.\n\n" + "\n".join(items) + "\n\nAfter.\n"
    lines = printed(text, pieces=pieces, height=height)
    assert [line for line in lines if line] == [
        "Before.",
        *(f" • item{number}." for number in range(40)),
        "After.",
    ]


FRAGMENTS = st.sampled_from(
    [
        *("word ", "\n", "\n\n", "- ", "1. ", "# ", "```\n", "`", "**", "*", "> ", "| a | b |\n"),
        *(
            "|---|---|\n",
            "---\n",
            "    ",
            "[x](y)",
            "<br>",
            "\\",
            "\t",
            "&lt;",
            "😀",
            "~~",
            "===\n",
        ),
    ]
)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(FRAGMENTS, max_size=30).map("".join), st.integers(1, 9))
def test_pieces_show_what_the_whole_shows(text: str, pieces: int) -> None:
    finished, growing = split_blocks(text)
    shown = [line for block in [*finished, growing] for line in plain(block)]
    assert [line for line in printed(text, pieces=10_000) if line] == shown
    words = "".join(printed(text, pieces=pieces)).count("word")
    assert words == text.count("word")


def plain(block: str) -> list[str]:
    console = Console(
        file=io.StringIO(), force_terminal=True, width=60, height=12, color_system=None
    )
    lines = ["".join(segment.text for segment in line).rstrip() for line in render(block, console)]
    return [line for line in lines if line]


def test_a_stranger_cannot_move_the_cursor() -> None:
    text = "\n".join(printed("before \x1b[2J\x1b]0;title\x07 after\r\nnext"))
    assert "before \\x1b[2J\\x1b]0;title\\x07 after" in text


def test_plain_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    printer = PlainPrinter()
    for piece in ("**a", "**\n", "\x1b[1m"):
        printer.write(piece)
    printer.close()
    assert capsys.readouterr().out == "**a**\n\x1b[1m\n"
