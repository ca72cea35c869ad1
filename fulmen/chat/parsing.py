"""The frame of the streaming parsers: a buffer, the two texts of a reply, and the sum of events.

Parsing a whole text is feeding it in one piece and finishing. A parser decides a thing
only when no later character could change it, so every way of cutting a text gives the same events
up to where their fragments are cut, and the Reply is the sum of exactly those events. Text that is
held back is kept in pieces and joined once, so time is linear in the text's length.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Protocol

from fulmen.chat.events import (
    ContentDelta,
    Event,
    ProblemFound,
    Reply,
    ReplySum,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStart,
)
from fulmen.chat.messages import CallIds, Tool, random_call_id


@dataclass(frozen=True, slots=True)
class CodePlace:
    """Place in a Markdown text: inside of code, where a tag is quoted, or not.

    A code span is open after an odd number of backticks in a line, a code block from a fence, a
    line that begins with three or more ` or ~, to a line of as many.
    """

    fence: tuple[str, int] | None = None
    """Mark of the open fence, and the number of them"""
    mark: str = ""
    """First character of the line after white space; empty in a blank line"""
    num_marks: int = 0
    """Number of marks, ` or ~, that begin the line"""
    is_after_marks: bool = False
    """True if the line goes on after them"""
    has_text: bool = False
    """True if it goes on with more than white space"""
    num_backticks: int = 0
    """Backticks of the line"""

    @property
    def is_code(self) -> bool:
        if self.fence is not None:
            return not self._is_fence()
        return self._is_fence() or self.num_backticks % 2 == 1

    def after(self, text: str) -> "CodePlace":
        """Return the place behind a text."""
        first, *lines = text.split("\n")
        place = self._after_part(first)
        for line in lines:
            fence = place.fence
            if place._is_fence():
                fence = None if fence else (place.mark, place.num_marks)
            place = CodePlace(fence)._after_part(line)
        return place

    def _is_fence(self) -> bool:
        """Return True if the line so far opens a fence, or closes the open one."""
        if self.mark not in ("`", "~") or self.num_marks < 3:
            return False
        if self.fence is not None:
            mark, num_marks = self.fence
            return self.mark == mark and self.num_marks >= num_marks and not self.has_text
        return self.mark == "~" or self.num_backticks == self.num_marks

    def _after_part(self, text: str) -> "CodePlace":
        """Return the place behind a part of the line."""
        rest = text if self.mark else text.lstrip()
        if not rest:
            return self
        mark, num_marks, is_after_marks = self.mark or rest[0], self.num_marks, self.is_after_marks
        if mark in "`~" and not is_after_marks:
            length = len(rest)
            rest = rest.lstrip(mark)
            num_marks += length - len(rest)
        is_after_marks = is_after_marks or bool(rest)
        has_text = self.has_text or bool(rest.strip())
        num_backticks = self.num_backticks + text.count("`")
        return CodePlace(self.fence, mark, num_marks, is_after_marks, has_text, num_backticks)


class Parser(Protocol):
    """Reader of one completion, as it comes."""

    @property
    def is_thinking(self) -> bool:
        """True if the text so far ends inside the thought."""

    @property
    def code_place(self) -> CodePlace | None:
        """Place in the content that the text so far ends at, if a thought may follow an earlier one
        there: an opening tag that came next would open it, unless it stood in code."""

    num_thoughts: int
    """Number of thoughts so far, the one that the prompt opened included"""
    later_thoughts: list[int]
    """Places in the text, in characters, of the opening tags of all thoughts but the first"""
    has_plain_values: bool
    """True if no argument of a call holds a tag of the format, because a grammar sees to it: then
    the first closing tag ends a value"""

    def feed(self, piece: str) -> list[Event]:
        """Return the events that this piece of text settles."""

    def finish_events(self) -> list[Event]:
        """End the text and return the last events; asking again returns them again."""

    def finish(self) -> Reply:
        """End the text and return the sum of all events, the last ones included."""


class StreamParser(ABC):
    """Buffer and loop of a parser; a subclass decides in `_step` about the text in the buffer."""

    def __init__(self, tools: tuple[Tool, ...], new_call_id: CallIds) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._new_call_id = new_call_id
        self._num_calls = 0
        self._buffer = ""
        self._position = 0
        self._is_final = False
        self._events: list[Event] = []
        self._last_events: list[Event] | None = None
        self._sum = ReplySum()
        self._is_thinking = False
        self._is_call_open = False  # known at the end of the text
        self.num_thoughts = 0
        self.later_thoughts: list[int] = []
        self.has_plain_values = False
        self._num_read = 0  # characters consumed
        self._is_later_thought = False
        self._code = CodePlace()
        self._thinking = _Thinking(self._emit)
        self._content = Content(self._emit)

    @property
    def is_thinking(self) -> bool:
        return self._is_thinking

    @property
    def code_place(self) -> CodePlace | None:
        if not self.num_thoughts or self._is_thinking or not self._is_in_text():
            return None
        return self._code.after(self._buffer[self._position :])

    def feed(self, piece: str) -> list[Event]:
        if self._is_final:
            raise ValueError("the text has already ended, start a new parser for a new text")
        self._buffer = self._buffer[self._position :] + piece
        self._position = 0
        return self._run()

    def finish_events(self) -> list[Event]:
        if self._last_events is None:
            self._is_final = True
            self._last_events = self._run()
        return list(self._last_events)

    def finish(self) -> Reply:
        self.finish_events()
        return self._sum.reply(
            is_thinking_closed=not self._is_thinking, is_call_open=self._is_call_open
        )

    def _run(self) -> list[Event]:
        while self._step():
            pass
        if self._is_final:
            self._end()
        events, self._events = list(_joined(self._events)), []
        for event in events:
            self._sum.add(event)
        return events

    @abstractmethod
    def _step(self) -> bool:
        """Consume the text that can be decided now; return False when no more of it can."""

    def _is_in_text(self) -> bool:
        """Return True outside of a tool block."""
        return True

    def _end(self) -> None:
        """Settle all that the end of the text leaves open."""
        if self._is_thinking and self._is_later_thought:
            self._problem(
                "a later thought is not closed, all text after its tag is kept as thought"
            )
        self._content.finish()

    def _take(self, end: int) -> str:
        """Consume the buffer up to `end`."""
        text = self._buffer[self._position : end]
        self._position = end
        self._num_read += len(text)
        return text

    def _put_back(self, text: str) -> None:
        """Put the text that was consumed last before the rest of the buffer."""
        self._buffer = text + self._buffer[self._position :]
        self._position = 0
        self._num_read -= len(text)

    def _take_run(self, pattern: re.Pattern[str]) -> None:
        """Consume the match of a pattern, which may be empty."""
        run = pattern.match(self._buffer, self._position)
        if run:
            self._take(run.end())

    def _find(self, tags: tuple[str, ...]) -> tuple[int, str | None]:
        """Return the start of the next tag, and the tag; else the end of text without one."""
        found = _any_of(tags).search(self._buffer, self._position)
        if found:
            return found.start(), found.group()
        held = 0 if self._is_final else held_length(self._buffer, self._position, tags)
        return len(self._buffer) - held, None

    def _start_call(self, name: str) -> int:
        """Open a call and return its index. To refuse an unknown tool is up to the caller: dropping
        the call here could leave an empty answer."""
        if self._tools and name not in self._tools:
            known = ", ".join(self._tools)
            self._problem(f"the model called {name}, which is none of its tools: {known}")
        self._emit(ToolCallStart(self._num_calls, self._new_call_id(), name))
        self._num_calls += 1
        return self._num_calls - 1

    def _emit(self, event: Event) -> None:
        self._events.append(event)

    def _problem(self, sentence: str) -> None:
        self._emit(ProblemFound(sentence))

    def _say(self, text: str) -> None:
        if not text:
            return
        if self._is_thinking:
            self._thinking.say(text)
        else:
            self._content.say(text)
            self._code = self._code.after(text)

    def _open_thought(self) -> None:
        """Start a thought at its opening tag, which comes next in the buffer."""
        self._is_later_thought = bool(
            self.num_thoughts or self._num_calls or self._content.has_begun
        )
        if self.num_thoughts:
            self.later_thoughts.append(self._num_read)
        self.num_thoughts += 1
        self._is_thinking = True
        self._thinking.start()

    def _close_thought(self) -> None:
        self._is_thinking = False
        self._content.start_after_thinking()


def _joined(events: Iterable[Event]) -> Iterator[Event]:
    """Yield the events, each run of fragments as one; two calls never share a run."""
    for _, group in groupby(events, key=type):
        run = list(group)
        match run[0]:
            case ThinkingDelta():
                yield ThinkingDelta("".join(map(_fragment, run)))
            case ContentDelta():
                yield ContentDelta("".join(map(_fragment, run)))
            case ToolCallDelta(index):
                yield ToolCallDelta(index, "".join(map(_fragment, run)))
            case _:
                yield from run


def _fragment(event: Event) -> str:
    match event:
        case ThinkingDelta(text) | ContentDelta(text) | ToolCallDelta(_, text):
            return text
    raise AssertionError(event)


class _Thinking:
    """Text of the thoughts, each without its outer newlines, which are layout, and a blank line
    between them."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._has_begun = False
        self._has_earlier = False
        self._num_newlines = 0  # held until text follows
        self.is_blank = True

    def start(self) -> None:
        """Start the next thought."""
        self._has_earlier |= self._has_begun
        self._has_begun = False
        self._num_newlines = 0
        self.is_blank = True

    def say(self, text: str) -> None:
        if not self._has_begun:
            text = text.lstrip("\n")
        self.is_blank = self.is_blank and not text.strip()
        body = text.rstrip("\n")
        if body:
            if not self._has_begun and self._has_earlier:
                self._num_newlines = 2
            self._has_begun = True
            self._emit(ThinkingDelta("\n" * self._num_newlines + body))
            self._num_newlines = 0
        self._num_newlines += len(text) - len(body)


