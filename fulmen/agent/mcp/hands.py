"""Tools of MCP servers, as an agent has them: named, consented to, their results cut.

A tool is `mcp__SERVER__TOOL`. Nobody knows what it changes, so it is asked about in every mode
unless a rule allows it, and what a server says of its own tools counts for nothing there.
"""

import asyncio
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from fulmen.agent.consent import Consent
from fulmen.agent.cutting import cut_text
from fulmen.agent.mcp.connection import Connection, McpFailure
from fulmen.agent.mcp.servers import McpServer
from fulmen.agent.outside import MCP
from fulmen.agent.tools import ToolError
from fulmen.agent.trajectory import Result
from fulmen.chat import Tool, ToolCall
from fulmen.files import harmless, printable, shorten

_MAX_TEXT: Final = 40_000
"""Characters of a result"""
_MAX_DESCRIPTION: Final = 4000
_MAX_SCHEMA: Final = 20_000
"""Characters of a tool's parameters as JSON"""
_MAX_NAME: Final = 64
_MAX_BEGIN_SECONDS: Final = 60.0
"""Time in which a server has to begin, once more in the old era, and to tell its tools"""


class McpHands:
    """Tools of some servers; `Hands` of an agent, to be used in `async with`.

    A server that cannot be used is a note, and its tools are not there.
    """

    def __init__(self, servers: Mapping[str, McpServer], consent: Consent, *, folder: Path) -> None:
        """
        folder  where commands begin, the workspace on this machine
        """
        self.notes: list[str] = []
        """Sentences for people on servers that are not as one would expect"""
        self._consent = consent
        self._connections = [Connection(one, folder) for one in servers.values()]
        self._tools: list[Tool] = []
        self._places: dict[str, tuple[Connection, str]] = {}

    async def __aenter__(self) -> Self:
        """Connect to all servers, at once, and ask for their tools."""
        try:
            found = await asyncio.gather(
                *map(self._open, self._connections), return_exceptions=True
            )
        except BaseException:  # it is cancelled while some are open
            await self.__aexit__()
            raise
        for one, tools in zip(self._connections, found, strict=True):
            if isinstance(tools, McpFailure):
                last = f"; it said: {shorten(one.said[-1].strip(), 200)}" if one.said else ""
                self.notes.append(printable(str(tools)) + last)
            elif isinstance(tools, BaseException):
                await self.__aexit__()
                raise tools
            else:
                self._take(one, tools)
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all connections, and servers that are processes."""
        await asyncio.gather(*(one.close() for one in self._connections))

    async def _open(self, one: Connection) -> Sequence[Any]:
        try:
            async with asyncio.timeout(_MAX_BEGIN_SECONDS):
                await one.open()
                return await one.tools()
        except TimeoutError:
            await one.close()
            raise McpFailure(
                f"the server {one.server.name} did not tell its tools in {_MAX_BEGIN_SECONDS:.0f} s"
            ) from None

    def _take(self, connection: Connection, tools: Sequence[Any]) -> None:
        """Take the tools of a server that count and that a model can be told of."""
        server = connection.server
        for tool in tools:
            if server.tools is not None and tool.name not in server.tools:
                continue
            name = f"{MCP}{server.name}__{re.sub(r'[^A-Za-z0-9_.-]', '_', tool.name)[:_MAX_NAME]}"
            schema = tool.input_schema
            if name in self._places or len(json.dumps(schema, default=str)) > _MAX_SCHEMA:
                why = "there is one of its name" if name in self._places else "it is too large"
                self.notes.append(f"{server.name} has a tool that is left out, {why}: {name}")
                continue
            about = cut_text(harmless(tool.description or ""), _MAX_DESCRIPTION)
            schema = {"type": "object", "properties": {}, **_plain_values(schema)}
            self._tools.append(Tool(name, about, schema))
            self._places[name] = (connection, tool.name)
        names = {tool.name for tool in tools}
        for wanted in server.tools or ():
            if wanted not in names:
                self.notes.append(f"the server {server.name} has no tool {shorten(wanted, 60)}")

    @property
    def tools(self) -> Sequence[Tool]:
        """Tools as they were when the servers were asked."""
        return tuple(self._tools)

    @property
    def protocols(self) -> dict[str, str]:
        """Versions of the protocol by server, of those that could be reached."""
        return {one.server.name: one.protocol for one in self._connections if one.protocol}

    def is_independent(self, call: ToolCall) -> bool:
        """Return False: nobody knows what a server's tool changes."""
        return False

    async def run(self, number: int, call: ToolCall) -> Result:
        """Make a call; whatever is wrong with it is a result that says so."""
        begin = time.monotonic()
        connection, tool = self._places[call.name]

        async def preview() -> str:
            return json.dumps(call.arguments, indent=1, ensure_ascii=False, default=str)

        try:
            await self._consent.obtain(call, preview)
            result = await connection.call(tool, _whole(call.arguments))
            text, is_error = tool_text(result), bool(result.is_error)
        except (ToolError, McpFailure, ValueError) as error:
            text, is_error = str(error), True
        seconds = round(time.monotonic() - begin, 3)
        return Result(number, cut_text(harmless(text), _MAX_TEXT), is_error, seconds)

    async def interrupted(self, number: int, call: ToolCall, by: str) -> Result:
        """Return the result of a call that was ended: nobody knows how far it came."""
        return Result(number, f"(ended by {by} before the server answered)", True)

    def forget(self) -> None:
        """Do nothing: no result depends on an earlier one."""


def tool_text(result: Any) -> str:
    """Return what a server answered as the text that a model reads: what is no text is named."""
    parts = [_part(one) for one in result.content]
    if not any(parts) and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    return "\n".join(part for part in parts if part) or "(an empty result)"


def _whole(value: Any) -> Any:
    """Return arguments with U+FFFD for each half of a surrogate pair: UTF-8 has none."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {_whole(name): _whole(one) for name, one in value.items()}
    return [_whole(one) for one in value] if isinstance(value, list) else value


def _part(block: Any) -> str:
    match block.type:
        case "text":
            return str(block.text)
        case "image" | "audio":
            size = len(block.data) * 3 // 4 - block.data[-2:].count("=")
            return f"({block.type} of {size:,} bytes, {block.mime_type}: it cannot be shown here)"
        case "resource_link":
            return f"({block.name}: {block.uri})"
        case "resource" if getattr(block.resource, "text", None) is not None:
            return f"({block.resource.uri})\n{block.resource.text}"
        case "resource":
            return f"({block.resource.uri}, which is no text)"
    return f"({block.type}: it cannot be shown here)"


def _plain_values(value: Any) -> Any:
    """Return a schema whose texts are plain. It has no cycle, since it came as JSON."""
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, Mapping):
        return {harmless(str(name)): _plain_values(one) for name, one in value.items()}
    if isinstance(value, Iterable):
        return [_plain_values(one) for one in value]
    return value
