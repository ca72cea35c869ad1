"""API keys: who asks, told without telling anyone a key.

A caller sends its key as `Authorization: Bearer KEY` or as `x-api-key: KEY`. All that is kept of
it after that is its scope, which histories and answers are bound to, and its name, which stands in
the log and in metrics.
"""

import hashlib
import hmac
import logging
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fulmen.sampling import check_whole, shown
from fulmen.server.errors import Refusal

MIN_KEY_LENGTH: Final = 8
"""Fewest characters of a key in a file; a shorter one is soon guessed"""
_MAX_FILE_BYTES: Final = 2**20
_SCOPE_LENGTH: Final = 32
_SHORT_SCOPE: Final = 8
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_MAX_LIMIT: Final = 10**12
_ANYONE: Final = "anyone"
"""Name of all callers where no key is needed"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """A key with a name, and limits of its own."""

    name: str
    """Name in the log and in metrics: letters, digits and . _ @ -"""
    key: str = field(repr=False)
    max_running: int | None = None
    """Most answers that run or wait at once; None sets no limit."""
    requests_per_minute: int | None = None
    """Most requests for answers that begin within a minute; None sets no limit."""
    tokens_per_minute: int | None = None
    """Tokens within a minute, prompt tokens that no cache had and new ones, after which no further
    request begins; None sets no limit."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or _NAME.fullmatch(self.name) is None:
            raise ValueError(
                f"name is {shown(self.name)}, it must have 1 to 64 letters, digits and . _ @ -"
            )
        check_key(self.key, f"the key of {self.name}")
        if len(self.key) < MIN_KEY_LENGTH:
            raise ValueError(
                f"the key of {self.name} has {len(self.key)} characters, it must have "
                f"{MIN_KEY_LENGTH} or more"
            )
        for name in ("max_running", "requests_per_minute", "tokens_per_minute"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1, _MAX_LIMIT)


class Keys:
    """The keys that callers may use."""

    def __init__(self, keys: Sequence[str], named: Sequence[ApiKey] = ()) -> None:
        """
        keys   keys without names or limits; one goes by the beginning of its scope
        named  keys with names
        """
        for place, key in enumerate(keys, 1):
            check_key(key, f"API key {place}")
        self._digests = [_digest(key.encode()) for key in (*keys, *(each.key for each in named))]
        self._scopes = [digest.hex()[:_SCOPE_LENGTH] for digest in self._digests]
        self._named = dict(zip(self._scopes[len(keys) :], named, strict=True))
        if len({*self._digests}) < len({*keys}) + len(named):
            raise ValueError("one API key is given twice, each name needs a key of its own")
        if len({each.name for each in named}) < len(named):
            names = [each.name for each in named]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two API keys have the name {twice}, each needs its own")

    @property
    def scopes(self) -> Sequence[str]:
        """Scopes of all callers; the one empty scope where no key is needed."""
        return list(dict.fromkeys(self._scopes)) or [""]

    def limits_of(self, scope: str) -> ApiKey | None:
        """Return the named key of a scope, with its limits; None for a key without a name."""
        return self._named.get(scope)

    def name_of(self, scope: str) -> str:
        """Return the name of a scope's key, for the log and metrics."""
        named = self._named.get(scope)
        return named.name if named is not None else scope[:_SHORT_SCOPE] or _ANYONE

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
