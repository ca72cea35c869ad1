"""Table of the coding clients: each that is installed does the task once, and the server tells how.

    python -m tests.server.clients.table [--write]
    scripts/client_table [--write]

    the task (tasks.py) -> a client -> a served checkpoint -> its log's lines -> a row

The checkpoint is a tiny one with MiniMax's tokenizer, made to say the script (engine.py); the
programs, their requests, the prompts, the cache and the log are real. `--write` puts the table into
docs/serving.md. A client that is not installed gets a row that says so.
"""

import argparse
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from fulmen.files import write_text
from fulmen.llm import LLM
from fulmen.server.logs import LOGGER
from tests.chat.helpers import REAL
from tests.server.clients.engine import Exchange, Served, Step, load_llm, serving
from tests.server.clients.programs import CLIENTS as FOLDER
from tests.server.clients.programs import ROOT, Place, find_program
from tests.server.clients.tasks import CLIENTS, EDITED, QUESTION, Client, write_steps

PAGE: Final = ROOT / "docs" / "serving.md"
COLUMNS: Final = (
    "client",
    "version",
    "dialect",
    "turns",
    "requests",
    "prompts from the cache",
    "read again",
    "thoughts kept",
    "turns found",
    "repairs",
)
NOT_RUN: Final = "did not run"


@dataclass(frozen=True, slots=True)
class Account:
    """Account of one task that a client did."""

    num_turns: int
    num_requests: int
    """With those beside the conversation, for a title"""
    cached_share: float
    """Share of the prompts after the first that the cache had"""
    num_read_again: int
    """Tokens of an earlier prompt or answer that the engine read again"""
    thoughts: tuple[int, int]
    """Earlier thoughts that are in the last prompt, of how many"""
    found: tuple[int, int]
    """Earlier answers in all histories that were found in the log, of how many"""
    num_repairs: int

    def cells(self) -> Sequence[str]:
        """Return the row from the number of turns on."""
        return (
            str(self.num_turns),
            str(self.num_requests),
            f"{100 * self.cached_share:.1f} %",
            str(self.num_read_again),
            f"{self.thoughts[0]} of {self.thoughts[1]}",
            f"{self.found[0]} of {self.found[1]}",
            str(self.num_repairs),
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="client_table", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/serving.md")
    is_written = parser.parse_args().write
    if not (REAL / "tokenizer.json").is_file():
        sys.exit(f"client_table: MiniMax's tokenizer is needed in {REAL}")
    rows = []
    with TemporaryDirectory() as folder:
        llm = load_llm(Path(folder))
        for name, client in CLIENTS.items():
            row = make_row(name, client, llm)
            print(" | ".join(row), file=sys.stderr)
            rows.append(row)
    table = "\n".join(map(as_line, (COLUMNS, ["---"] * len(COLUMNS), *rows)))
    print(table)
    if is_written:
        write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), table))


def make_row(name: str, client: Client, llm: LLM) -> Sequence[str]:
    """Have a client do the task; return its row."""
    program = find_program(client.program)
    head = [client.program, NOT_RUN if program is None else version_of(program), client.dialect]
    if program is None:
        return [*head, *[""] * (len(COLUMNS) - len(head))]
    with TemporaryDirectory() as folder, server_log() as lines:
        place = Place.new(Path(folder))
        steps = client.steps(place.work)
        settings = {"log_format": "json", "lenient_history": True}
        with serving(llm, write_steps(steps), **settings) as served:
            finished = client.start(place, served.url, QUESTION).wait()
        if finished.returncode or (place.work / "a.txt").read_text() != EDITED:
            sys.exit(f"client_table: {name} did not do the task: {finished.story}")
        return [*head, *account_of(served, steps, lines).cells()]


def account_of(
    served: Served, steps: Sequence[Step], lines: Sequence[Mapping[str, Any]]
) -> Account:
    """Return the account of a session from the engine's usage and the lines of the log."""
    exchanges = served.conversation
    later = [each.done.usage for each in exchanges[1:]]
    prompt = served.engine.tokenizer.decode(exchanges[-1].done.prompt_ids)
    kept = sum(f"<think>\n{step.thought}\n</think>" in prompt for step in steps[:-1])
    found = [turns_of(line) for line in lines]
    return Account(
        num_turns=len(exchanges),
        num_requests=len(served.engine.exchanges),
        cached_share=sum(usage.num_cached_tokens for usage in later)
        / sum(usage.num_prompt_tokens for usage in later),
        num_read_again=sum(num_read_again(*pair) for pair in pairwise(exchanges)),
        thoughts=(kept, len(steps) - 1),
        found=(
            sum(turns.get("matched", 0) + turns.get("restored", 0) for turns in found),
            sum(range(len(steps))),
        ),
        num_repairs=sum(line.get("repairs", 0) for line in lines),
    )


def num_read_again(before: Exchange, after: Exchange) -> int:
    """Return how many tokens of an exchange the engine read anew for the next one. The last token
    of an answer was never read, and a cache of whole pages may lack the few before it."""
    num_known = len(before.done.prompt_ids) + len(before.done.answer_ids) - 1
    return max(0, num_known - after.done.usage.num_cached_tokens)


def turns_of(line: Mapping[str, Any]) -> dict[str, int]:
    """Return how many turns a line of the log has in each state."""
    found = re.findall(r"(\w+):(\d+)", line.get("turns", ""))
    return {state: int(count) for state, count in found}


def version_of(program: Path) -> str:
    """Return the version of a client that scripts/install_clients put there."""
    for folder in program.relative_to(FOLDER).parents:
        manifest, note = FOLDER / folder / "package.json", FOLDER / folder / "installed"
        if folder != Path() and manifest.is_file():
            found = re.match(r"[0-9.]+", json.loads(manifest.read_text())["version"])
            return found[0] if found else NOT_RUN
        if note.is_file():
            return note.read_text().split("==")[1].split()[0]
    raise ValueError(f"{program} has no version beside it, `scripts/install_clients` notes it")


def as_line(cells: Sequence[str]) -> str:
    """Return a row in Markdown."""
    return f"| {' | '.join(cells)} |"


def with_table(page: str, table: str) -> str:
    """Return a page with the table in the place of the one before."""
    head = re.escape(as_line(COLUMNS))
    return re.sub(rf"^{head}\n(\|.*\n)*", lambda _: f"{table}\n", page, count=1, flags=re.M)


@contextmanager
def server_log() -> Iterator[list[dict[str, Any]]]:
    """Collect the lines that the server logs about answers."""
    lines: list[dict[str, Any]] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = json.loads(record.getMessage())
            if "model" in line:
                lines.append(line)

    logger, handler = logging.getLogger(LOGGER), Collect()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


if __name__ == "__main__":
    main()
