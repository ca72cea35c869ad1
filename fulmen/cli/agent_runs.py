"""Runs of an agent that are looked at, taken back, forked and forgotten: no model is needed."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fulmen.cli import completion
from fulmen.cli.help import SESSION, Command, examples
from fulmen.cli.options import JsonOption, open_store, read_stdin, read_text_file
from fulmen.cli.output import harmless, print_json, print_table, write_bytes
from fulmen.files import printable, shorten

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    from fulmen.agent import Archive, Run

runs_app = typer.Typer()
"""Commands of `fulmen agent` that need no model"""
RunsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder of all runs. Default: ~/.local/share/fulmen/agents.",
        rich_help_panel=SESSION,
    ),
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Name of the run.", autocompletion=completion.runs)
]
StepOption = Annotated[
    int,
    typer.Option(help="Number of steps to keep; fulmen agent show counts them.", min=0),
]


def open_archive(root: Path | None, store: Path | None, session_bytes: str = "20GiB") -> "Archive":
    """Open the runs that --runs names, with the sessions that --store names."""
    from fulmen.agent import Archive, default_runs

    return Archive(root or default_runs(), open_store(store, session_bytes))


def of_run(root: Path | None, name: str) -> "tuple[Archive, Run]":
    """Return a run, and the archive with the sessions that it has."""
    found = open_archive(root, None).runs.open(name)
    return open_archive(root, store_of(found.facts.settings.get("store"))), found


def store_of(text: Any) -> Path | None:
    """Return the folder of sessions that a run's settings name; None for the default."""
    return Path(text) if isinstance(text, str) else None


@runs_app.command(
    "list",
    cls=Command,
    epilog=examples(
        "fulmen agent list",
        {
            "JSON": """
a list of: run, folder, model, num_steps, end, parent, created (seconds since 1970), task; what
cannot be read: run, problem
"""
        },
    ),
)
def agent_list(runs: RunsOption = None, as_json: JsonOption = False) -> None:
    """List all runs, the last used first."""
    from rich.table import Table
    from rich.text import Text

    archive = open_archive(runs, None)
    rows: list[dict[str, Any]] = []
    for name in archive.runs.names():
        try:
            found = archive.runs.outline(name)
        except ValueError as error:
            rows.append({"run": name, "problem": str(error)})
            print(printable(str(error)), file=sys.stderr)
            continue
        rows.append(
            {
                "run": name,
                "folder": found.facts.folder,
                "model": found.facts.model,
                "num_steps": found.num_steps,
                "end": found.end,
                "parent": found.facts.parent,
                "created": found.facts.created,
                "task": found.task,
            }
        )
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "steps", "end", "folder", "task"):
        table.add_column(column, justify="right" if column == "steps" else "left", no_wrap=True)
    for row in rows:
        if "problem" in row:
            table.add_row(row["run"], "", "cannot be read", "", "")
            continue
        end = row["end"] or "unfinished"
        texts = (row["run"], str(row["num_steps"]), end, row["folder"], row["task"][:60])
        table.add_row(*(Text(printable(text)) for text in texts))
    print_table(table)