class Content:
    """Text of the answer, in segments between tool blocks; a blank segment is dropped.

    White space is held until text follows. Before a tool block, `layout_before_tools` tells how
    many of its last characters are layout: they come out only if text follows the block.
    """

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._held: list[str] = []
        self.has_begun = False
        self.is_blank = True
        self._is_after_thinking = False
        self.layout_before_tools: Callable[[str], int] = no_layout

    def start_after_thinking(self) -> None:
        """Take the newlines that come next for part of the closing tag."""
        if not self.has_begun:
            self._held = []
        self._is_after_thinking = True

    def say(self, text: str) -> None:
        if self._is_after_thinking:
            text = text.lstrip("\n")
            self._is_after_thinking = not text
        body = text.rstrip()
        if body:
            self._emit(ContentDelta("".join(self._held) + body))
            self._held = []
            self.has_begun = True
            self.is_blank = False
        if len(body) < len(text):
            self._held.append(text[len(body) :])

    def end_segment(self) -> None:
        """End a segment: a tool block follows."""
        space = "" if self.is_blank else "".join(self._held)
        end = len(space) - self.layout_before_tools(space)
        if end:
            self._emit(ContentDelta(space[:end]))
        self._held = [space[end:]] if end < len(space) else []
        self._is_after_thinking = False
        self.is_blank = True

    def finish(self) -> None:
        if not self.is_blank and self._held:
            self._emit(ContentDelta("".join(self._held)))
        self._held = []


