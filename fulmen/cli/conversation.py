"""A conversation at the terminal: the answer goes to stdout, everything else to stderr.

Thinking is dimmed on stderr, so `fulmen chat QUESTION > answer.txt` holds the answer alone. Ctrl-C
ends the answer that is being written, keeps what there is, and gives the prompt back; a second one
does not wait for the step that runs, and drops the answer.
"""

import itertools
import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from fulmen.catalog import find_card
from fulmen.chat import (
    ChatRequest,
    Completion,
    ContentDelta,
    Event,
    Message,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Transcript,
)
from fulmen.cli.output import drop_output, harmless
from fulmen.cli.printer import Printer, new_printer
from fulmen.cli.progress import stderr
from fulmen.cli.remote import RemoteLLM, RemoteRun, RemoteTranscript
from fulmen.files import explain
from fulmen.llm import LLM, Stream
from fulmen.sampling import SamplingParams
from fulmen.sessions import Session, quoted


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
