"""A program of ours, alone in a sandbox with code that a stranger wrote: it is given a job, and
says in JSON what came of it.

    job -> /tmp in the sandbox -> program, which takes it away -> its output -> parsed here

Nothing there outlives the sandbox, and no file of the host can be written. A program says first
that it runs: until then a failure is the sandbox's, and an error; later it is the stranger's, and
all that can be told of it is that nothing was said.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fulmen.envs.scratch import scratch_folder
from fulmen.files import parse_json, shorten
from fulmen.sandbox import Access, Limits, Sandbox, SandboxError, find_python

RUNS: Final = "The program runs."
"""First line that every such program writes"""
_PACKAGE: Final = Path(__file__).resolve().parents[1]
_JOB: Final = "/tmp/job.json"


async def told_apart(
    program: Path,
    job: Mapping[str, object],
    limits: Limits,
    *,
    files: Mapping[str, bytes] | None = None,
) -> dict[str, object] | None:
    """Return the object that a program says about a job; None if it says none.

    files  contents by path, in the folder where the program runs

    Raises SandboxError if the sandbox fails, or the program does not begin.
    """
    with scratch_folder("fulmen-grade-") as folder:
        for path, content in {**(files or {}), "program.py": program.read_bytes()}.items():
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        access = Access(folder=folder, is_read_only=True, protected=(), hidden=(_PACKAGE,))
        command = f"{shlex.quote(find_python())} -I -S -B program.py {_JOB} 2>/dev/null"
        async with Sandbox(access, limits) as sandbox:
            await sandbox.write_file(_JOB, json.dumps(job).encode())
            outcome = await sandbox.run(command)
    begin, _, said = outcome.output.partition("\n")
    if begin != RUNS:
        raise SandboxError(
            f"the program that grades did not begin ({outcome.ended_by}, exit code "
            f"{outcome.exit_code}): {shorten(outcome.output) or 'it said nothing'}"
        )
    try:
        return parse_json(said.encode("utf-8", "replace"), "the output")
    except ValueError:
        return None
