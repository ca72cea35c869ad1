"""Names of sessions: words of any script, which are names of files too.

A name is letters, digits and marks as Unicode has them, and between those dots, dashes and
underscores. So it can leave no folder, hides no file and moves no cursor. It is stored composed
(NFC): the same word typed on another keyboard is the same name.
"""

import unicodedata
from typing import Final

from fulmen.sampling import shown

MAX_NAME_BYTES: Final = 250
"""Bytes of a name in UTF-8: with .json or .lock after it, a file name has at most 255."""
_JOINERS: Final = "\u200c\u200d"
"""Zero-width joiner and non-joiner, letters of words in Persian and in scripts of India"""


def read_name(name: str) -> str:
    """Return a name as it is stored. Raises ValueError for one that no session can have."""
    composed = unicodedata.normalize("NFC", name[: MAX_NAME_BYTES * 4])
    if name and len(composed.encode(errors="replace")) > MAX_NAME_BYTES:
        raise ValueError(
            f"{shown(name)} cannot name a session, it must have at most {MAX_NAME_BYTES} bytes in "
            "UTF-8"
        )
    places = range(len(composed))
    if not composed or not all(_may_stand(composed, place) for place in places):
        raise ValueError(
            f"{shown(name)} cannot name a session, it must be letters and digits of any script, "
            "dots, dashes and underscores, a letter or digit first"
        )
    return composed


def is_name(text: str) -> bool:
    """Return whether a text is the stored name of a session."""
    try:
        return read_name(text) == text
    except ValueError:
        return False


def name_like(text: str) -> str:
    """Return a name that resembles a text which is none."""
    composed = unicodedata.normalize("NFC", text[:MAX_NAME_BYTES])
    marked = "".join(
        char if _kind(char) in "LNM" or char in "._-" else "-" for char in composed
    ).lstrip("._-")
    while marked and _kind(marked[0]) == "M":
        marked = marked[1:].lstrip("._-")
    short = marked.encode()[: MAX_NAME_BYTES - 20].decode(errors="ignore")
    return short or "session"


def _may_stand(name: str, place: int) -> bool:
    char = name[place]
    if place == 0:
        return _kind(char) in "LN"
    if char in _JOINERS:
        return _kind(name[place - 1]) in "LM"
    return _kind(char) in "LNM" or char in "._-"


def _kind(char: str) -> str:
    """Return the first letter of a character's category: L letter, N number, M mark."""
    return unicodedata.category(char)[0]
