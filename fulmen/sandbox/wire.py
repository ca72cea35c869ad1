"""Messages between the host and the supervisor: a JSON object and some bytes, each with its length.

This file is read on both sides, also inside the sandbox, so it needs nothing but the standard
library. A length is checked before anything of that length is kept.
"""

import json
import struct
from typing import Final

MAX_HEADER_BYTES: Final = 64 * 2**10
MAX_BODY_BYTES: Final = 8 * 2**20
"""Longest bytes in a message, thus also the largest file that is read or written at once"""

_LENGTHS: Final = struct.Struct(">II")


def pack(header: dict[str, object], body: bytes = b"") -> bytes:
    """Return a message as bytes."""
    text = json.dumps(header).encode()
    if len(text) > MAX_HEADER_BYTES or len(body) > MAX_BODY_BYTES:
        raise ValueError(f"a message of {len(text):,} and {len(body):,} bytes is too long")
    return _LENGTHS.pack(len(text), len(body)) + text + body


class Unpacker:
    """Cut a stream of bytes into messages; it never holds more than one of the longest."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, piece: bytes) -> list[tuple[bytes, bytes]]:
        """Return the messages that a piece of the stream completes, each as its header's text and
        its bytes. Raises ValueError where a length is above the limits."""
        self._held += piece
        messages = []
        while len(self._held) >= _LENGTHS.size:
            header_bytes, body_bytes = _LENGTHS.unpack_from(self._held)
            if header_bytes > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
                raise ValueError("a message is longer than any may be")
            begin = _LENGTHS.size + header_bytes
            end = begin + body_bytes
            if len(self._held) < end:
                break
            messages.append(
                (bytes(self._held[_LENGTHS.size : begin]), bytes(self._held[begin:end]))
            )
            del self._held[:end]
        return messages
