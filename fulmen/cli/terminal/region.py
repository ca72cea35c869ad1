"""The region below the scrollback: its windows, and the keys that a person presses in it.

what grows | what waits | a question or a list | what is done | the line | names | bottom line
"""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, ThreadedCompleter
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.formatted_text import ANSI, StyleAndTextTuples, to_formatted_text
from prompt_toolkit.history import History
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import (
    BufferControl,
    ConditionalContainer,
    Dimension,
    FormattedTextControl,
    HSplit,
    Layout,
    VerticalAlign,
    Window,
)
from prompt_toolkit.layout.processors import AfterInput, ConditionalProcessor
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth
from prompt_toolkit.widgets import SearchToolbar
from rich.color import ColorSystem
from rich.segment import Segment

from fulmen.cli.output import harmless
from fulmen.cli.terminal.completing import FileNames, TypedCompleter
from fulmen.cli.terminal.state import Choice, Front, Said, Shell
from fulmen.files import printable

_STYLE: Final = Style.from_dict(
    {
        "prompt": "bold ansicyan",
        "hint": "ansibrightblack",
        "waits": "ansibrightblack",
        "title": "ansiyellow",
        "chosen": "bold ansicyan",
        "busy": "ansicyan",
        "bar": "ansibrightblack",
        "bar.mode": "bold",
        "bar.plan": "bold ansigreen",
        "bar.auto": "bold ansired",
        "bar.notice": "ansiyellow",
        "rule": "ansibrightblack",
    }
)
_BREAKS: Final = re.compile(r"[\n\t]+")
_SPINNER: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_MAX_ROWS: Final = 10
"""Rows of a list, of names, or of the text that are seen at once"""
_MAX_SHOWN_WAITING: Final = 4
_LONG_PASTE: Final = 1_000
_MANY_LINES: Final = 8
"""A paste of more characters or lines stands as one word in the line"""
_AGAIN_SECONDS: Final = 1.5
_KEPT_IN_HISTORY: Final = 10_000


class Person(Protocol):
    """Somebody who takes what keys ask for."""

    def interrupt(self) -> None:
        """End what is under way."""

    def sent(self) -> None:
        """See that something was sent, and waits."""

    def next_mode(self) -> None:
        """Let the next mode hold."""

    def bar(self) -> Sequence[str]:
        """Return the parts of the bottom line: the mode, then the others by their weight."""

    def doing(self) -> tuple[str, float]:
        """Return what is done, and for how many seconds."""

    def live(self) -> Sequence[Sequence[Segment]]:
        """Return the lines that still grow."""