def no_layout(space: str) -> int:
    """Return 0: no white space before a tool block is layout."""
    return 0


def one_newline(space: str) -> int:
    """Return 1 if a newline ends the white space before a tool block, else 0."""
    return 1 if space.endswith("\n") else 0


def all_space(space: str) -> int:
    """Return the length of all white space before a tool block."""
    return len(space)


def without_tags(text: str, tags: tuple[str, ...]) -> str:
    """Return text with a space for each tag, so that the text around a tag cannot form another."""
    return _any_of(tags).sub(" ", text)


@cache
def _any_of(tags: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tags)))


def held_length(text: str, start: int, markers: Sequence[str]) -> int:
    """Return how many characters at the end of text[start:] could be the start of a marker."""
    longest = max(len(marker) for marker in markers) - 1
    at = text.find("<", max(start, len(text) - longest))
    while at >= 0:
        if any(marker.startswith(text[at:]) for marker in markers):
            return len(text) - at
        at = text.find("<", at + 1)
    return 0


class PlainParser(StreamParser):
    """Parser of formats without tags: all text is content, as it stands."""

    def __init__(self) -> None:
        super().__init__((), random_call_id)

    def _step(self) -> bool:
        if self._position < len(self._buffer):
            self._emit(ContentDelta(self._buffer[self._position :]))
            self._position = len(self._buffer)
        return False
