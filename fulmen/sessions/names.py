"""Names of sessions: words of any script, which are names of files too.

A name is letters, digits and marks as Unicode has them, and between those dots, dashes and
underscores. Persian and the scripts of India join and part letters by characters without a width,
which are in a name where spelling has them. So it can leave no folder, hides no file and moves no
cursor. It is stored composed (NFC): the same word typed on another keyboard is the same name.
"""

import unicodedata
from typing import Final

from fulmen.files import joins_letters
from fulmen.sampling import shown

MAX_NAME_BYTES: Final = 250
"""Bytes of a name in UTF-8: with .json or .lock after it, a file name has at most 255."""


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


def quoted(name: str) -> str:
    """Return a name in quotes as a sentence shows it; what is none, with its escapes."""
    try:
        return f"'{read_name(name)}'"
    except ValueError:
        return shown(name)


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
    return _kind(char) in "LNM" or char in "._-" or joins_letters(name, place)


def _kind(char: str) -> str:
    """Return the first letter of a character's category: L letter, N number, M mark."""
    return unicodedata.category(char)[0]
