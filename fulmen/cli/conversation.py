"""A conversation at the terminal: the answer goes to stdout, everything else to stderr.

Thinking is dimmed on stderr, so `fulmen chat QUESTION > answer.txt` holds the answer alone. Ctrl-C
ends the answer that is being written, keeps what there is, and gives the prompt back; a second one
does not wait for the step that runs, and drops the answer.
"""

import itertools
import json
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

from fulmen.catalog import find_card
from fulmen.chat import (
    ChatRequest,
    Completion,
    ContentDelta,
    Event,
    Message,
    ModelError,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Transcript,
    read_messages,
)
from fulmen.cli.lines import LineReader, new_line_reader
from fulmen.cli.output import drop_output, harmless
from fulmen.cli.printer import Printer, new_printer
from fulmen.cli.progress import stderr
from fulmen.cli.remote import RemoteLLM, RemoteRun, RemoteTranscript
from fulmen.files import explain, write_text
from fulmen.llm import LLM, Stream
from fulmen.sampling import SamplingParams
from fulmen.sessions import Session, quoted
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


class Conversation:
    """A transcript at the terminal, and the model that answers."""

    def __init__(
        self,
        llm: LLM | RemoteLLM,
        params: SamplingParams,
        *,
        system: str | None = None,
        show_thinking: bool = True,
        keep_thoughts: bool = False,
        plain: bool = False,
        introduction: str = "",
        greeting: str = "",
        session: Session | None = None,
    ) -> None:
        """Begin a conversation, or go on with a session's.

        plain         print answers as they come; Markdown is rendered otherwise, at a terminal
        introduction  line to be shown once, before anything is said
        greeting      sentences for a person who begins to converse

        With a session, go on with its transcript and keep every answer there.

        Raises ValueError if the session was started with another system prompt.
        """
        self.llm = llm
        self.params = params
        self.show_thinking = show_thinking
        self.plain = plain
        self._introduction = introduction
        self.greeting = greeting
        self.session = session
        self.transcript: Transcript | RemoteTranscript
        if isinstance(llm, RemoteLLM):
            self.transcript = RemoteTranscript()
        elif session is None:
            self.transcript = Transcript(llm.format, llm.tokenizer, keep_thoughts=keep_thoughts)
        else:
            self.transcript = session.transcript
        self._unanswered: list[Message] = [Message("system", system)] if system else []
        """Messages after the last answer: a system prompt, or a conversation that was loaded"""
        self.stats = "no answer yet"
        if session is not None and session.messages:
            found = session.messages[0]
            kept = found.content if found.role == "system" else None
            if system not in (None, kept):
                started = "without a" if kept is None else "with another"
                raise ValueError(
                    f"session {quoted(session.state.name)} was started {started} system prompt, "
                    "--system is for a new one"
                )
            self._unanswered = []

    def introduce(self) -> None:
        """Show the introduction, once."""
        if self._introduction:
            stderr.print(self._introduction, style="dim", markup=False, soft_wrap=True)
        self._introduction = ""

    @property
    def messages(self) -> list[Message]:
        """All messages so far."""
        return [*self.transcript.messages, *self._unanswered]

    @property
    def system(self) -> str | None:
        """The system prompt."""
        messages = self.messages
        return messages[0].content if messages and messages[0].role == "system" else None

    def ask(self, text: str) -> Completion:
        """Send a text, print the answer as it comes, and keep both.

        A turn that failed, or was stopped before anything was said, leaves no trace.
        """
        messages = [*self.messages, Message("user", text)]
        prompt = self.transcript.prompt(messages)
        return self._answer(ChatRequest(messages=messages, prompt=prompt, params=self.params))

    def finish_answer(self) -> Completion:
        """Finish the answer that the session was rewound into."""
        assert self.session is not None
        return self._answer(self.session.resume())

    def ask_again(self) -> None:
        """Ask the last question once more, in place of the answer it got."""
        put_back = self._remember()
        question = self._drop_last()
        try:
            completion = self.ask(question)
        except BaseException:
            put_back()
            raise
        if completion.finish_reason == "abort" and not _says_something(completion):
            put_back()

    def _remember(self) -> Callable[[], None]:
        """Return a function that puts the conversation back as it is now."""
        turns: list[Any] = list(self.transcript.turns)
        unanswered, num_kept = list(self._unanswered), self.transcript.num_kept

        def put_back() -> None:
            self.transcript.turns[:], self._unanswered = turns, unanswered
            self.transcript.num_kept = num_kept

        return put_back

    def undo(self) -> None:
        """Forget the last question and everything after it."""
        self._drop_last()
        self._rewind_session()

    def start_over(self, messages: Sequence[Message]) -> None:
        """Forget everything and go on from these messages."""
        self.transcript.rewind(0)
        self._unanswered = list(messages)
        self._rewind_session()

    def _rewind_session(self) -> None:
        if self.session is not None:
            self.session.rewind(len(self.transcript.turns))

    def _drop_last(self) -> str:
        """Take the last question, and what came after it, out of the transcript; return it."""
        while True:
            asked = [i for i, message in enumerate(self._unanswered) if message.role == "user"]
            if asked:
                question = self._unanswered[asked[-1]].content
                del self._unanswered[asked[-1] :]
                return question
            turns = self.transcript.turns
            if not turns:
                raise ValueError("there is no question yet")
            self._unanswered = [*turns[-1].messages]
            self.transcript.rewind(len(turns) - 1)

    def _answer(self, request: ChatRequest) -> Completion:
        """Print an answer and keep it, if anything was said."""
        completion, has_reader = self._print(self.llm.stream(request))
        if completion.finish_reason == "abort" and not _says_something(completion):
            return completion
        self._unanswered = []
        if self.session is not None:
            self._keep(self.session, request, completion)
        else:
            self.transcript.add(request.messages, completion)
        if not has_reader:
            raise BrokenPipeError
        return completion

    def _keep(self, session: Session, request: ChatRequest, completion: Completion) -> None:
        """Save an answer that was printed; if that fails it is not lost, and says so."""
        try:
            session.save(request.messages, completion)
        except (OSError, ValueError) as error:
            reason = explain(error) if isinstance(error, OSError) else str(error)
            raise ValueError(
                "the answer is printed but was not kept in session "
                f"{quoted(session.state.name)}: {reason}"
            ) from error

    def _print(self, running: Stream | RemoteRun) -> tuple[Completion, bool]:
        """Print an answer as it comes. Returns it, and whether somebody read it to its end."""
        self.introduce()
        started = time.perf_counter()
        first: float | None = None
        is_thinking = False
        has_reader = True
        printer = new_printer(plain=self.plain)
        with Interrupt() as interrupt, running as stream:
            try:
                for events in itertools.chain([stream.prefix_events], stream.updates()):
                    if first is None and (events or stream.tokens):
                        first = time.perf_counter()
                    for event in events:
                        if isinstance(event, ThinkingDelta):
                            is_thinking = self._print_thinking(event.text, is_thinking)
                            continue
                        if is_thinking:
                            stderr.print()
                            is_thinking = False
                        _print_event(event, printer)
                    if interrupt.is_set:
                        break
            except BrokenPipeError:  # what there is of the answer is kept all the same
                drop_output()
                has_reader = False
            finally:
                if has_reader:
                    printer.close()
            completion = stream.finish()
        if is_thinking:
            stderr.print()
        for problem in completion.reply.problems:
            stderr.print(f"problem: {problem}", style="yellow", markup=False)
        self.stats = _stats(completion, started, first)
        if completion.finish_reason != "stop":
            stderr.print(f"[dim]({_REASONS[completion.finish_reason]})[/dim]")
        return completion, has_reader

    def _print_thinking(self, text: str, is_thinking: bool) -> bool:
        if self.show_thinking:
            shown = harmless(text) if stderr.is_terminal else text
            stderr.print(shown, style="dim", end="", markup=False, soft_wrap=True)
        return self.show_thinking or is_thinking


