"""Settings of the agent: the user's own, the workspace's, and rules that were remembered.

`agent.toml` in the user's folder holds for all workspaces, `.fulmen/agent.toml` in a workspace for
that one. The same keys may stand in both, and any other key is refused:

    mode = "ask"                    # plan, ask, accept-edits or auto
    tools = "coding"                # coding or minimal
    network = false                 # true lets commands use this machine's network
    web = true                      # a tool that fetches pages, asking for each host
    notes = true                    # a tool that keeps sentences for later runs, asking for each
    max-turns = 100                 # or max-tokens, thinking-tokens, max-seconds, context
    instructions = ["HOUSE.md"]     # files for the model to follow, beside AGENTS.md

    [rules]
    allow = ["bash(pytest *)"]
    ask = ["bash(git commit *)"]
    deny = ["read(**/.env)", "edit(vendor/**)"]

    [environment]                   # of the agent's shell
    RUST_BACKTRACE = "1"

    [mcp.files]                     # tools of a server, see mcp/servers.py
    command = ["npx", "-y", "@modelcontextprotocol/server-filesystem", "."]

    [[hooks]]                       # a command around calls, see hooks.py
    event = "before_end"
    command = "pytest -q || exit 2"

A workspace's file is data of strangers until the user approves it, by its content: changed content
is asked about again. Until then only its ask and deny rules count, since they take away only.
Remembered rules are in the user's folder, never in the workspace.
"""

import hashlib
import json
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, cast

from fulmen.agent.hooks import Hook, parse_hooks
from fulmen.agent.instructions import read_regular
from fulmen.agent.mcp.servers import McpServer, parse_servers
from fulmen.agent.permissions import MODES, Mode
from fulmen.agent.rules import Rule, Rules
from fulmen.files import read_json, read_json_if_present, shorten, user_folder, write_text

Tools = Literal["coding", "minimal"]

MAX_BYTES: Final = 64 * 2**10
"""Largest file of settings"""
_MAX_NESTING: Final = 32
"""Most opening brackets in a line, of which no file has more than two"""
_MAX_VARIABLES: Final = 100
_MAX_LIMIT: Final = 2**62
_LIMITS: Final = {
    "max-turns": "turns",
    "max-tokens": "tokens",
    "thinking-tokens": "thinking_tokens",
    "max-seconds": "seconds",
    "context": "context",
}
"""Limits by their keys, which are those of the command's flags"""
_KEYS: Final = (
    *("mode", "tools", "network", *_LIMITS, "instructions", "rules", "environment"),
    *("mcp", "hooks", "web", "notes"),
)
_LISTS: Final = ("allow", "ask", "deny")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """Content of a file of settings; None and nothing where it says nothing."""

    mode: Mode | None = None
    tools: Tools | None = None
    has_network: bool | None = None
    limits: Mapping[str, float | None] = field(default_factory=dict)
    """Fields of `Budget`, and context, the tokens that the model holds; None lifts a limit"""
    instructions: tuple[str, ...] = ()
    rules: Rules = field(default_factory=Rules)
    environment: Mapping[str, str] = field(default_factory=dict)
    mcp: Mapping[str, McpServer] = field(default_factory=dict)
    """Servers whose tools the agent has, by name"""
    has_web: bool | None = None
    """The agent has the tool web_fetch"""
    has_notes: bool | None = None
    """The agent has the tool note, and reads what it kept in earlier runs"""
    hooks: tuple[Hook, ...] = ()
    """Commands around calls and before the end"""

    def unapproved(self) -> "AgentConfig":
        """Return what counts of a workspace's file before the user approves it."""
        return AgentConfig(rules=self.rules.narrowing())

    def under(self, other: "AgentConfig") -> "AgentConfig":
        """Return these settings with more specific ones over them. Rules of both hold: no file's
        allow rule undoes another's deny rule. A server keeps its name: another of that name does
        not count."""
        return AgentConfig(
            mode=other.mode or self.mode,
            tools=other.tools or self.tools,
            has_network=self.has_network if other.has_network is None else other.has_network,
            limits={**self.limits, **other.limits},
            instructions=(*self.instructions, *other.instructions),
            rules=self.rules | other.rules,
            environment={**self.environment, **other.environment},
            # A rule of one's own that allows a server must not come to allow another one.
            mcp={**other.mcp, **self.mcp},
            hooks=(*self.hooks, *other.hooks),
            has_web=self.has_web if other.has_web is None else other.has_web,
            has_notes=self.has_notes if other.has_notes is None else other.has_notes,
        )


