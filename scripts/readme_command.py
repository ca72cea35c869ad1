"""Prints the one shell command under a heading of README.md: `readme_command.py "Quick start"`."""

import re
import sys
from pathlib import Path


def readme_command(heading: str) -> str:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    pattern = rf"^## {re.escape(heading)}\s*$(.*?)(?=^## |\Z)"
    section = re.search(pattern, text, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```sh\n(.*?)^```", section.group(1), re.M | re.S) if section else []
    if len(blocks) != 1 or len(blocks[0].strip().splitlines()) != 1:
        sys.exit(f"README.md needs one ```sh block of one line under '## {heading}'")
    return str(blocks[0].strip())


if __name__ == "__main__":
    print(readme_command(sys.argv[1]))