class Region:
    """The windows, and the keys."""

    def __init__(
        self,
        front: Front,
        person: Person,
        *,
        keys: Input,
        output: Vt100_Output,
        completer: TypedCompleter,
        history: History,
        has_colors: bool = True,
    ) -> None:
        self.front = front
        self._person = person
        self._completer = completer
        self._colors = ColorSystem.TRUECOLOR if has_colors else None
        self._pastes: dict[str, str] = {}
        """Texts that stand as one word in the line"""
        self._asked: Callable[[str | None], None] | None = None
        """Takes the text that somebody is asked for"""
        self._prompt = "> "
        self._last_escape = self._last_break = 0.0
        self.buffer = Buffer(
            completer=ThreadedCompleter(completer),
            complete_while_typing=True,
            history=history,
            multiline=True,
            enable_history_search=False,
        )
        self._search = SearchToolbar(text_if_not_searching="")
        self.app: Application[Any] = Application(
            layout=Layout(self._windows(), focused_element=self.buffer),
            key_bindings=self._keys(),
            style=_STYLE,
            input=keys,
            output=output,
            erase_when_done=True,
            mouse_support=False,
            min_redraw_interval=0.02,
        )
        front.changed = self.app.invalidate
        self.app.timeoutlen = 0.3
        self.app.ttimeoutlen = 0.1
        self.app.key_processor.before_key_press += lambda _: front.key_pressed()

    # ---- windows ---------------------------------------------------------------------------------

    def _windows(self) -> HSplit:
        front = self.front
        hint = ConditionalProcessor(
            AfterInput(lambda: [("class:hint", self._hint())]),
            Condition(lambda: not self.buffer.text and bool(self._hint())),
        )
        line = Window(
            BufferControl(
                self.buffer,
                input_processors=[hint],
                search_buffer_control=self._search.control,
                preview_search=True,
            ),
            height=lambda: Dimension(min=1, max=_MAX_ROWS),
            dont_extend_height=True,
            wrap_lines=True,
            get_line_prefix=self._prefix,
        )
        return HSplit(
            [
                _shown(self._live, lambda: bool(self._person.live())),
                _shown(lambda: [("", " ")], self._has_rows),
                _shown(self._waiting, lambda: bool(front.queue) and front.is_working),
                _shown(self._choice, lambda: front.choice is not None, wraps=True),
                _shown(self._doing, lambda: front.is_working and front.choice is None),
                _shown(lambda: [("", " ")], lambda: True),
                line,
                self._search,
                _shown(self._names, lambda: self.buffer.complete_state is not None),
                _shown(self._bar, lambda: True),
            ],
            align=VerticalAlign.TOP,
        )

    def _has_rows(self) -> bool:
        front = self.front
        return front.is_working or front.choice is not None

    def _prefix(self, number: int, wrapped: int) -> StyleAndTextTuples:
        is_first = number == 0 and wrapped == 0
        return [("class:prompt", self._prompt if is_first else " " * len(self._prompt))]

    def _hint(self) -> str:
        front = self.front
        if self._asked is not None:
            return "what to do instead; Esc goes back"
        if front.is_working:
            return "words that you send now are read next" if front.choice is None else ""
        return "Enter goes on where it stands" if front.can_go_on else ""

    def _live(self) -> StyleAndTextTuples:
        rows = [
            "".join(
                (one.style.render(one.text, color_system=self._colors) if one.style else one.text)
                for one in line
            )
            for line in self._person.live()
        ]
        return to_formatted_text(ANSI("\n".join(rows)))

    def _waiting(self) -> StyleAndTextTuples:
        waiting = list(self.front.queue)
        rows = []
        for entry in waiting[-_MAX_SHOWN_WAITING:]:
            match entry:
                case Said(text):
                    shown = text
                case Shell(command):
                    shown = f"!{command}"
                case _:
                    shown = f"/{entry.name} {entry.rest}"
            rows.append(f"  waits: {self._short(shown, 12)}")
        if len(waiting) > _MAX_SHOWN_WAITING:
            rows.insert(0, f"  ({len(waiting) - _MAX_SHOWN_WAITING} more wait)")
        return [("class:waits", "\n".join(rows))]

    def _choice(self) -> StyleAndTextTuples:
        choice = self.front.choice
        if choice is None:
            return []
        found: StyleAndTextTuples = [("class:title", f"{harmless(choice.title)}\n")]
        first = max(min(choice.index - _MAX_ROWS // 2, len(choice.options) - _MAX_ROWS), 0)
        for place in range(first, min(first + _MAX_ROWS, len(choice.options))):
            option = choice.options[place]
            is_chosen = place == choice.index
            mark = "> " if is_chosen else "  "
            key = f"{option.key}  " if option.key else ""
            label = self._short(option.label, 8)
            found.append(("class:chosen" if is_chosen else "", f"  {mark}{key}{label}\n"))
        return [*found, ("class:hint", f"  {_keys_of(choice)}")]

    def _doing(self) -> StyleAndTextTuples:
        what, seconds = self._person.doing()
        mark = _SPINNER[int(time.monotonic() * 10) % len(_SPINNER)]
        told = f"  {seconds:,.0f} s, Esc interrupts"
        return [("class:busy", f"{mark} {self._short(what, len(told) + 3)}"), ("class:hint", told)]

    def _names(self) -> StyleAndTextTuples:
        state = self.buffer.complete_state
        if state is None or not state.completions:
            return []
        index = state.complete_index
        first = max(min((index or 0) - _MAX_ROWS // 2, len(state.completions) - _MAX_ROWS), 0)
        shown = state.completions[first : first + _MAX_ROWS]
        width = max(get_cwidth(one.display_text) for one in shown)
        found: StyleAndTextTuples = []
        for place, one in enumerate(shown, first):
            style = "class:chosen" if place == index else "class:hint"
            gap = " " * (width - get_cwidth(one.display_text))
            row = self._short(f"{one.display_text}{gap}  {one.display_meta_text}".rstrip(), 4)
            found.append((style, f"  {row}" + ("\n" if one is not shown[-1] else "")))
        return found

    def _bar(self) -> StyleAndTextTuples:
        mode, *others = self._person.bar()
        style = {"plan": "class:bar.plan", "auto": "class:bar.auto"}.get(mode, "class:bar.mode")
        if self.front.notice:
            told = self._short(self.front.notice, len(mode) + 6)
            return [(style, f"  {mode}"), ("class:bar.notice", f"  {told}")]
        room = self._width() - get_cwidth(mode) - 3
        kept: list[str] = []
        for part in others:
            if get_cwidth("  ".join([*kept, part])) + 2 > room:
                break
            kept.append(part)
        return [(style, f"  {mode}"), ("class:bar", "".join(f"  {part}" for part in kept))]

    def _width(self) -> int:
        return self.app.output.get_size().columns

    def _short(self, text: str, taken: int) -> str:
        """Return a text on one line that leaves room for so many columns."""
        room = max(self._width() - taken, 8)
        line = printable(_BREAKS.sub(" ", text[: 4 * room].strip()))
        if get_cwidth(line) <= room and len(text) <= 4 * room:
            return line
        while get_cwidth(line) > room - 3:
            line = line[:-1]
        return f"{line}..."

    @property
    def most_live(self) -> int:
        """Most lines of what grows that there is room for."""
        rows = self.app.output.get_size().rows
        taken = 5 + min(self.buffer.document.line_count, _MAX_ROWS) + len(self.front.queue)
        return max(rows - taken - (_MAX_ROWS if self.front.choice is not None else 0), 2)

    # ---- the text --------------------------------------------------------------------------------

    def complete_files(self, files: FileNames) -> None:
        """Complete names of another folder from now on."""
        self._completer.files = files

    def put(self, text: str) -> None:
        """Put a text into the line, if that is empty."""
        if not self.buffer.text:
            self._insert(text)

    def _insert(self, text: str) -> None:
        """Insert a text at the cursor, one that is long as one word."""
        text = _clean(text)
        if len(text) > _LONG_PASTE or text.count("\n") > _MANY_LINES:
            lines = text.count("\n") + 1
            name = f"[pasted {len(self._pastes) + 1}: {lines:,} lines, {len(text):,} characters]"
            self._pastes[name] = text
            text = name
        self.buffer.insert_text(text)

    def _expanded(self) -> str:
        text = _clean(self.buffer.text)
        for name, pasted in self._pastes.items():
            text = text.replace(name, pasted)
        return text

    def _send(self) -> None:
        text = self._expanded()
        if self._asked is not None:
            if text.strip():
                self._asked(text.strip())
            return
        if not self.front.submit(text):
            return
        if 0 < len(text) <= _KEPT_IN_HISTORY:
            self.buffer.history.append_string(text)
        self.buffer.reset()
        self._pastes.clear()
        self._person.sent()

    async def ask_text(self, prompt: str) -> str | None:
        """Let somebody write a text in the place of the line; None if they go back."""
        answer = asyncio.get_running_loop().create_future()
        before, self._prompt = (self.buffer.document, self._prompt), prompt

        def take(text: str | None) -> None:
            if not answer.done():
                answer.set_result(text)

        self._asked = take
        self.buffer.reset()
        self.app.invalidate()
        try:
            text: str | None = await answer
            return text
        finally:
            self._asked = None
            document, self._prompt = before
            self.buffer.reset(document)

    # ---- keys ------------------------------------------------------------------------------------

    def _keys(self) -> KeyBindings:
        keys, front = KeyBindings(), self.front
        in_text = has_focus(self.buffer)
        chooses = Condition(lambda: front.takes_choice and self._asked is None)
        self._choice_keys(keys, chooses)

        @keys.add("enter", filter=in_text & ~chooses)
        def _(event: KeyPressEvent) -> None:
            if self.buffer.document.text_before_cursor.endswith("\\"):
                self.buffer.delete_before_cursor()
                self.buffer.insert_text("\n")
            else:
                self._send()

        @keys.add("escape", "enter", filter=in_text & ~chooses)
        @keys.add("c-j", filter=in_text & ~chooses)
        def _(event: KeyPressEvent) -> None:
            self.buffer.insert_text("\n")

        @keys.add("escape", filter=in_text & ~chooses)
        def _(event: KeyPressEvent) -> None:
            self._escape()

        @keys.add("c-c", filter=in_text)
        def _(event: KeyPressEvent) -> None:
            self._break()

        @keys.add("c-d", filter=in_text & Condition(lambda: not self.buffer.text))
        def _(event: KeyPressEvent) -> None:
            if front.is_working:
                front.notice = "it works: Esc interrupts, then Ctrl-D leaves"
            else:
                front.leave()

        @keys.add("s-tab", filter=in_text)
        def _(event: KeyPressEvent) -> None:
            self._person.next_mode()

        @keys.add("up", filter=in_text & ~chooses & Condition(self._can_take_back))
        def _(event: KeyPressEvent) -> None:
            self.put(front.take_back() or "")

        @keys.add(Keys.BracketedPaste)
        def _(event: KeyPressEvent) -> None:
            self._insert(event.data)

        @keys.add("tab", filter=in_text & ~chooses)
        def _(event: KeyPressEvent) -> None:
            self._complete()

        @keys.add("c-z", filter=in_text)
        def _(event: KeyPressEvent) -> None:
            event.app.suspend_to_background()

        return keys

    def _choice_keys(self, keys: KeyBindings, chooses: Condition) -> None:
        moves = {"up": -1, "down": 1, "pageup": 1 - _MAX_ROWS, "pagedown": _MAX_ROWS - 1}
        moves |= {"home": -(10**9), "end": 10**9, "c-p": -1, "c-n": 1}
        for name, by in moves.items():

            @keys.add(name, filter=chooses)
            def _(event: KeyPressEvent, by: int = by) -> None:
                assert self.front.choice is not None
                self.front.choice.move(by)

        @keys.add("enter", filter=chooses)
        @keys.add("escape", filter=chooses)
        @keys.add(Keys.Any, filter=chooses)
        def _(event: KeyPressEvent) -> None:
            assert self.front.choice is not None
            key = event.key_sequence[0].key
            names: dict[Keys | str, str] = {Keys.ControlM: "enter", Keys.Escape: "escape"}
            self.front.choice.press(names.get(key, event.data))

    def _complete(self) -> None:
        """Put the next name into the line; the first one also where the names are yet to come."""
        if self.buffer.complete_state is not None:
            self.buffer.complete_next()
            return
        wanted = CompleteEvent(completion_requested=True)
        found = self._completer.get_completions(self.buffer.document, wanted)
        if (first := next(iter(found), None)) is not None:
            self.buffer.apply_completion(first)

    def _can_take_back(self) -> bool:
        return not self.buffer.text and bool(self.front.queue) and self._asked is None

    def _escape(self) -> None:
        now, front = time.monotonic(), self.front
        if self._asked is not None:
            self._asked(None)
        elif self.buffer.complete_state is not None:
            self.buffer.cancel_completion()
        elif front.is_working:
            self._person.interrupt()
        elif not self.buffer.text and now - self._last_escape < _AGAIN_SECONDS:
            front.submit("/rewind")
        elif not self.buffer.text:
            self._last_escape, front.notice = now, "Esc again goes back to a step"

    def _break(self) -> None:
        now, front = time.monotonic(), self.front
        is_again = now - self._last_break < _AGAIN_SECONDS
        self._last_break = now
        if self._asked is not None:
            self._asked(None)
        elif front.is_working and is_again:
            self._person.interrupt()
            front.leave()
        elif front.is_working:
            self._person.interrupt()
        elif front.choice is not None:
            front.choice.press("escape")
        elif self.buffer.text:
            self.buffer.reset()
            self._pastes.clear()
        elif is_again:
            front.leave()
        else:
            front.notice = "Ctrl-C again leaves"


def _shown(
    text: Callable[[], StyleAndTextTuples], when: Callable[[], bool], *, wraps: bool = False
) -> ConditionalContainer:
    window = Window(
        FormattedTextControl(text),
        dont_extend_height=True,
        wrap_lines=wraps,
        height=Dimension(min=0),
    )
    return ConditionalContainer(window, Condition(when))


def _keys_of(choice: Choice) -> str:
    others = "".join(f", {key} {what}" for key, what in choice.actions.items())
    return f"Enter chooses{others}, Esc goes back" if not choice.options[0].key else "Esc is no"


def _clean(text: str) -> str:
    """Return text as it was typed: one kind of line ends, and no half of a surrogate pair."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
