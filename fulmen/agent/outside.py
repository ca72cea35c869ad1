"""Tools that are not fulmen's own shell and files, as the rules of consent know them.

mcp__SERVER__TOOL    also named by mcp__SERVER, all tools of a server
web_fetch(HOST)      the host of the URL, or HOST:PORT
task(AGENT)          the agent that is given a task
"""

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any, Final
from urllib.parse import urlsplit

from fulmen.files import shorten

MCP: Final = "mcp__"
"""Beginning of the names of servers' tools"""
FREE: Final = ("todo", "skill")
"""Tools that only tell the model, or people, something"""
SUBJECTS: Final[Mapping[str, str]] = {"web_fetch": "url", "task": "agent"}
"""Tools whose rules may name what a call is about, and the argument that says it"""
_PORTS: Final = {"http": 80, "https": 443}
_TRANSLATED: Final = (ip_network("64:ff9b::/96"), ip_network("2002::/16"))
"""Addresses that stand for another one"""


def names_of(tool: str) -> tuple[str, ...]:
    """Return the names by which a rule may mean a tool."""
    server, mark, _ = tool.removeprefix(MCP).partition("__")
    if not tool.startswith(MCP) or not mark:
        return (tool,)
    return (tool, f"{MCP}{server}")


def subjects_of(tool: str, arguments: Mapping[str, object]) -> tuple[str, ...]:
    """Return the spellings of what a call is about, the one that a rule should have first; none
    for a tool whose calls are about nothing. Raises ValueError if the call does not say it."""
    if tool not in SUBJECTS:
        return ()
    name = SUBJECTS[tool]
    value = arguments.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{tool} needs {name}, a text")
    return (value.strip(),) if tool == "task" else host_of(value)


def host_of(url: str) -> tuple[str, ...]:
    """Return the host of a URL, then HOST:PORT. Raises ValueError for a URL that names no host
    plainly."""
    shown = shorten(url, 200)
    if not url.isascii() or not url.isprintable() or any(char in url for char in ' \\"<>^`{|}'):
        raise ValueError(f"{shown} is no URL, characters other than ASCII letters are written %XX")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"{shown} is no URL") from None
    if parts.scheme not in _PORTS or not host:
        raise ValueError(f"{shown} is no URL that begins with https:// or http:// and a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL with a name or password in it is not fetched")
    host = host.rstrip(".")
    return (host, f"{host}:{port or _PORTS[parts.scheme]}")


def is_private(host: str) -> bool:
    """Return whether a host is this machine, or one that only its network knows."""
    try:
        address: Any = ip_address(host.partition("%")[0])
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal", ".lan"))
    address = getattr(address, "ipv4_mapped", None) or address
    return not address.is_global or any(address in network for network in _TRANSLATED)