def agent_folder() -> Path:
    """Return the user's folder of agent settings; it may not exist."""
    return user_folder("XDG_CONFIG_HOME", ".config") / "fulmen" / "agent"


def project_file(workspace: Path) -> Path:
    """Return where a workspace's settings are."""
    return workspace / ".fulmen" / "agent.toml"


def read_content(path: Path) -> bytes | None:
    """Return the content of a file of settings, None if there is none.

    Raises ValueError for one that is no file, too large, or a link: a link's content could change
    without the file, and lead out of the workspace.
    """
    if path.parent.is_symlink() or path.is_symlink():
        raise ValueError(f"{path} is behind a link, settings are read from a file only")
    try:
        content, _ = read_regular(str(path), MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES:,} bytes, no such settings are known")
    return content


def parse_config(content: bytes, where: str) -> AgentConfig:
    """Read a file of settings. Raises ValueError, one sentence that names the file and the key.

    where  names the content in an error, such as its path
    """
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{where} is not text in UTF-8") from None
    if any(line.count("[") + line.count("{") > _MAX_NESTING for line in text.split("\n")):
        raise ValueError(f"{where} is nested too deeply")
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{where} is not valid TOML: {shorten(error)}") from None
    _check_keys(document, _KEYS, where)
    rules = _table(document, "rules", where)
    _check_keys(rules, _LISTS, f"{where}: rules")
    lists = {name: _texts(rules, name, f"{where}: rules") for name in _LISTS}
    try:
        parsed = Rules.parse(lists["allow"], ask=lists["ask"], deny=lists["deny"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return AgentConfig(
        mode=cast("Mode | None", _choice(document, "mode", MODES, where)),
        tools=cast("Tools | None", _choice(document, "tools", ("coding", "minimal"), where)),
        has_network=_switch(document, "network", where),
        has_web=_switch(document, "web", where),
        has_notes=_switch(document, "notes", where),
        limits=_limits(document, where),
        instructions=tuple(_texts(document, "instructions", where)),
        rules=parsed,
        environment=_environment(_table(document, "environment", where), where),
        mcp=parse_servers(_table(document, "mcp", where), where),
        hooks=parse_hooks(document.get("hooks", []), where),
    )


def _check_keys(table: Mapping[str, object], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            raise ValueError(f"{where} has {shorten(repr(key))}, it may have {', '.join(known)}")


def _table(document: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {key} must be a table")
    return value


def _texts(table: Mapping[str, Any], key: str, where: str) -> list[str]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{where}: {key} must be a list of texts")
    return value


def _switch(document: Mapping[str, Any], key: str, where: str) -> bool | None:
    value = document.get(key)
    if not isinstance(value, bool | None):
        raise ValueError(f"{where}: {key} is {shorten(repr(value))}, it must be true or false")
    return value


def _choice(
    document: Mapping[str, Any], key: str, choices: tuple[str, ...], where: str
) -> str | None:
    value = document.get(key)
    if value is not None and value not in choices:
        raise ValueError(
            f"{where}: {key} is {shorten(repr(value))}, it must be one of {', '.join(choices)}"
        )
    return cast("str | None", value)


def _limits(document: Mapping[str, Any], where: str) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for key, name in _LIMITS.items():
        value = document.get(key)
        is_seconds = name == "seconds"
        if value == "none":
            found[name] = None
        elif type(value) is int or (is_seconds and type(value) is float):
            if not 0 <= value < _MAX_LIMIT:
                raise ValueError(f"{where}: {key} is {shorten(repr(value))}, out of range")
            found[name] = value
        elif value is not None:
            kind = "a number" if is_seconds else "a whole number"
            raise ValueError(
                f'{where}: {key} is {shorten(repr(value))}, it must be {kind}, or "none"'
            )
    return found


def _environment(table: Mapping[str, Any], where: str) -> dict[str, str]:
    if len(table) > _MAX_VARIABLES:
        raise ValueError(f"{where}: environment has more than {_MAX_VARIABLES} variables")
    for name, value in table.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{where}: {shorten(repr(name))} cannot name a variable")
        if not isinstance(value, str) or "\0" in value:
            raise ValueError(f"{where}: {name} must be a text")
    return dict(table)


# The user's folder


class Approvals:
    """Contents of workspaces' files that the user has approved, each by its hash and its path.

    An approval is a file of its own, so that two agents at once lose none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "approved"

    def is_approved(self, path: Path, content: bytes) -> bool:
        """Return whether this content was approved at this place."""
        return self._file(path, content).is_file()

    def approve(self, path: Path, content: bytes) -> None:
        """Approve a content at a place, until it changes."""
        name = os.path.realpath(path)
        write_text(self._file(path, content), json.dumps({"path": name}) + "\n")

    def paths(self) -> dict[str, int]:
        """Return the places at which contents were approved, and how many at each."""
        found = Counter(path for _, path in self._all())
        return dict(sorted(found.items()))

    def revoke(self, path: Path) -> int:
        """Take all approvals of a place back; return how many there were."""
        place = os.path.realpath(path)
        mine = [file for file, its_place in self._all() if its_place == place]
        for file in mine:
            file.unlink(missing_ok=True)
        return len(mine)

    def _all(self) -> Iterator[tuple[Path, str]]:
        """Yield the file and the place of each approval."""
        for file in sorted(self._folder.glob("*.json")):
            place = read_json(file).get("path")
            if not isinstance(place, str):
                raise ValueError(f"{file}: path must be a text")
            yield file, place

    def _file(self, path: Path, content: bytes) -> Path:
        place = os.fsencode(os.path.realpath(path))
        digest = hashlib.sha256(hashlib.sha256(place).digest() + content).hexdigest()
        return self._folder / f"{digest}.json"


def read_project(workspace: Path, approvals: Approvals) -> tuple[AgentConfig, bytes | None]:
    """Return what counts of a workspace's settings, and the content that waits for approval.

    The content is None if there is nothing to approve. Raises ValueError like `parse_config`.
    """
    path = project_file(workspace)
    content = read_content(path)
    if content is None:
        return AgentConfig(), None
    config = parse_config(content, str(path))
    narrowed = config.unapproved()
    if config == narrowed or approvals.is_approved(path, content):
        return config, None
    return narrowed, content


class RememberedRules:
    """Allow rules of one workspace that the user said to remember, in the user's folder."""

    def __init__(self, folder: Path, workspace: Path) -> None:
        self._workspace = os.path.realpath(workspace)
        name = hashlib.sha256(os.fsencode(self._workspace)).hexdigest()[:32]
        self._path = folder / "remembered" / f"{name}.json"

    @classmethod
    def all(cls, folder: Path) -> dict[str, Rules]:
        """Return all rules that are remembered, by workspace. Raises ValueError like `read`."""
        found: dict[str, Rules] = {}
        for file in sorted((folder / "remembered").glob("*.json")):
            workspace = read_json(file).get("workspace")
            if not isinstance(workspace, str):
                raise ValueError(f"{file}: workspace must be a text")
            rules = cls(folder, Path(workspace)).read()
            if rules.allow:
                found[workspace] = rules
        return dict(sorted(found.items()))

    def read(self) -> Rules:
        """Return the rules. Raises ValueError for a file that cannot be read."""
        document = read_json_if_present(self._path)
        texts = document.get("allow", [])
        if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
            raise ValueError(f"{self._path}: allow must be a list of texts")
        try:
            return Rules.parse(texts)
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}") from None

    def add(self, rules: frozenset[Rule]) -> None:
        """Remember more rules; agents that do so at once lose none."""
        with self._alone():
            self._write(replace(self.read(), allow=self.read().allow | rules))

    def forget(self, rules: Rules) -> int:
        """Remember some rules no longer; return how many of them were remembered."""
        with self._alone():
            known = self.read()
            self._write(replace(known, allow=known.allow - rules.allow))
        return len(known.allow & rules.allow)

    def _write(self, rules: Rules) -> None:
        document = {"workspace": self._workspace, "allow": sorted(map(str, rules.allow))}
        write_text(self._path, json.dumps(document, indent=1) + "\n")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            import fcntl
        except ImportError:
            raise ValueError("rules can be remembered on Linux and other POSIX systems") from None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