def _says_something(completion: Completion) -> bool:
    reply = completion.reply
    return bool(reply.thinking or reply.content or reply.tool_calls)


def _print_event(event: Event, printer: Printer) -> None:
    match event:
        case ContentDelta(text):
            printer.write(text)
        case ToolCallStart(_, _, name):
            printer.write(f"\n{name}(")
        case ToolCallDelta(_, arguments):
            printer.write(arguments)
        case ToolCallEnd():
            printer.write(")\n")


def _stats(completion: Completion, started: float, first: float | None) -> str:
    now = time.perf_counter()
    usage = completion.usage
    waited = (first or now) - started
    count = usage.num_new_tokens
    rate = (count - 1) / (now - first) if first and count > 1 and now > first else 0.0
    text = (
        f"{usage.num_prompt_tokens} prompt tokens read in {waited:.2f} s, "
        f"{usage.num_cached_tokens} of them from the cache, "
        f"{count} new tokens ({usage.num_thinking_tokens} of thought) at {rate:.1f} tokens/s"
    )
    if usage.num_reread_tokens:
        text += f"\n{usage.num_reread_tokens} known tokens were read again: {usage.reread_reason}"
    return text


_REASONS = {
    "length": "stopped at the token limit",
    "repetition": "stopped: the answer repeated itself",
    "abort": "stopped",
    "error": "stopped by an error",
}


def describe(name: str, llm: LLM) -> str:
    """Return one line about a model that talks: its name, and how long its context is.

    name  the model as it was named
    """
    card = find_card(name)
    longest = llm.engine.model.config.max_position_embeddings
    held = llm.engine.max_model_len
    text = f"{name if card is None else card.title}, a context of {held:,} tokens"
    if held < min(longest, llm.engine.config.max_model_len or longest):
        text += f"; the model's has {longest:,}, a larger --kv-cache holds more of it"
    return text


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