@runs_app.command(
    "show",
    cls=Command,
    epilog=examples(
        """
fulmen agent show RUN
fulmen agent diff RUN 2 3                    what step 3 changed
""",
        {
            "JSON": """
run, folder, model, parent, num_inherited, end; steps: step, said, thinking, content, calls (name,
arguments, text, is_error), snapshot; saved: number, snapshot
"""
        },
    ),
)
def agent_show(name: RunArgument, runs: RunsOption = None, as_json: JsonOption = False) -> None:
    """Print a run step by step."""
    archive, found = of_run(runs, name)
    facts, trajectory = found.facts, found.trajectory
    steps: list[dict[str, Any]] = []
    for number, step in enumerate(trajectory.steps, 1):
        made = step.answer.message.tool_calls
        results = {one.call: one for one in step.results}
        calls = [
            {
                "name": call.name,
                "arguments": dict(call.arguments),
                "text": results[at].text if at in results else None,
                "is_error": results[at].is_error if at in results else None,
            }
            for at, call in enumerate(made)
        ]
        steps.append(
            {
                "step": number,
                "said": [one.content for one in step.said],
                "thinking": step.answer.message.thinking,
                "content": step.answer.message.content,
                "calls": calls,
                "snapshot": trajectory.snapshot(number),
            }
        )
    saved = [{"number": one.number, "snapshot": one.snapshot} for one in archive.asides(facts)]
    if as_json:
        fields: dict[str, Any] = {"run": name, "folder": facts.folder, "model": facts.model}
        fields["parent"] = facts.parent
        fields |= {"num_inherited": facts.num_inherited, "end": trajectory.end}
        print_json({**fields, "steps": steps, "saved": saved})
        return
    lines = [f"{name}: {facts.model} in {facts.folder}, {trajectory.end or 'unfinished'}"]
    if facts.parent is not None:
        lines.append(f"forked from {facts.parent} after step {facts.num_inherited}")
    for shown in steps:
        lines.append(f"\n== step {shown['step']}")
        lines += [f"-- user\n{text}" for text in shown["said"]]
        if shown["thinking"]:
            lines.append(f"-- thinking\n{shown['thinking'].strip()}")
        if shown["content"]:
            lines.append(f"-- answer\n{shown['content'].strip()}")
        for call in shown["calls"]:
            arguments = json.dumps(call["arguments"], ensure_ascii=False)
            lines.append(f"-- {call['name']} {shorten(arguments, 2000)}")
            lines.append("(no result yet)" if call["text"] is None else call["text"])
    lines += [f"-- user, not answered yet\n{one.content}" for one in trajectory.said]
    for one in saved:
        lines.append(
            f"\nfiles that were restored over are kept aside as {one['number']}: fulmen agent "
            f"export {name} --saved {one['number']} --files FOLDER writes them"
        )
    print(harmless("\n".join(lines)))


@runs_app.command(
    "notes",
    cls=Command,
    epilog=examples("""
fulmen agent notes                           what agents noted in this folder
fulmen agent notes --clear
"""),
)
def agent_notes(
    folder: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder that agents work in.", show_default=False)
    ] = Path("."),
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of them.")] = False,
    runs: RunsOption = None,
) -> None:
    """Print the notes that agents keep for later runs in a folder.

    The file that is named on stderr can be edited: a line is a note.
    """
    from fulmen.agent import Notes

    notes = Notes(open_archive(runs, None).runs.root, folder.resolve())
    if clear:
        print(f"{notes.clear()} notes removed", file=sys.stderr)
        return
    print(printable(str(notes.path)), file=sys.stderr)
    for one in notes.read():
        print(f"- {one}")


@runs_app.command(
    "rewind",
    cls=Command,
    epilog=examples("""
fulmen agent rewind RUN --step 3
fulmen agent resume RUN                      ask the model again from there
fulmen agent resume RUN "another way"        or say something else
"""),
)
def agent_rewind(
    name: RunArgument,
    step: StepOption,
    force: Annotated[
        bool,
        typer.Option("--force", help="Overwrite files that were changed since the last step."),
    ] = False,
    runs: RunsOption = None,
) -> None:
    """Go back to the end of a step: files, conversation and the model's states.

    Whatever changed the files since, a command, an edit or a deletion, is taken back. Before a
    change is overwritten that a person made since the last step, it asks. All is kept aside first.
    """
    from fulmen.cli.agent_asking import rewind_asking

    archive, _ = of_run(runs, name)
    asks = sys.stdin.isatty() and sys.stderr.isatty()
    rewind_asking(archive, name, step, asks=asks, overwrite=force)


