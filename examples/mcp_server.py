"""An MCP server in ten lines, for an agent that is to have its tools: notes that can be searched.

python examples/mcp_server.py NOTES

In ~/.config/fulmen/agent/agent.toml, with a rule so that nobody is asked:

    [mcp.notes]
    command = ["python", "examples/mcp_server.py", "NOTES"]

    [rules]
    allow = ["mcp__notes"]
"""

import sys
from pathlib import Path


def serve(folder: Path) -> None:
    """Serve the notes of a folder on stdin and stdout."""
    from mcp.server.mcpserver import MCPServer  # pip install 'fulmen[mcp]'

    server = MCPServer("notes")

    @server.tool()
    def search(word: str) -> list[str]:
        """Find the lines of all notes that have a word in them."""
        return [
            f"{note.name}: {line}"
            for note in sorted(folder.glob("*.md"))
            for line in note.read_text().splitlines()
            if word.lower() in line.lower()
        ]

    server.run("stdio")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    serve(Path(sys.argv[1]))
