"""Try the sandbox out: `python -m fulmen.sandbox FOLDER -- COMMAND`."""

import asyncio
import sys
from pathlib import Path

from fulmen.sandbox import Access, Sandbox, SandboxError


async def _run(folder: Path, command: str) -> int:
    async with Sandbox(Access(folder=folder)) as sandbox:
        outcome = await sandbox.run(command)
    print(outcome.output, end="", flush=True)
    for note in sandbox.notes:  # some are of what was found in the end
        print(note, file=sys.stderr)
    if outcome.ended_by != "exit":
        print(f"ended by: {outcome.ended_by}", file=sys.stderr)
    return 1 if outcome.exit_code is None else outcome.exit_code


if __name__ == "__main__":
    if len(sys.argv) < 4 or sys.argv[2] != "--":
        sys.exit("usage: python -m fulmen.sandbox FOLDER -- COMMAND")
    try:
        sys.exit(asyncio.run(_run(Path(sys.argv[1]).absolute(), " ".join(sys.argv[3:]))))
    except (SandboxError, ValueError, OSError) as error:
        sys.exit(f"fulmen.sandbox: {error}")
