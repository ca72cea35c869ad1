"""Tools of MCP servers: a client of both eras of the protocol, over stdio and streamable HTTP.

    [mcp.NAME] of the settings -> McpServer -> Connection (one task each) -> McpHands -> JoinedHands

All that a server says is a stranger's: bounded in size and time, and without control characters.
"""

from fulmen.agent.mcp.hands import McpHands, tool_text
from fulmen.agent.mcp.servers import McpServer, parse_servers, servers_table

__all__ = ["McpHands", "McpServer", "parse_servers", "servers_table", "tool_text"]
