"""fulmen sessions: conversations on disk."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fulmen.cli.options import StoreOption, open_store, print_table

sessions_app = typer.Typer(
    help="Conversations on disk: list, show, fork, take back, remove, export.",
    no_args_is_help=True,
)

SessionArgument = Annotated[str, typer.Argument(help="The session's name.")]
TurnOption = Annotated[
    int | None, typer.Option(help="After this many turns; fulmen sessions show counts them.")
]
TokenOption = Annotated[
    int | None, typer.Option(help="After this many tokens of that turn's answer.")
]


@sessions_app.command("list")
def sessions_list(store: StoreOption = None) -> None:
    """All sessions, the last used first."""
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
            head = sessions.state(name)
            turns = sessions.turns(head)
            question = last_question(turns)[:60]
        except ValueError as error:
            table.add_row(name, "", "", "", "", "", Text(str(error)))
            continue
        when = datetime.fromtimestamp(head.used or head.created).strftime("%Y-%m-%d %H:%M")
        size = f"{sessions.chunk_bytes(head) / 2**20:.1f}"
        tokens = f"{len(sessions.ids_of(head)):,}"
        model = Path(head.model).name
        count = str(len(turns))
        table.add_row(name, count, tokens, size, when, Text(model), Text(question))
    print_table(table)


@sessions_app.command("show")
def sessions_show(name: SessionArgument, store: StoreOption = None) -> None:
    """What was said, turn by turn, with the tokens of each."""
    from fulmen.sessions import Exchange

    sessions = open_store(store)
    head = sessions.state(name)
    turns = sessions.turns(head)
    print(f"{name}: {head.model}, {len(turns)} turns, {len(sessions.ids_of(head)):,} tokens")
    for number, turn in enumerate(turns, 1):
        exchange = Exchange.of(turn)
        is_cut = head.num_kept is not None and number == len(turns)
        kept = f", taken back to token {head.num_kept}" if is_cut else ""
        print(
            f"\n== turn {number}: {turn.num_shared + len(turn.new_ids):,} tokens, answer "
            f"{turn.num_answer:,}, {exchange.finish_reason}{kept}"
        )
        for message in (*exchange.messages, exchange.reply):
            if message.thinking:
                print(f"-- {message.role}, thinking\n{message.thinking}")
            print(f"-- {message.role}\n{message.content}")
            for call in message.tool_calls:
                print(f"{call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})")


@sessions_app.command("fork")
def sessions_fork(
    name: SessionArgument,
    new: Annotated[str, typer.Argument(help="The new session's name.")],
    turn: TurnOption = None,
    token: TokenOption = None,
    store: StoreOption = None,
) -> None:
    """A second session with the same past, or its beginning; costs a few hundred bytes."""
    open_store(store).fork(name, new, num_turns=turn, num_kept=token)


@sessions_app.command("rewind")
def sessions_rewind(
    name: SessionArgument,
    turn: Annotated[int, typer.Option(help="Keep this many turns.")],
    token: TokenOption = None,
    store: StoreOption = None,
) -> None:
    """Take a session back to the end of a turn, or to a token of its answer."""
    sessions = open_store(store)
    sessions.state(name)
    with sessions.used_by_one(name):
        sessions.rewind(name, num_turns=turn, num_kept=token)


@sessions_app.command("rm")
def sessions_rm(
    names: Annotated[list[str], typer.Argument(help="The sessions' names.")],
    store: StoreOption = None,
) -> None:
    """Forget sessions, and all that no other one shares with them."""
    sessions = open_store(store)
    for name in names:
        sessions.state(name)
        with sessions.used_by_one(name):
            sessions.remove(name)


@sessions_app.command("export")
def sessions_export(
    name: SessionArgument,
    tokens: Annotated[
        bool,
        typer.Option("--tokens", help="With ids, log-probabilities and sampling of each answer."),
    ] = False,
    store: StoreOption = None,
) -> None:
    """Print a session as JSON: its messages as /load of fulmen chat and other programs read them,
    or every turn with its tokens."""
    from fulmen.sessions import export

    print(json.dumps(export(open_store(store), name, tokens=tokens), indent=2, ensure_ascii=False))
