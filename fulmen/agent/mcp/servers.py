"""MCP servers as settings name them: a command to start, or a URL.

    [mcp.files]
    command = ["npx", "-y", "@modelcontextprotocol/server-filesystem", "."]
    env = { LOG = "off" }

    [mcp.tracker]
    url = "https://tracker.example/mcp"
    headers = { Authorization = "Bearer ${TRACKER_TOKEN}" }
    tools = ["search", "read_issue"]       # only these; all if omitted
    timeout = 30                           # seconds of a call

`${NAME}` in env and headers is a variable of the environment, so that no file holds a secret.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fulmen.agent.outside import host_of
from fulmen.files import shorten

_KEYS: Final = ("command", "url", "env", "headers", "tools", "timeout")
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]|_(?!_)){0,30}(?<!_)")
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_MAX_SERVERS: Final = 32
_MAX_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class McpServer:
    """One server: a command that speaks MCP on its stdin and stdout, or a URL."""

    name: str
    command: tuple[str, ...] = ()
    """Program and arguments; it runs as the user, outside the sandbox, in the agent's folder"""
    url: str = ""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables of the command, beside a few of the user's such as PATH"""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tools: tuple[str, ...] | None = None
    """Names of the tools that count; None: all of them"""
    timeout: float = 120.0
    """Seconds that a call may take"""

    def __post_init__(self) -> None:
        where = f"the MCP server {shorten(self.name, 40)}"
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"{where} needs a name of up to 32 letters, digits, dashes and single underlines"
            )
        if bool(self.command) == bool(self.url):
            raise ValueError(f"{where} needs a command or a url, one of them")
        if self.url:
            host_of(self.url)
        texts = [(name, name) for name in self.env] + list(self.headers.items())
        for name, value in texts:
            if not (name + value).isprintable():
                raise ValueError(f"{where}: {shorten(name, 60)} holds a control character")
        for name, value in self.env.items():  # which may have lines, as a key does
            if "\0" in value:
                raise ValueError(f"{where}: {shorten(name, 60)} holds a zero byte")
        if not 0 < self.timeout <= _MAX_SECONDS:
            raise ValueError(f"{where}: timeout is {self.timeout}, it must be up to 3600 seconds")

    def expanded(self, values: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
        """Return variables or headers with the environment's values in them. Raises ValueError for
        a variable that is not set."""

        def value(found: re.Match[str]) -> str:
            name = found.group(1)
            if name not in environment:
                raise ValueError(f"the MCP server {self.name} needs {name}, which is not set")
            return environment[name]

        return {name: _VARIABLE.sub(value, text) for name, text in values.items()}


def parse_servers(table: Mapping[str, Any], where: str) -> dict[str, McpServer]:
    """Read the servers of a file of settings. Raises ValueError that names the key.

    where  names the file in an error
    """
    if len(table) > _MAX_SERVERS:
        raise ValueError(f"{where}: at most {_MAX_SERVERS} servers are read")
    return {name: _server(name, value, f"{where}: mcp.{name}") for name, value in table.items()}


def _server(name: str, table: Any, where: str) -> McpServer:
    if not isinstance(table, dict):
        raise ValueError(f"{where} must be a table with a command or a url")
    for key in table:
        if key not in _KEYS:
            raise ValueError(f"{where} has {shorten(repr(key))}, it may have {', '.join(_KEYS)}")
    url, timeout = table.get("url", ""), table.get("timeout", 120.0)
    if not isinstance(url, str):
        raise ValueError(f"{where}: url must be a text")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise ValueError(f"{where}: timeout must be a number of seconds")
    tools = table.get("tools")
    try:
        return McpServer(
            name=name,
            command=_command(table.get("command", [])),
            url=url,
            env=_texts(table, "env"),
            headers=_texts(table, "headers"),
            tools=None if tools is None else _list(tools, "tools"),
            timeout=float(timeout),
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _command(value: Any) -> tuple[str, ...]:
    return tuple(shlex.split(value)) if isinstance(value, str) else _list(value, "command")


def _list(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{key} must be a list of texts")
    if any("\0" in one for one in value):
        raise ValueError(f"{key} holds a zero byte")
    return tuple(value)


def _texts(table: Mapping[str, Any], key: str) -> dict[str, str]:
    value = table.get(key, {})
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise ValueError(f"{key} must be a table of texts")
    return dict(value)


def servers_table(servers: Mapping[str, McpServer]) -> dict[str, dict[str, Any]]:
    """Return servers as a file of settings has them, what is left out being as it is by default."""
    table: dict[str, dict[str, Any]] = {}
    for name, one in servers.items():
        fields = {
            "command": list(one.command),
            "url": one.url,
            "env": dict(one.env),
            "headers": dict(one.headers),
            "tools": None if one.tools is None else list(one.tools),
            "timeout": one.timeout,
        }
        table[name] = {key: value for key, value in fields.items() if value or value == []}
        if not one.command:
            table[name].pop("command", None)
    return table
