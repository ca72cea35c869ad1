"""Answers of a sandbox: outcomes, contents, and the ways it can fail."""

from dataclasses import dataclass
from typing import Literal

EndedBy = Literal["exit", "signal", "timeout", "memory", "processes", "output"]


class SandboxError(Exception):
    """The sandbox failed, not the command in it; whatever ran inside is dead."""


class SandboxUnavailableError(SandboxError):
    """There can be no sandbox on this machine, for a reason that its owner can change."""


class FileChangedError(Exception):
    """A file is not what the caller has read; nothing was written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The end of a command."""

    exit_code: int | None
    """Code that the shell returned; None if it was killed."""
    ended_by: EndedBy
    """`exit`, or the limit that the command ran into."""
    output: str
    """Text that it wrote to stdout and stderr; where bytes are left out, a line in the middle says
    how many."""
    num_dropped_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FileContent:
    """Bytes of a file."""

    content: bytes
    size: int
    """Bytes of the whole file."""
    sha256: str | None
    """Digest of the whole file; None if `content` is only a part of it."""
    real: str
    """Path of the file inside, no link in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileStatus:
    """The kind and size of a path, which is not followed if it is a link."""

    kind: str
    """`file`, `folder`, `link` or `other`."""
    size: int
    mode: int
    modified: float
    target: str
    """Path to which a link leads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows of a listing or a search, and whether there are more."""

    rows: tuple[tuple[str, str | int, str | int], ...]
    is_cut: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class JobStatus:
    """A command in the background."""

    job: int
    command: str
    """Its beginning."""
    exit_code: int | None
    ended_by: str
    """Empty while it runs; else as in `Outcome`, or `cancelled`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobOutput:
    """Output of a command in the background, from a place on."""

    output: str
    begin: int
    """Place of the first byte: after the cursor asked for, if bytes between are lost."""
    cursor: int
    """Place to read on from."""
    exit_code: int | None
    ended_by: str
