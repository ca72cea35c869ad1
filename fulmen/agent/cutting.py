"""Texts made shorter where a context has no room for them: the middle goes, and says so."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from fulmen.chat import Message

_LEAST: Final = 200
"""Characters of what somebody said that stay, however much was said"""


def cut_text(text: str, limit: int) -> str:
    """Return a text of about at most so many characters, its middle left out if it is longer."""
    if len(text) <= limit:
        return text
    half = max(limit // 2, 1)
    return f"{text[:half]}\n({len(text) - 2 * half:,} characters left out)\n{text[-half:]}"


def cut_said(messages: Sequence[Message], limit: int | None) -> list[Message]:
    """Return what people said in about at most so many characters: the longest are cut first, all
    to one length. None: as it is."""
    if limit is None:
        return list(messages)
    most = max(_length_that_fits([len(one.content) for one in messages], limit), _LEAST)
    return [_cut(one, most) for one in messages]


def cut_results(messages: Sequence[Message], limit: int) -> list[Message]:
    """Return messages of which each result has about at most so many characters."""
    return [_cut(one, limit) if one.role == "tool" else one for one in messages]


def _cut(message: Message, limit: int) -> Message:
    if len(message.content) <= limit:
        return message
    return replace(message, content=cut_text(message.content, limit), parts=None)


def _length_that_fits(lengths: Sequence[int], limit: int) -> int:
    """Return the greatest length to which all may be cut so that together they keep a limit."""
    room = limit
    for place, length in enumerate(sorted(lengths)):
        share = room // (len(lengths) - place)
        if length > share:
            return share
        room -= length
    return max(lengths, default=0)
