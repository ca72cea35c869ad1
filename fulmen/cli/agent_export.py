"""Runs of an agent written out: as records, for other tools, as a page, or as their files."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fulmen.cli.agent_runs import RunArgument, RunsOption, of_run
from fulmen.cli.help import Command, examples
from fulmen.cli.output import print_json, write_bytes

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    from fulmen.agent import Run

export_app = typer.Typer()


@export_app.command(
    "export",
    cls=Command,
    epilog=examples(
        """
fulmen agent export RUN > run.jsonl
fulmen agent export RUN --format html > run.html
fulmen agent export RUN --files out --step 3  its files as after step 3
""",
        {
            "JSON": """
a line for the run (name, folder, model, tools, system), then one for each thing that happened:
said, answer (message, sampled: ids, log-probabilities, which were forced), result, found,
compacted, ended; --format atif: one document
"""
        },
    ),
)
def agent_export(
    name: RunArgument,
    format: Annotated[
        Literal["jsonl", "atif", "html"] | None,
        typer.Option(
            help="jsonl has everything, atif is read by other tools, html is a page for a browser. "
            "Default: jsonl.",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Checkpoint whose tokenizer shows tokens as texts in html."
        ),
    ] = None,
    files: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write files into this new folder instead."),
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="Step whose files are written. Default: the last.", min=0)
    ] = None,
    saved: Annotated[
        int | None,
        typer.Option(help="Number of files that were kept aside, which are written.", min=1),
    ] = None,
    runs: RunsOption = None,
) -> None:
    """Print a run as JSON lines, for other tools or as a page, or write its files."""
    archive, found = of_run(runs, name)
    if tokenizer is not None and format != "html":
        raise ValueError("--tokenizer is given, it needs --format html")
    if files is None:
        for flag, value in (("--step", step), ("--saved", saved)):
            if value is not None:
                raise ValueError(f"{flag} is given, it needs --files")
        _print_run(found, format or "jsonl", tokenizer)
    elif format is not None:
        raise ValueError("--format is given with --files, which are written as they were")
    elif saved is not None:
        if step is not None:
            raise ValueError("--saved is given with --step, files are of one of them")
        archive.export_aside(name, files, saved)
    else:
        total = len(found.trajectory.steps)
        archive.export_files(name, files, num_steps=total if step is None else step)


def _print_run(found: "Run", format: str, tokenizer: Path | None) -> None:
    from fulmen.agent import PROFILES, to_atif, view
    from fulmen.chat import Tokenizer

    facts = found.facts
    if format == "jsonl":
        for record in found.records():
            print_json(record)
    elif format == "atif":
        tools = PROFILES.get(facts.tools, ())
        print_json(to_atif(found.trajectory, model=facts.model, tools=tools, session=found.name))
    else:
        known = None if tokenizer is None else Tokenizer.from_folder(tokenizer)
        page = view(found.trajectory, title=f"{found.name}: {facts.model}", tokenizer=known)
        write_bytes(page.encode())
    sys.stdout.flush()