@runs_app.command(
    "fork",
    cls=Command,
    epilog=examples("""
fulmen agent fork RUN --step 3               in a new folder beside the run's
fulmen agent resume RUN-2 "another way"
"""),
)
def agent_fork(
    name: RunArgument,
    new: Annotated[
        str | None,
        typer.Argument(metavar="NEW", help="Name of the new run. Default: RUN-2, or RUN-3 ..."),
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="Number of steps to keep. Default: all.", min=0)
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="New folder for its files. Default: beside the run's folder."
        ),
    ] = None,
    runs: RunsOption = None,
) -> None:
    """Begin another run from a step, with its files in a new folder.

    All that the model read so far is shared, so nothing is read again. The new folder has no .git,
    and nothing that is in no snapshot. Prints the name of the new run.
    """
    archive, found = of_run(runs, name)
    num_steps = len(found.trajectory.steps) if step is None else step
    new = new or archive.free_name(name)
    place = folder or Path(f"{found.facts.folder}-{new}")
    made = archive.fork(name, num_steps, place, new=new)
    print(f"its files are in {printable(made.facts.folder)}", file=sys.stderr)
    print(made.name)


@runs_app.command(
    "diff",
    cls=Command,
    epilog=examples("""
fulmen agent diff RUN                        all that the run changed
fulmen agent diff RUN 2 3                    what step 3 changed
fulmen agent diff RUN --stat                 names of files alone
"""),
)
def agent_diff(
    name: RunArgument,
    first: Annotated[
        int, typer.Argument(metavar="FROM", help="Step to begin after. Default: 0.", min=0)
    ] = 0,
    last: Annotated[
        int | None, typer.Argument(metavar="TO", help="Last step. Default: the last one.", min=0)
    ] = None,
    stat: Annotated[bool, typer.Option("--stat", help="Name the files alone.")] = False,
    runs: RunsOption = None,
) -> None:
    """Print what changed between two steps, as git does."""
    archive, found = of_run(runs, name)
    last = len(found.trajectory.steps) if last is None else last
    if stat:
        for change in archive.changes(name, first, last):
            lines = ""
            if change.num_added is not None:
                lines = f"  +{change.num_added} -{change.num_deleted}"
            print(f"{change.kind:<8}{printable(change.path)}{lines}")
        return
    text = archive.diff(name, first, last)
    if not sys.stdout.isatty():
        write_bytes(text.encode(errors="surrogateescape"))
        return
    from rich.console import Console

    styles = {"+": "green", "-": "red", "@": "cyan", "d": "bold"}
    console = Console(highlight=False, emoji=False)
    for line in harmless(text).splitlines():
        console.print(line, style=styles.get(line[:1]), markup=False, soft_wrap=True)


@runs_app.command(
    "summary",
    cls=Command,
    epilog=examples("""
fulmen agent summary RUN > text              what stands for earlier steps
fulmen agent summary RUN --edit text         let the model read this instead
fulmen agent summary RUN --expand            let it read the steps again
"""),
)
def agent_summary(
    name: RunArgument,
    edit: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Put the text of this file in its place; - for stdin."),
    ] = None,
    expand: Annotated[
        bool,
        typer.Option(
            "--expand", help="Put back what it stands for: the text before an edit, or the steps."
        ),
    ] = False,
    runs: RunsOption = None,
) -> None:
    """Print, edit or undo the summary of earlier steps.

    A full context makes the model write one. Either change holds when the run is gone on with, and
    is undone by going back to a step before it.
    """
    from fulmen.agent import summary_of

    archive, found = of_run(runs, name)
    if edit is not None and expand:
        raise ValueError("--edit is given with --expand, a summary is changed in one way")
    if expand:
        archive.expand_summary(name)
    elif edit is not None:
        text = read_stdin() if str(edit) == "-" else read_text_file(edit)
        archive.edit_summary(name, text)
    else:
        text = summary_of(found.trajectory)
        if not text:
            raise ValueError(f"run {name} has no summary, all of its steps stand")
        print(harmless(text) if sys.stdout.isatty() else text)


@runs_app.command("rm", cls=Command, epilog=examples("fulmen agent rm RUN"))
def agent_rm(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Names of the runs.", autocompletion=completion.runs),
    ],
    runs: RunsOption = None,
) -> None:
    """Forget runs, with their snapshots and the model's states.

    The folders that they worked in stay as they are, and so do forks.
    """
    for name in names:
        archive, _ = of_run(runs, name)
        archive.remove(name)
