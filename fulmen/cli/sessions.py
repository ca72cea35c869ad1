"""fulmen sessions: conversations on disk."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fulmen.cli import completion
from fulmen.cli.help import Command, Group, examples
from fulmen.cli.options import JsonOption, StoreOption, open_store
from fulmen.cli.output import print_json, print_table
from fulmen.files import printable

sessions_app = typer.Typer(
    cls=Group,
    help="List, show, fork, rewind and export conversations.",
    no_args_is_help=True,
    epilog=examples("""
fulmen sessions list                       names, the last used first
fulmen chat --session trip                 go on with one, or begin it
fulmen sessions show trip                  read it
fulmen sessions fork trip trip2 --turn 3   go another way from turn 3
"""),
)

_NO_ANSWER: Final = "no answer yet"
"""State of a session whose first answer was not finished, or was taken back"""

SessionArgument = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Name of the session.", autocompletion=completion.sessions),
]
TurnOption = Annotated[
    int | None, typer.Option(help="Number of turns to keep; fulmen sessions show counts them.")
]
TokenOption = Annotated[
    int | None, typer.Option(help="Number of tokens to keep of the last of those turns' answer.")
]


@sessions_app.command(
    "list",
    cls=Command,
    epilog=examples(
        """
fulmen sessions list
fulmen sessions list --json
""",
        {
            "JSON": """
a list of: name, turns, tokens, bytes, last_used (seconds since 1970), model,
last_question; what cannot be read: name, problem
"""
        },
    ),
)
def sessions_list(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List all conversations, the last used first."""
    from datetime import datetime

    from rich.table import Table
    from rich.text import Text

    from fulmen.sessions import last_question

    sessions = open_store(store)
    rows: list[dict[str, Any]] = []
    for name in sessions.names():
        try:
            state = sessions.state(name)
            turns = sessions.turns(state)
            rows.append(
                {
                    "name": name,
                    "turns": len(turns),
                    "tokens": len(sessions.ids_of(state)),
                    "bytes": sessions.chunk_bytes(state),
                    "last_used": state.used or state.created,
                    "model": state.model,
                    "last_question": last_question(turns),
                }
            )
        except ValueError as error:
            rows.append({"name": name, "problem": str(error)})
            print(printable(str(error)), file=sys.stderr)
    rows += [{"name": stray, "problem": "is no session"} for stray in sessions.strays()]
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "turns", "tokens", "MiB", "last used", "model", "last question"):
        right = column in ("turns", "tokens", "MiB")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for row in rows:
        shown = Text(printable(row["name"]))
        if "problem" in row:
            said = "is no session" if row["problem"] == "is no session" else "cannot be read"
            table.add_row(shown, "", "", "", "", "", said)
            continue
        table.add_row(
            shown,
            str(row["turns"]),
            f"{row['tokens']:,}",
            f"{row['bytes'] / 2**20:.1f}",
            datetime.fromtimestamp(row["last_used"]).strftime("%Y-%m-%d %H:%M"),
            Text(printable(Path(row["model"]).name)),
            Text(printable(row["last_question"][:60]) if row["turns"] else _NO_ANSWER),
        )
    print_table(table)


@sessions_app.command(
    "show",
    cls=Command,
    epilog=examples(
        "fulmen sessions show trip",
        {
            "JSON": """
name, model, tokens; turns: number, tokens, answer_tokens, finish_reason,
messages, rewound_to (if the answer is to be finished)
"""
        },
    ),
)
def sessions_show(
    name: SessionArgument, store: StoreOption = None, as_json: JsonOption = False
) -> None:
    """Print a conversation turn by turn."""
    from fulmen.sessions import read_stored

    sessions = open_store(store)
    state = sessions.state(name)
    turns = sessions.turns(state)
    num_tokens = len(sessions.ids_of(state))
    values: list[dict[str, Any]] = []
    size = f"{len(turns)} turns, {num_tokens:,} tokens" if turns else _NO_ANSWER
    lines = [f"{name}: {state.model}, {size}"]
    for number, turn in enumerate(turns, 1):
        read = read_stored(turn)
        is_cut = state.num_kept is not None and number == len(turns)
        messages = (*read.messages, read.reply)
        values.append(
            {
                "number": number,
                "tokens": turn.num_tokens,
                "answer_tokens": turn.num_answer,
                "finish_reason": read.finish_reason,
                "messages": [message.to_dict() for message in messages],
            }
            | ({"rewound_to": state.num_kept} if is_cut else {})
        )
        kept = f", rewound to token {state.num_kept}" if is_cut else ""
        lines.append(
            f"\n== turn {number}: {turn.num_tokens:,} tokens, answer {turn.num_answer:,}, "
            f"{read.finish_reason}{kept}"
        )
        for message in messages:
            if message.thinking:
                lines.append(f"-- {message.role}, thinking\n{message.thinking}")
            lines.append(f"-- {message.role}\n{message.content}")
            lines += [
                f"{call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})"
                for call in message.tool_calls
            ]
    if as_json:
        print_json({"name": name, "model": state.model, "tokens": num_tokens, "turns": values})
        return
    print("\n".join(lines))


