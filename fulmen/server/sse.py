"""Frames of a stream: server-sent events."""

import json
from collections.abc import Mapping
from typing import Any, Final

DONE: Final = b"data: [DONE]\n\n"


def frame(data: Mapping[str, Any], *, event: str | None = None) -> bytes:
    """Return one event; its data is one line of JSON."""
    name = "" if event is None else f"event: {event}\n"
    return b"%sdata: %s\n\n" % (name.encode(), to_json(data))


def comment(text: str) -> bytes:
    """Return a line that clients skip: it keeps the connection alive."""
    return f": {text}\n\n".encode()


def to_json(value: object) -> bytes:
    """Return a value as JSON in UTF-8; half a surrogate pair stays an escape."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
