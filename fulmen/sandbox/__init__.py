"""Commands and file work with limits, or a refusal: bubblewrap with a supervisor inside."""

from fulmen.sandbox.access import PROTECTED, Access, Limits
from fulmen.sandbox.bubblewrap import find_python
from fulmen.sandbox.mounts import check_access
from fulmen.sandbox.protection import remove_placeholders
from fulmen.sandbox.results import (
    EndedBy,
    FileChangedError,
    FileContent,
    FileStatus,
    JobOutput,
    JobStatus,
    Outcome,
    Rows,
    SandboxError,
    SandboxUnavailableError,
)
from fulmen.sandbox.sandbox import Sandbox

__all__ = [
    "PROTECTED",
    "Access",
    "EndedBy",
    "FileChangedError",
    "FileContent",
    "FileStatus",
    "JobOutput",
    "JobStatus",
    "Limits",
    "Outcome",
    "Rows",
    "Sandbox",
    "SandboxError",
    "SandboxUnavailableError",
    "check_access",
    "find_python",
    "remove_placeholders",
]
