"""fulmen sessions: conversations on disk."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from fulmen.cli.options import StoreOption, open_store, print_table

sessions_app = typer.Typer(
    help="List, show, fork, rewind, remove, export and check saved conversations.",
    no_args_is_help=True,
)

SessionArgument = Annotated[str, typer.Argument(help="Name of the session.")]
TurnOption = Annotated[
    int | None, typer.Option(help="Number of turns to keep; fulmen sessions show counts them.")
]
TokenOption = Annotated[
    int | None, typer.Option(help="Number of tokens to keep of the last of those turns' answer.")
]


@sessions_app.command("list")
def sessions_list(store: StoreOption = None) -> None:
    """List all sessions, the last used first."""
    from datetime import datetime

    from rich.table import Table
    from rich.text import Text

    from fulmen.sessions import last_question

    sessions = open_store(store)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "turns", "tokens", "MiB", "last used", "model", "last question"):
        right = column in ("turns", "tokens", "MiB")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for name in sessions.names():
        try:
            state = sessions.state(name)
            turns = sessions.turns(state)
            question = last_question(turns)[:60]
            tokens = f"{len(sessions.ids_of(state)):,}"
            size = f"{sessions.chunk_bytes(state) / 2**20:.1f}"
        except ValueError as error:
            table.add_row(name, "", "", "", "", "", "cannot be read")
            print(_printable(str(error)), file=sys.stderr)
            continue
        when = datetime.fromtimestamp(state.used or state.created).strftime("%Y-%m-%d %H:%M")
        model = Text(_printable(Path(state.model).name))
        table.add_row(name, str(len(turns)), tokens, size, when, model, Text(_printable(question)))
    for stray in sessions.strays():
        table.add_row(Text(_printable(stray)), "", "", "", "", "", "is no session")
    print_table(table)


@sessions_app.command("show")
def sessions_show(name: SessionArgument, store: StoreOption = None) -> None:
    """Print a conversation turn by turn, with the tokens of each."""
    from fulmen.sessions import read_stored

    sessions = open_store(store)
    state = sessions.state(name)
    turns = sessions.turns(state)
    num_tokens = len(sessions.ids_of(state))
    _print(f"{name}: {state.model}, {len(turns)} turns, {num_tokens:,} tokens")
    for number, turn in enumerate(turns, 1):
        read = read_stored(turn)
        is_cut = state.num_kept is not None and number == len(turns)
        kept = f", rewound to token {state.num_kept}" if is_cut else ""
        _print(
            f"\n== turn {number}: {turn.num_tokens:,} tokens, answer {turn.num_answer:,}, "
            f"{read.finish_reason}{kept}"
        )
        for message in (*read.messages, read.reply):
            if message.thinking:
                _print(f"-- {message.role}, thinking\n{message.thinking}")
            _print(f"-- {message.role}\n{message.content}")
            for call in message.tool_calls:
                _print(f"{call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})")


@sessions_app.command("fork")
def sessions_fork(
    name: SessionArgument,
    new: Annotated[str, typer.Argument(help="Name of the new session.")],
    turn: TurnOption = None,
    token: TokenOption = None,
    store: StoreOption = None,
) -> None:
    """Make a second session with the same past.

    It costs a few hundred bytes, whatever the length of the conversation.
    """
    open_store(store).fork(name, new, num_turns=turn, num_kept=token)


@sessions_app.command("rewind")
def sessions_rewind(
    name: SessionArgument,
    turn: Annotated[int, typer.Option(help="Number of turns to keep.")],
    token: TokenOption = None,
    store: StoreOption = None,
) -> None:
    """Go back to the end of a turn, or into its answer."""
    sessions = open_store(store)
    sessions.state(name)
    with sessions.used_by_one(name):
        sessions.rewind(name, num_turns=turn, num_kept=token)


@sessions_app.command("rm")
def sessions_rm(
    names: Annotated[list[str], typer.Argument(help="Names of the sessions.")],
    store: StoreOption = None,
) -> None:
    """Delete sessions, and everything that no other one shares.

    A session that cannot be read is deleted too, and a file that is no session.
    """
    sessions = open_store(store)
    for name in names:
        try:
            is_session = sessions.has(name)
        except ValueError:  # no session has such a name, but a stray may
            is_session = False
        with sessions.used_by_one(name) if is_session else nullcontext():
            sessions.remove(name)


@sessions_app.command("export")
def sessions_export(
    name: SessionArgument,
    tokens: Annotated[
        bool,
        typer.Option(
            "--tokens", help="Add ids, log-probabilities and sampling parameters of each answer."
        ),
    ] = False,
    store: StoreOption = None,
) -> None:
    """Print a conversation as JSON.

    The messages can be read by /load of fulmen chat and by other programs. With --tokens, each turn
    is printed with everything that is known of it.
    """
    from fulmen.sessions import export

    exported = export(open_store(store), name, tokens=tokens)
    _print(json.dumps(exported, indent=2, ensure_ascii=False))


@sessions_app.command("check")
def sessions_check(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what is wrong.")] = False,
    store: StoreOption = None,
) -> None:
    """Find everything that is wrong with saved conversations.

    Prints one line per problem; the exit code is 1 if there is any. With --repair, a conversation
    that is damaged goes back to its last readable turn, and what cannot be saved is moved to the
    folder `damaged`.
    """
    from fulmen.sessions import check
    from fulmen.sessions import repair as mend

    sessions = open_store(store)
    if repair:
        for line in mend(sessions):
            _print(line)
    problems = check(sessions)
    for problem in problems:
        _print(str(problem))
    if problems:
        hint = "" if repair else ", fulmen sessions check --repair mends the store"
        print(f"{len(problems)} problems found{hint}", file=sys.stderr)
        raise typer.Exit(1)


def _print(text: str) -> None:
    """Print text that may hold half a surrogate pair, which no terminal takes."""
    print(text.encode(errors="backslashreplace").decode())


def _printable(text: str) -> str:
    """Return one line of text with control characters written out: a stranger's text could move the
    cursor."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
