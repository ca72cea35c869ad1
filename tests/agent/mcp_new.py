"""An MCP server made with the official package: of both eras, on stdio or over HTTP."""

import sys
from pathlib import Path


def main(port: int | None) -> None:
    """Serve until stdin is closed, or until the process is ended."""
    from mcp.server.mcpserver import Image, MCPServer
    from mcp.server.mcpserver.exceptions import ToolError

    server = MCPServer("new", version="1")

    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    def picture() -> list[object]:
        """Draw."""
        return ["here it is", Image(data=b"\x89PNG" * 10, format="png")]

    def touch(name: str) -> str:
        """Make a file in the folder where the server runs."""
        Path(name).write_text("made")
        return "done"

    def fail() -> str:
        """Fail."""
        raise ToolError("it cannot be done")

    for tool in (add, touch, fail):
        server.tool()(tool)
    server.tool(structured_output=False)(picture)
    if port is None:
        server.run("stdio")
    else:
        server.run("streamable-http", host="127.0.0.1", port=port)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
