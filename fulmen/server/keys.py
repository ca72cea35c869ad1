"""API keys: who asks, told without telling anyone a key.

A caller sends its key as `Authorization: Bearer KEY` or as `x-api-key: KEY`. All that is kept of
it after that is its scope, which the log, histories and answers are bound to.
"""

import hashlib
import hmac
import logging
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from fulmen.server.errors import Refusal

MIN_KEY_LENGTH: Final = 8
"""Fewest characters of a key in a file; a shorter one is soon guessed"""
_MAX_FILE_BYTES: Final = 2**20
_SCOPE_LENGTH: Final = 32

_log = logging.getLogger(__name__)


class Keys:
    """The keys that callers may use."""

    def __init__(self, keys: Sequence[str]) -> None:
        for place, key in enumerate(keys, 1):
            check_key(key, f"API key {place}")
        self._digests = [_digest(key.encode()) for key in keys]
        self._scopes = [digest.hex()[:_SCOPE_LENGTH] for digest in self._digests]

    def __bool__(self) -> bool:
        """Return whether a key is needed."""
        return bool(self._digests)

    def scope_of(self, headers: Mapping[str, str]) -> str:
        """Return the scope of a request's key: the same at each start, and different for each key.
        It is empty where no key is needed.

        headers  the request's, by their names in lower case

        Raises a Refusal (401) for a missing or wrong key. Every key is compared in full whatever
        was sent, so that the time tells nothing.
        """
        if not self._digests:
            return ""
        sent = _sent_keys(headers)
        scope = None
        for key in sent:
            digest = _digest(key)
            for known, its_scope in zip(self._digests, self._scopes, strict=True):
                if hmac.compare_digest(digest, known):
                    scope = its_scope
        if scope is not None:
            return scope
        if not sent:
            raise Refusal(
                401,
                "no API key was sent, one is needed: Authorization: Bearer KEY, or x-api-key: KEY",
                code="invalid_api_key",
            )
        raise Refusal(401, "the API key that was sent is not known here", code="invalid_api_key")


def _sent_keys(headers: Mapping[str, str]) -> list[bytes]:
    """Return the keys that a request has; clients send one, or the same in both headers."""
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    sent = [token.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "")]
    return [key.strip().encode(errors="replace") for key in sent if key.strip()]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def check_key(key: str, where: str) -> None:
    """Raise for a key that no header can carry."""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"{where} has a character that a header cannot carry, it must be printable ASCII "
            "without blanks"
        )


def read_key_file(path: Path) -> tuple[str, ...]:
    """Read a file with one API key a line; blank lines and those that begin with # say nothing.

    Raises ValueError, which never shows a key, for a file without keys and a key of fewer than 8
    characters. A file that others may read is warned of.
    """
    with path.open("rb") as file:
        mode = path.stat().st_mode
        text = file.read(_MAX_FILE_BYTES + 1)
    if len(text) > _MAX_FILE_BYTES:
        raise ValueError(f"{path} has more than {_MAX_FILE_BYTES:,} bytes, it is no file of keys")
    try:
        lines = text.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8, it must hold one API key a line") from None
    keys = []
    for number, line in enumerate(lines, 1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        where = f"{path}, line {number}: the API key"
        check_key(key, where)
        if len(key) < MIN_KEY_LENGTH:
            raise ValueError(
                f"{where} has {len(key)} characters, it must have {MIN_KEY_LENGTH} or more"
            )
        keys.append(key)
    if not keys:
        raise ValueError(f"{path} holds no API key, it must hold one a line")
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        _log.warning("%s holds API keys and others may read it, `chmod 600` keeps them out", path)
    return tuple(keys)
