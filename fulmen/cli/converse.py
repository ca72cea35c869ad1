"""Conversation that is typed: lines are questions, or slash commands, until the input ends."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fulmen.chat import Message, ModelError, read_messages
from fulmen.cli.conversation import Conversation
from fulmen.cli.lines import LineReader, new_line_reader
from fulmen.cli.printer import new_printer
from fulmen.cli.progress import stderr
from fulmen.cli.remote import RemoteLLM
from fulmen.files import explain, write_text
from fulmen.sampling import SamplingParams
from fulmen.sessions import Session
from fulmen.units import parse_count

HELP = """\
/help                list the commands
/exit, /quit         leave; so does Ctrl-D
/new                 forget the conversation, keep the system prompt
/system [TEXT]       show the system prompt, or set it and start over; /system none clears it
/retry               drop the last answer and ask again
/undo                drop the last question and its answer
/set [NAME VALUE]    show how answers are sampled, or change it: /set temperature 0.3
/save FILE           write the conversation as JSON
/load FILE           read one back
/stats               tokens and speed of the last answer
//TEXT               send a text that begins with a slash
A line that ends with \\ goes on in the next; Alt-Enter begins one too.
Ctrl-C ends an answer and keeps what there is. Up and Ctrl-R find earlier lines."""
_OF_A_SESSION = """
The conversation is kept as {name}; /new, /undo and /load take turns out of it for good.
fulmen chat --session {name}       go on with it
fulmen sessions show {name}        print it
fulmen sessions fork {name} NEW    begin another with the same past"""
_COMMANDS = tuple(
    word.strip(" ,")
    for line in HELP.splitlines()
    if line.startswith("/")
    for word in line.split("  ")[0].split()
    if word.startswith("/") and not word.startswith("//")
)
"""Commands, to be completed"""


def converse(conversation: Conversation) -> None:
    """Read and answer until the input ends."""
    reader = new_line_reader(_COMMANDS)
    if conversation.greeting and not conversation.transcript.turns:
        stderr.print(conversation.greeting, markup=False, soft_wrap=True)
    conversation.introduce()
    stderr.print("[dim]/help lists the commands, Ctrl-D leaves[/dim]")
    if conversation.session is not None:
        _show_last(conversation, conversation.session)
    else:
        stderr.print("[dim]this conversation is not kept, --session NAME would keep it[/dim]")
    _converse(conversation, reader)
    if conversation.session is not None and conversation.transcript.turns:
        name = conversation.session.state.name
        stderr.print(
            f"fulmen chat --session {name} goes on here", style="dim", markup=False, soft_wrap=True
        )


def _converse(conversation: Conversation, reader: LineReader) -> None:
    while True:
        try:
            text = reader.read()
        except EOFError:
            stderr.print()
            return
        except KeyboardInterrupt:
            stderr.print("\n[dim]Ctrl-D leaves[/dim]")
            continue
        if not text.strip():
            continue
        try:
            if text.startswith("/") and not text.startswith("//"):
                if not _command(conversation, text):
                    return
            else:
                conversation.ask(text.removeprefix("/") if text.startswith("//") else text)
        except OSError as error:
            stderr.print(explain(error), style="red", markup=False)
        except ModelError as error:
            stderr.print(str(error), style="red", markup=False)
        except ValueError as error:
            stderr.print(str(error), style="red", markup=False)
            if "the context holds" in str(error):
                stderr.print("[dim]/undo and /new make room[/dim]")
        except KeyboardInterrupt:
            stderr.print()


def _show_last(conversation: Conversation, session: Session) -> None:
    """Show where a session stands, or finish the answer it was rewound into."""
    messages = conversation.messages
    if session.transcript.num_kept is not None:
        stderr.print("[dim]finishing the answer that the session was rewound into:[/dim]")
        conversation.finish_answer()
    elif messages:
        stderr.print(
            f"[dim]{len(messages)} messages, {session.num_restored} tokens need not be read again; "
            "the last answer was:[/dim]"
        )
        printer = new_printer(plain=conversation.plain)
        printer.write(messages[-1].content)
        printer.close()


def _command(conversation: Conversation, text: str) -> bool:
    """Run a slash command; False means leave."""
    name, _, rest = text.partition(" ")
    rest = rest.strip()
    match name:
        case "/exit" | "/quit":
            return False
        case "/help":
            stderr.print(HELP, markup=False, soft_wrap=True)
            if conversation.session is not None:
                said = _OF_A_SESSION.format(name=conversation.session.state.name)
                stderr.print(said, markup=False, soft_wrap=True)
        case "/new":
            conversation.start_over(_system_messages(conversation.system))
        case "/system":
            if rest:
                conversation.start_over(_system_messages(None if rest == "none" else rest))
            stderr.print(conversation.system or "no system prompt", markup=False)
        case "/retry":
            conversation.ask_again()
        case "/undo":
            conversation.undo()
        case "/set":
            _set(conversation, rest)
        case "/save":
            _save(conversation, _path(rest, name))
        case "/load":
            _load(conversation, _path(rest, name))
        case "/stats":
            stderr.print(conversation.stats, markup=False)
        case _:
            raise ValueError(f"{name} is no command, /help lists them")
    return True


def _system_messages(system: str | None) -> list[Message]:
    return [Message("system", system)] if system else []


def _set(conversation: Conversation, rest: str) -> None:
    name, _, value = rest.partition(" ")
    known = {f.name: getattr(conversation.params, f.name) for f in fields(SamplingParams)}
    remote = conversation.llm if isinstance(conversation.llm, RemoteLLM) else None
    if not name:
        for key, current in known.items():
            if remote is None or key in remote.sent:
                stderr.print(f"{key} = {current}", markup=False)
        if remote is not None:
            stderr.print("the server decides about all others")
        return
    name = name.replace("-", "_")
    if name not in known:
        raise ValueError(f"{name} is no sampling parameter, known are {', '.join(known)}")
    try:
        parsed = None if value == "none" else json.loads(value)
    except (json.JSONDecodeError, RecursionError):
        parsed = value  # a stop text may be typed without quotes
        if name in ("max_tokens", "thinking_budget"):
            parsed = parse_count(value)
    if name in ("json_schema", "regex") and parsed is not None:
        parsed = value
    if isinstance(known[name], tuple):
        parsed = tuple(parsed) if isinstance(parsed, list) else (parsed,) * (parsed is not None)
    change: dict[str, Any] = {name: parsed}
    conversation.params = replace(conversation.params, **change)
    if remote is not None:
        remote.send(name)


def _path(text: str, command: str) -> Path:
    if not text:
        raise ValueError(f"{command} needs the name of a file")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text} is no path: {error}") from None


def _save(conversation: Conversation, path: Path) -> None:
    messages = [message.to_dict() for message in conversation.messages]
    write_text(path, json.dumps(messages, indent=2, ensure_ascii=False) + "\n")
    stderr.print(f"{len(messages)} messages written to {path}", markup=False)


def _load(conversation: Conversation, path: Path) -> None:
    try:
        messages = read_messages(json.loads(path.read_text("utf-8")))
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} holds no conversation: {error}") from None
    conversation.start_over(messages)
    stderr.print(f"{len(messages)} messages read from {path}", markup=False)
