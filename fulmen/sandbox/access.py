"""A sandbox's contract: what may be seen and changed inside, and how much of everything.

Nothing here touches a file; mounts.py makes mounts of an `Access`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

GITS_OWN: Final = ".git"
PROTECTED: Final = (
    *(GITS_OWN, ".gitmodules", ".husky", ".pre-commit-config.yaml"),
    *(".github", ".gitlab-ci.yml", ".circleci"),
    *(".fulmen", "AGENTS.md", "AGENTS.override.md", "CLAUDE.md", "CLAUDE.local.md", "GEMINI.md"),
    *("QWEN.md", ".cursorrules", ".windsurfrules", ".clinerules", "opencode.json"),
    *(".claude", ".codex", ".cursor", ".gemini", ".opencode", ".qwen", ".mcp.json"),
    *(".vscode", ".idea", ".zed", ".devcontainer", ".envrc", ".cargo", ".npmrc", ".yarnrc.yml"),
)
"""Names of what runs, or instructs an agent, outside and later: hooks, settings, instructions"""
MAY_APPEAR: Final = (".gitmodules", ".npmrc", ".yarnrc.yml")
"""Names of them that are protected only where they exist: an empty folder in the place of an absent
one stops the programs that read it"""

_NOT_GIVEN: Final = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|PWD|OLDPWD|SHLVL|_|IFS|ENV|CDPATH|GLOBIGNORE|SHELLOPTS|PS\d|"
    r"PROMPT_COMMAND|POSIXLY_CORRECT|(BASH|LD_|DYLD_|GIT_(CONFIG|DIR|EXEC|EXTERNAL|SSH|PROXY)).*|"
    r".*(PAGER|EDITOR|ASKPASS|BROWSER)"
)
"""Variables that are the sandbox's own, and those by which a plain command would be another one"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """Parts of the host that a sandbox sees and may change. The system is there too, read-only."""

    folder: Path
    """The workspace."""
    seen_as: Path | None = None
    """Its path inside, such as that of the folder which it is a copy of; None for its own."""
    is_read_only: bool = False
    """Nothing outlives the sandbox: workspace and `writable` can only be read."""
    has_network: bool = False
    """The host's network, its loopback interface included; otherwise there is none."""
    protected: tuple[str, ...] = PROTECTED
    """Names that are read-only at the top of the workspace, where nobody can create them either
    (but for `.gitmodules`, `.npmrc`, `.yarnrc.yml`), and wherever below it they exist at the start.
    """
    readable: tuple[Path, ...] = ()
    """More folders and files of the host."""
    writable: tuple[Path, ...] = ()
    """More folders of the host that may be changed; their `protected` names may not."""
    seen_at: Mapping[Path, Path] = field(default_factory=dict)
    """Paths inside of some of `readable` and `writable`; all others have their own."""
    hidden: tuple[Path, ...] = ()
    """Files of the host that cannot be read inside, and folders that are empty there"""
    records: Path | None = None
    """Folder for a file that says, while the sandbox is open, which repositories were there before:
    the next one looks for those that were made in a sandbox which was killed."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of every command, which none can change for the next one."""

    def __post_init__(self) -> None:
        for name, value in self.environment.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "\0" in value:
                raise ValueError(f"{name!r} is no variable that a command can have")
            if _NOT_GIVEN.fullmatch(name):
                raise ValueError(
                    f"{name} cannot be set for a sandbox: it leads the shell, or programs that run "
                    "without a question, elsewhere"
                )
        records = () if self.records is None else (self.records,)
        for path in (self.folder, *self.readable, *self.writable, *self.hidden, *records):
            if not path.is_absolute():
                raise ValueError(f"the sandbox needs absolute paths, found {path}")
        for given in self.seen_at:
            if given not in (*self.readable, *self.writable):
                raise ValueError(f"seen_at has {given}, which is neither readable nor writable")
        for name, place in (
            ("seen_as", self.seen_as),
            *(("seen_at", p) for p in self.seen_at.values()),
        ):
            if place is not None and not (place.is_absolute() and ".." not in place.parts):
                raise ValueError(f"{name} must be an absolute path without .., found {place}")
        for name in self.protected:
            if not name or name in (".", "..") or "/" in name or "\0" in name:
                raise ValueError(f"a protected name is one part of a path, found {name!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits on what a sandbox takes."""

    seconds: float = 120.0
    """Longest that a command runs, if its caller does not say otherwise."""
    memory_bytes: int = 4 * 2**30
    """Memory of everything inside together, files in /tmp and the home folder included."""
    num_processes: int = 256
    """Processes inside at one time; they may have eight times as many threads."""
    file_bytes: int = 2**30
    """Largest file that anything inside writes. There is no limit on all files together."""
    output_bytes: int = 64 * 2**10
    """Bytes kept of a command's output, half of them its first and half its last."""
    total_output_bytes: int = 256 * 2**20
    """Bytes after which a command that does not stop writing is ended."""
    job_bytes: int = 2**20
    """Last bytes kept of a job's output."""

    def __post_init__(self) -> None:
        least = {
            **{"memory_bytes": 64 * 2**20, "num_processes": 4, "file_bytes": 2**20},
            **{"output_bytes": 256, "total_output_bytes": 256, "job_bytes": 256},
        }
        most = {"output_bytes": 8 * 2**20, "job_bytes": 64 * 2**20}
        for name, value in least.items():
            found = getattr(self, name)
            if not value <= found <= most.get(name, 2**60):
                limit = f" and at most {most[name]:,}" if name in most else ""
                raise ValueError(f"{name} must be at least {value:,}{limit}, found {found:,}")
        if not 0 < self.seconds <= 1_000_000:
            raise ValueError(f"seconds must be above 0 and at most 1,000,000, found {self.seconds}")