@sessions_app.command(
    "fork",
    cls=Command,
    epilog=examples("""
fulmen sessions fork trip trip2
fulmen sessions fork trip trip2 --turn 3      only its first three turns
"""),
)
def sessions_fork(
    name: SessionArgument,
    new: Annotated[str, typer.Argument(metavar="NEW", help="Name of the new session.")],
    turn: TurnOption = None,
    token: TokenOption = None,
    store: StoreOption = None,
) -> None:
    """Begin a second conversation with the same past.

    It takes a few hundred bytes, whatever the length of the conversation.
    """
    open_store(store).fork(name, new, num_turns=turn, num_kept=token)


@sessions_app.command(
    "rewind", cls=Command, epilog=examples("fulmen sessions rewind trip --turn 3")
)
def sessions_rewind(
    name: SessionArgument,
    turn: Annotated[int, typer.Option(help="Number of turns to keep.")],
    token: TokenOption = None,
    store: StoreOption = None,
) -> None:
    """Go back to the end of a turn, or into its answer.

    What came after is forgotten, unless another session has it. fulmen chat finishes an answer you
    rewound into.
    """
    sessions = open_store(store)
    sessions.state(name)
    with sessions.used_by_one(name):
        sessions.rewind(name, num_turns=turn, num_kept=token)


@sessions_app.command("rm", cls=Command, epilog=examples("fulmen sessions rm trip trip2"))
def sessions_rm(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME", help="Names of the sessions.", autocompletion=completion.sessions
        ),
    ],
    store: StoreOption = None,
) -> None:
    """Delete conversations.

    What another session shares stays. A session that cannot be read is deleted too, and a file that
    is no session.
    """
    sessions = open_store(store)
    for name in names:
        try:
            is_session = sessions.has(name)
        except ValueError:  # no session has such a name, but a stray may
            is_session = False
        with sessions.used_by_one(name) if is_session else nullcontext():
            sessions.remove(name)


@sessions_app.command(
    "export",
    cls=Command,
    epilog=examples("""
fulmen sessions export trip > trip.json       /load in a chat reads it
fulmen sessions export trip --tokens          ids and log-probabilities too
"""),
)
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
    print_json(exported, indent=2)


@sessions_app.command(
    "check",
    cls=Command,
    epilog=examples(
        """
fulmen sessions check
fulmen sessions check --repair
""",
        {"JSON": "ok, problems: path, reason; repaired: a list of sentences"},
    ),
)
def sessions_check(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what is wrong.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find what is wrong with saved conversations.

    Prints one line per problem; the exit code is 1 if there is any. With --repair, a conversation
    that is damaged goes back to its last readable turn, and what cannot be saved is moved to the
    folder `damaged`.
    """
    from fulmen.sessions import check
    from fulmen.sessions import repair as mend

    sessions = open_store(store)
    repaired = mend(sessions) if repair else []
    problems = check(sessions)
    if as_json:
        found = [{"path": str(problem.path), "reason": problem.reason} for problem in problems]
        print_json({"ok": not problems, "problems": found, "repaired": repaired})
    else:
        for line in (*repaired, *problems):
            print(line)
    if problems:
        hint = "" if repair else ", fulmen sessions check --repair mends the store"
        print(f"{len(problems)} problems found{hint}", file=sys.stderr)
        raise typer.Exit(1)
