"""Settings of a server: where it listens, who may ask, how much, and what it keeps."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from fulmen.chat import VOLATILE_LINES
from fulmen.sampling import check_whole, shown
from fulmen.server.keys import ApiKey, Keys


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Settings of one server."""

    host: str = "127.0.0.1"
    """Address to listen on. Any other than this machine's own needs an API key."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    api_keys: tuple[str, ...] = ()
    """Key that callers may send, as a Bearer token or as x-api-key. Without any, all may ask."""
    keys: tuple[ApiKey, ...] = ()
    """More keys, each with a name and limits."""
    model_name: str = "fulmen"
    """Name that the model is listed under."""
    aliases: tuple[str, ...] = ()
    """Another name that the model is listed under; of several models the first, or the one that
    NAME=MODEL names."""
    strict_model_names: bool = False
    """Refuse requests for models of other names; otherwise the model, of several the first, answers
    to any name."""
    max_body_bytes: int = 32 * 2**20
    """Most bytes of a request's body, decompressed."""
    max_queued: int = 64
    """Most answers that may wait for their turn, for each model; more requests are refused with
    429."""
    max_answers: int = 16
    """Most answers to one request, its n."""
    read_timeout_seconds: float = 30.0
    """Seconds in which a request's head must arrive, and then its body."""
    request_timeout_seconds: float = 3600.0
    """Seconds after which a request is ended, whatever it has come to."""
    drain_seconds: float = 60.0
    """Seconds that running answers get to finish when the server is asked to stop."""
    ping_seconds: float = 5.0
    """Seconds of silence after which a stream sends a ping."""
    keep_thoughts: bool = False
    """Show the model the thoughts of its earlier answers too, unless a request says otherwise."""
    answer_share: float = 0.25
    """Share of an answer's most tokens that is kept for what follows its thought, where a request
    does not limit the thought: so no answer is a thought alone."""
    lenient_history: bool = False
    """Repair histories with missing results or broken arguments, where the meaning is clear."""
    drop_images: bool = False
    """Put a placeholder where a request has a picture, a sound or a file; otherwise refuse it."""
    transcripts: Path | None = None
    """File that keeps answers, so that histories are recognized after a restart; in memory without
    one."""
    transcript_bytes: int = 2**30
    """Disk for kept answers; beyond it those not used for longest are deleted."""
    transcript_days: float = 30.0
    """Days after which an answer that no history used is deleted."""
    sessions: Path | None = None
    """Folder that keeps the conversations that requests name, with the model's states; none can be
    named without one."""
    session_bytes: int = 20 * 2**30
    """Disk for the states of kept sessions, for each API key; beyond it those of the sessions not
    used for longest are deleted, and read again when they are needed."""
    max_sessions: int = 10_000
    """Most sessions that each API key may keep."""
    volatile_lines: tuple[str, ...] = VOLATILE_LINES
    """Regular expression of lines to leave out at the head of a system prompt. Clients put their
    version there, and a prompt that differs at its head is read anew."""
    no_page: bool = False
    """Serve no chat page at /."""
    allowed_origins: tuple[str, ...] = ()
    """Origin of web pages that may ask from a browser, such as http://localhost:3000; * allows
    any."""
    allowed_hosts: tuple[str, ...] = ()
    """Name that this server may be asked as without API keys, such as the one that a proxy passes
    on; localhost and addresses always are."""
    log_content: bool = False
    """Log what is asked and answered too, shortened."""
    log_format: Literal["text", "json"] = "text"
    """Form of the lines of the log, one for each request."""
    trace: bool = False
    """Send a span of each request to OpenTelemetry's collector, which OTEL_EXPORTER_OTLP_ENDPOINT
    names; without texts."""
    trace_endpoint: str | None = None
    """Send them to the collector at this address, such as http://localhost:4318."""

    def __post_init__(self) -> None:
        check_whole("port", self.port, 0, 65535)
        for name, low in (
            ("max_body_bytes", 1),
            ("max_queued", 0),
            ("max_answers", 1),
            ("transcript_bytes", 0),
            ("session_bytes", 0),
            ("max_sessions", 1),
        ):
            check_whole(name, getattr(self, name), low, 2**50)
        for name in (
            "read_timeout_seconds",
            "request_timeout_seconds",
            "drain_seconds",
            "ping_seconds",
            "transcript_days",
        ):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e9:
                raise ValueError(f"{name} is {shown(value)}, it must lie between 0 and 1e9")
        if not 0 <= self.answer_share <= 1:
            raise ValueError(
                f"answer_share is {shown(self.answer_share)}, it must lie between 0 and 1"
            )
        for name in ("api_keys", "aliases", "volatile_lines", "allowed_origins", "allowed_hosts"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not all(
                isinstance(value, str) and value for value in values
            ):
                raise ValueError(f"{name} is {shown(values)}, it must be a tuple of texts")
        if self.trace_endpoint is not None and not _is_http_url(self.trace_endpoint):
            raise ValueError(
                f"trace_endpoint is {shown(self.trace_endpoint)}, it must be an address such as "
                "http://localhost:4318"
            )
        if not isinstance(self.keys, tuple) or not all(isinstance(k, ApiKey) for k in self.keys):
            raise ValueError(f"keys is a {type(self.keys).__name__}, it must be a tuple of ApiKey")
        Keys(self.api_keys, self.keys)  # refuses what no header can carry, and what is there twice
        for pattern in self.volatile_lines:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"volatile_lines has {shown(pattern)} in it, which is no regular expression: "
                    f"{error}"
                ) from None
        if not self.api_keys and not self.keys and not is_loopback(self.host):
            raise ValueError(
                f"host is {self.host}, which other machines reach: give an API key, or listen on "
                "127.0.0.1"
            )

    def of_models(self, names: Sequence[str]) -> "tuple[ServerConfig, ...]":
        """Return the settings of each of several models, with its name and its aliases.

        Raises ValueError for an alias of a model that is not served, and for a name that two have.
        """
        owners = dict[str, str](zip(names, names, strict=True))
        if len(owners) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two models are called {twice}, each must have a name of its own")
        aliases: dict[str, list[str]] = {name: [] for name in names}
        for given in self.aliases:
            alias, sign, model = given.rpartition("=")
            if not sign:
                alias, model = given, names[0]
            if not alias or model not in aliases:
                raise ValueError(
                    f"aliases has {shown(given)}, it must be NAME, or NAME=MODEL with one of "
                    f"{', '.join(names)}"
                )
            if owners.setdefault(alias, model) != model:
                raise ValueError(
                    f"aliases has {shown(given)}, {alias} is a name of {owners[alias]} already"
                )
            aliases[model].append(alias)
        return tuple(replace(self, model_name=name, aliases=tuple(aliases[name])) for name in names)

    @property
    def names(self) -> tuple[str, ...]:
        """All names that the model is listed under."""
        return (self.model_name, *self.aliases)


def _is_http_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is no number
        return False


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
