"""Markdown as a terminal shows it, with nothing lost that the model wrote.

rich leaves out HTML, the addresses of links and the places of line breaks; here they stay, and so
do backslashes, with which models write formulas.
"""

import logging
from functools import cache
from itertools import pairwise
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

_logger = logging.getLogger(__name__)

_CODE_THEME: Final = "ansi_dark"
"""Colours of the terminal's own palette, on its own background"""
_LOSSY: Final = ("html_block", "html_inline", "reference", "image", "escape")
"""Rules whose text rich would not show as it was written"""


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt().enable(["strikethrough", "table"]).disable(list(_LOSSY))


class _Lossless(Markdown):
    """Markdown whose every character is shown."""

    def __init__(self, text: str) -> None:
        super().__init__("", code_theme=_CODE_THEME, hyperlinks=False)
        self.markup = text
        self.parsed = _parser().parse(text)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


def render(text: str, console: Console) -> list[list[Segment]]:
    """Return a block as lines for a terminal, without empty ones at its ends; text as it is where
    it cannot be rendered."""
    options = console.options.update(height=None)
    try:
        lines = console.render_lines(_Lossless(text), options, pad=False)
    except Exception:  # an answer is worth more than its looks
        _logger.debug("a block of Markdown is shown as text", exc_info=True)
        lines = console.render_lines(Text(text), options, pad=False)
    while lines and not _shows_something(lines[0]):
        del lines[0]
    while lines and not _shows_something(lines[-1]):
        del lines[-1]
    return lines


def _shows_something(line: list[Segment]) -> bool:
    return any(segment.text.strip() for segment in line)


def split_blocks(text: str) -> tuple[list[str], str]:
    """Split Markdown into blocks that are finished, and the last one, which may still grow."""
    starts = [token.map[0] for token in _parser().parse(text) if _is_block(token) and token.map]
    if len(starts) < 2:
        return [], text
    lines = text.split("\n")
    finished = ["\n".join(lines[start:end]) for start, end in pairwise(starts)]
    return finished, "\n".join(lines[starts[-1] :])


def _is_block(token: Token) -> bool:
    return token.level == 0 and token.nesting >= 0
