"""A conversation at the terminal: the answer goes to stdout, everything else to stderr.

Thinking is dimmed on stderr, so `fulmen chat QUESTION > answer.txt` holds the answer alone. Ctrl-C
ends the answer that is being written, keeps what there is, and gives the prompt back; a second one
does not wait for the step that runs, and drops the answer.
"""

import itertools
import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

from fulmen.chat import (
    ContentDelta,
    Message,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from fulmen.cli.progress import stderr
from fulmen.files import explain, write_text
from fulmen.llm import LLM, ChatStream, Completion
from fulmen.sampling import SamplingParams
from fulmen.sessions import Session
from fulmen.units import parse_count

HELP = """\
/help                what can be typed here
/exit, /quit         leave; so does Ctrl-D
/new                 forget the conversation, keep the system prompt
/system [TEXT]       show the system prompt, or set it and begin anew; /system none clears it
/retry               drop the last answer and ask again
/undo                drop the last question and its answer
/set [NAME VALUE]    show how answers are sampled, or change it: /set temperature 0.3
/save FILE           write the conversation as JSON
/load FILE           read one back
/stats               tokens and speed of the last answer
//TEXT               send a text that begins with a slash
A line that ends with \\ goes on in the next."""


class Interrupt:
    """Ctrl-C as a flag that is looked at between tokens; a second one raises as usual."""

    def __init__(self) -> None:
        self.is_set = False

    def __enter__(self) -> "Interrupt":
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True


@dataclass(slots=True)
class Conversation:
    """The messages so far, how answers are sampled, and the model that gives them."""

    llm: LLM
    params: SamplingParams
    system: str | None = None
    show_thinking: bool = True
    turns: list[Message] = field(default_factory=list)
    last: str = "no answer yet"
    session: Session | None = None
    """Where every answer is kept"""

    def attach(self, session: Session) -> None:
        """Goes on with what a session has said, and keeps what is said from now on."""
        messages = session.messages
        if messages and messages[0].role == "system":
            system: str | None = messages.pop(0).content
        else:
            system = None
        if messages and self.system not in (None, system):
            raise ValueError(
                f"session {session.head.name!r} was begun "
                f"{'without' if system is None else 'with another'} system prompt, --system is for "
                "a new one"
            )
        self.system = system if messages else self.system
        self.session, self.turns = session, messages

    def messages(self) -> list[Message]:
        """What the model is shown."""
        return ([Message("system", self.system)] if self.system else []) + self.turns

    def ask(self, text: str) -> Completion:
        """Sends a text, prints the answer as it comes, and keeps both.

        A turn that failed, or was stopped before anything was said, leaves no trace.
        """
        before = list(self.turns)
        self.turns.append(Message("user", text))
        return self._keep(lambda: self.llm.stream(self.messages(), params=self.params), before)

    def go_on(self) -> Completion:
        """Finishes the answer that the session was taken back into."""
        assert self.session is not None
        return self._keep(self.session.resume, list(self.turns))

    def _keep(self, begin: Callable[[], ChatStream], before: list[Message]) -> Completion:
        """Prints an answer and keeps it, or makes the turns what they were before."""
        try:
            completion = self._answer(begin())
        except BaseException:
            self.turns = before
            raise
        reply = completion.reply
        said = reply.thinking or reply.content or reply.tool_calls
        if completion.finish_reason == "abort" and not said:
            self.turns = before
            return completion
        asked = self.messages()
        self.turns.append(reply.message())
        if self.session is not None:
            self.session.save(asked, completion)
        return completion

    def ask_again(self) -> None:
        """Asks the last question once more, in place of the answer it got."""
        before = list(self.turns)
        question = self.drop_last()
        try:
            self.ask(question)
        except BaseException:
            self.turns = before
            raise

    def drop_last(self) -> str:
        """Forgets the last question and what came after it; returns the question."""
        asked = [i for i, message in enumerate(self.turns) if message.role == "user"]
        if not asked:
            raise ValueError("there is no question yet")
        question = self.turns[asked[-1]].content
        del self.turns[asked[-1] :]
        return question

    def _answer(self, running: ChatStream) -> Completion:
        started = time.perf_counter()
        first: float | None = None
        is_thinking = False
        with Interrupt() as interrupt, running as stream:
            for events in itertools.chain([stream.begun_items], stream.updates()):
                if first is None and stream.outputs:
                    first = time.perf_counter()
                for event in events:
                    if isinstance(event, ThinkingDelta):
                        is_thinking = self._print_thinking(event.text, is_thinking)
                        continue
                    if is_thinking:
                        stderr.print()
                        is_thinking = False
                    self._print_event(event)
                if interrupt.is_set:
                    break
            completion = stream.finish()
        if is_thinking:
            stderr.print()
        if completion.reply.content or completion.reply.tool_calls:
            print(flush=True)
        for problem in completion.reply.problems:
            stderr.print(f"problem: {problem}", style="yellow", markup=False)
        self._remember(completion, started, first)
        if completion.finish_reason != "stop":
            stderr.print(f"[dim]({_REASONS[completion.finish_reason]})[/dim]")
        return completion

    def _print_thinking(self, text: str, is_thinking: bool) -> bool:
        if self.show_thinking:
            stderr.print(text, style="dim", end="", markup=False, soft_wrap=True)
        return self.show_thinking or is_thinking

    @staticmethod
    def _print_event(event: object) -> None:
        match event:
            case ContentDelta(text):
                print(text, end="", flush=True)
            case ToolCallStart(_, _, name):
                print(f"\n{name}(", end="", flush=True)
            case ToolCallDelta(_, arguments):
                print(arguments, end="", flush=True)
            case ToolCallEnd():
                print(")", flush=True)

    def _remember(self, completion: Completion, started: float, first: float | None) -> None:
        now = time.perf_counter()
        count = len(completion.outputs)
        waited = (first or now) - started
        rate = (count - 1) / (now - first) if first and count > 1 and now > first else 0.0
        self.last = (
            f"{len(completion.prompt_ids)} prompt tokens read in {waited:.2f} s, "
            f"{count} new tokens ({completion.num_thinking_tokens} of thought) "
            f"at {rate:.1f} tokens/s"
        )


_REASONS = {
    "length": "stopped at the token limit",
    "repetition": "stopped: the answer had begun to repeat itself",
    "abort": "stopped",
}


def converse(conversation: Conversation) -> None:
    """Reads and answers until the input ends."""
    import readline  # noqa: F401  line editing and history for input()

    stderr.print("[dim]/help lists the commands, Ctrl-D leaves[/dim]")
    if conversation.session is not None:
        _show_last(conversation)
    while True:
        try:
            text = _read_text()
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
        except ValueError as error:
            stderr.print(str(error), style="red", markup=False)
            if "the context holds" in str(error):
                stderr.print("[dim]/undo and /new make room[/dim]")
        except KeyboardInterrupt:
            stderr.print()


def _show_last(conversation: Conversation) -> None:
    """Where a session stands; an answer it was taken back into is finished."""
    session = conversation.session
    assert session is not None
    if session.head.cut is not None:
        stderr.print("[dim]going on with the answer it was taken back into:[/dim]")
        conversation.go_on()
    elif conversation.turns:
        stderr.print(
            f"[dim]{len(conversation.turns)} messages, {session.num_restored} tokens need not be "
            "read again; the last answer was:[/dim]"
        )
        stderr.print(conversation.turns[-1].content, markup=False)


def _read_text() -> str:
    lines = [input("> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input("  "))
    return "\n".join(lines)


def _command(conversation: Conversation, text: str) -> bool:
    """Runs a slash command; False means leave."""
    name, _, rest = text.partition(" ")
    rest = rest.strip()
    match name:
        case "/exit" | "/quit":
            return False
        case "/help":
            stderr.print(HELP, markup=False)
        case "/new":
            conversation.turns.clear()
        case "/system":
            if rest:
                conversation.system = None if rest == "none" else rest
                conversation.turns.clear()
            stderr.print(conversation.system or "no system prompt", markup=False)
        case "/retry":
            conversation.ask_again()
        case "/undo":
            conversation.drop_last()
        case "/set":
            _set(conversation, rest)
        case "/save":
            _save(conversation, _path(rest, name))
        case "/load":
            _load(conversation, _path(rest, name))
        case "/stats":
            stderr.print(conversation.last)
        case _:
            raise ValueError(f"{name} is no command, /help lists them")
    if conversation.session is not None and name in ("/new", "/system", "/undo", "/load"):
        conversation.session.go_back(conversation.messages())
    return True


def _set(conversation: Conversation, rest: str) -> None:
    name, _, value = rest.partition(" ")
    known = {f.name: getattr(conversation.params, f.name) for f in fields(SamplingParams)}
    if not name:
        for key, current in known.items():
            stderr.print(f"{key} = {current}", markup=False)
        return
    name = name.replace("-", "_")
    if name not in known:
        raise ValueError(f"{name} is no sampling parameter, known are {', '.join(known)}")
    try:
        parsed = None if value == "none" else json.loads(value)
    except json.JSONDecodeError:
        parsed = value  # a stop text may be typed without quotes
        if name in ("max_tokens", "thinking_budget"):
            parsed = parse_count(value)
    if name in ("json_schema", "regex") and parsed is not None:
        parsed = value
    if isinstance(known[name], tuple):
        parsed = tuple(parsed) if isinstance(parsed, list) else (parsed,) * (parsed is not None)
    change: dict[str, Any] = {name: parsed}
    conversation.params = replace(conversation.params, **change)


def _path(text: str, command: str) -> Path:
    if not text:
        raise ValueError(f"{command} needs the name of a file")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text} is no path: {error}") from None


def _save(conversation: Conversation, path: Path) -> None:
    messages = [message.to_dict() for message in conversation.messages()]
    write_text(path, json.dumps(messages, indent=2, ensure_ascii=False) + "\n")
    stderr.print(f"{len(messages)} messages written to {path}", markup=False)


def _load(conversation: Conversation, path: Path) -> None:
    from fulmen.chat import read_messages

    try:
        messages = read_messages(json.loads(path.read_text("utf-8")))
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} holds no conversation: {error}") from None
    system = messages[0].content if messages and messages[0].role == "system" else None
    conversation.system = system
    conversation.turns = messages[1:] if system is not None else messages
    stderr.print(f"{len(messages)} messages read from {path}", markup=False)
