"""MiniMax-M2's completions: text to thought, content and tool calls.

Parsing undoes rendering. A completion starts inside the thought, which the prompt has opened:

    thought </think> content <minimax:tool_call> <invoke name="N"> <parameter name="K">V</parameter>
    </invoke> </minimax:tool_call>

- Layout is dropped: newlines around the thought and after </think>, and the one newline that the
  template puts before a tool block. With thinking_open=False there was no layout, so content is
  verbatim; a leading <think> still opens a thought. Blank text beside tool blocks is dropped too.
- The four tags are not content; one in a place where it means nothing is taken out and reported. A
  tool block inside the thought ends it.
- Nothing in a value is escaped, so the text after a tag, past white space, decides whether the tag
  ends the value or belongs to it. </parameter> ends it before another parameter or call, and before
  the end of the call or the block, at once: a value that holds </parameter></invoke> is cut there.
  Without </parameter>, a value ends at </invoke> before another call or the block's end, at the
  block's end unless </parameter> follows, and at a parameter of the tool's that is not yet given.
  A missing closing tag is reported, and so is a value that keeps a </parameter>, or that keeps text
  that may be the start of a parameter or a call.
- String values stream, escaped; others wait for their end, which alone shows their type. Of a
  repeated parameter the first value counts, since it may be out already. Text of a call that is in
  no parameter is skipped, and quoted in `problems`: the call around it is still whole.
- A malformed call is never lost. Anything the model finished but got wrong (a call without a name,
  text in the tool block) becomes content, and is reported. A call that the end of the text cut off
  is in `problems`, quoted in full, and not in the content: its start may have been streamed as a
  ToolCallStart, which without its ToolCallEnd is not a call.
"""

import re
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from fulmen.chat.arguments import dump_json, escape_json
from fulmen.chat.events import ToolCallDelta, ToolCallEnd
from fulmen.chat.messages import CallIds, Tool
from fulmen.chat.parameters import Parameters
from fulmen.chat.parsing import StreamParser, one_newline, without_tags

THINK, END_THINK = "<think>", "</think>"
TOOL_BLOCK, END_TOOL_BLOCK = "<minimax:tool_call>", "</minimax:tool_call>"
INVOKE, END_INVOKE = "<invoke", "</invoke>"
PARAMETER, END_PARAMETER = "<parameter", "</parameter>"
M1_TOOL_BLOCK = "<tool_calls>"

_TAGS = (THINK, END_THINK, TOOL_BLOCK, END_TOOL_BLOCK)
_CALL_TAGS = (PARAMETER, END_INVOKE, INVOKE, END_TOOL_BLOCK, TOOL_BLOCK)
_VALUE_TAGS = (END_PARAMETER, PARAMETER, END_INVOKE, INVOKE, END_TOOL_BLOCK)
_AFTER_INVOKE = (INVOKE, END_TOOL_BLOCK, TOOL_BLOCK)
_LONGEST_TAG = 1_000
"""Characters of the longest tag, and of the longest white space between tags of a value: more is
text, so that waiting for the next piece has an end"""

_LAYOUT = re.compile(r"\s*")
_SPACE = re.compile(rf"\s{{0,{_LONGEST_TAG}}}")
_BRACKET = re.compile("[<>]")
# The quotes around a name are double, single or missing. It may hold brackets or the quote itself;
# in an open name, a bracket may be part of it.
_NAME = re.compile(
    r"""\s+name\s*=\s*(?:(?:"(?P<double>[^"]*|[^<>]*?)"|'(?P<single>[^']*|[^<>]*?)')(?:\s[^<>]*)?"""
    r"""|(?P<bare>[^\s"'<>]+)\s*)>"""
)


_OPEN_NAME = re.compile(
    r"""\s+name\s*=\s*(?:"[^"]*(?:"(?:\s[^<>]*)?)?|'[^']*(?:'(?:\s[^<>]*)?)?)"""
)


class _Ahead(Enum):
    """Outcome of a look ahead that finds none of the tags asked for."""

    WAIT = auto()
    """Only the next piece can tell."""
    END = auto()
    """Text that ends here, or inside one of the tags asked for"""
    OTHER = auto()
    """Other text"""


class _Call:
    """Call being read, and the types its tool declares."""

    def __init__(self, name: str, tool: Tool | None) -> None:
        self.name = name
        self.parameters = Parameters(tool.parameters if tool else {})
        self.declared = set(self.parameters.names) if self.parameters.names else None
        self.values: dict[str, Any] = {}
        self.given: set[str] = set()
        self.index: int | None = None  # set once its ToolCallStart is out


class _Value:
    """Value of a parameter being read."""

    def __init__(
        self, name: str, opening: str, types: frozenset[str], *, is_repeated: bool
    ) -> None:
        self.name = name
        self.opening = opening  # JSON up to the value: `{"key": ` or `, "key": `
        self.types = types
        self.is_repeated = is_repeated
        self.is_streaming = False
        self.pieces: list[str] = []  # while not streaming
        self.kept_tags: dict[str, None] = {}  # tags that may have meant its end, in their order

    def may_stream(self) -> bool:
        """Return True once the value can only be text: it may not still become the word null."""
        if "string" not in self.types or not self.types <= {"string", "null"}:
            return False
        return "null" not in self.types or not "null".startswith("".join(self.pieces).lower())


class M2Parser(StreamParser):
    """State machine: `_state` is the method that reads the next text."""

    def __init__(self, tools: tuple[Tool, ...], thinking_open: bool, new_call_id: CallIds) -> None:
        super().__init__(tools, new_call_id)
        self._is_thinking = thinking_open
        self._may_think = not thinking_open
        self._is_in_block = False
        self._state: Callable[[], bool] = self._text
        self._raw: list[str] | None = None  # the text since <invoke
        self._call = _Call("", None)
        self._value = _Value("", "", frozenset(), is_repeated=True)
        self._skipped: list[str] = []
        if thinking_open:
            self._content.layout_before_tools = one_newline

    def _step(self) -> bool:
        return self._state()

    def _end(self) -> None:
        if self._raw is not None:
            self._take(len(self._buffer))
            self._problem(f"a tool call was cut off by the end of the text: {''.join(self._raw)}")
        super()._end()

    # Reading ahead.

    def _take(self, end: int) -> str:
        text = super()._take(end)
        if self._raw is not None:
            self._raw.append(text)
        return text

    def _look(self, at: int, tags: tuple[str, ...]) -> str | _Ahead:
        """Return the tag at `at`."""
        for tag in tags:
            if self._buffer.startswith(tag, at):
                return tag
        rest = self._buffer[at : at + max(map(len, tags))]
        if any(tag.startswith(rest) for tag in tags):
            return _Ahead.END if self._is_final else _Ahead.WAIT
        return _Ahead.OTHER

    def _look_after_space(self, at: int, tags: tuple[str, ...]) -> tuple[str | _Ahead, int]:
        """Return the tag after white space, and its start."""
        space = _SPACE.match(self._buffer, at)
        assert space is not None
        return self._look(space.end(), tags), space.end()

    def _read_tag(self, tag: str, at: int) -> tuple[str | None, int] | None:
        """Return the name in the tag at `at`, and the tag's end; None while the tag is not whole.

        Without a good name, a tag ends at `>`, or before a `<` that breaks it off.
        """
        start = at + len(tag)
        limit = start + _LONGEST_TAG
        is_long = len(self._buffer) >= limit
        bracket = _BRACKET.search(self._buffer, start, limit)
        if bracket is None:
            return (None, limit) if is_long else None
        named = _NAME.match(self._buffer, start, limit)
        if named:
            return named["double"] or named["single"] or named["bare"] or None, named.end()
        if not is_long and not self._is_final and _OPEN_NAME.fullmatch(self._buffer, start):
            return None
        return None, bracket.start() if bracket.group() == "<" else bracket.end()

    # Thought and content.

    def _text(self) -> bool:
        tags = (*_TAGS, M1_TOOL_BLOCK, *([INVOKE] if self._is_in_block else []))
        end, tag = self._find(tags)
        self._say(self._take(end))
        if tag is None:
            return False
        if tag == TOOL_BLOCK:
            return self._open_block()
        if tag == INVOKE:
            self._enter_block()
            return True
        self._take(end + len(tag))
        if tag == M1_TOOL_BLOCK:
            self._say(tag)
            self._problem(f"{tag} belongs to MiniMax-M1, was the prompt rendered by its template?")
        elif tag == END_THINK and self._is_thinking:
            self._close_thinking()
        elif tag == THINK and not self._is_thinking and self._may_think and self._content.is_blank:
            self._is_thinking, self._may_think = True, False
            self._content.layout_before_tools = one_newline
        elif tag == END_TOOL_BLOCK and self._is_in_block:
            self._is_in_block = False
        elif tag != THINK or not self._is_thinking:
            self._problem(f"a stray {tag} was taken out of the text")
        return True

    def _close_thinking(self) -> None:
        self._is_thinking = self._is_in_block = False
        self._content.start_after_thinking()

    def _open_block(self) -> bool:
        ahead, _ = self._look_after_space(self._position + len(TOOL_BLOCK), (INVOKE,))
        if ahead is _Ahead.WAIT:
            return False
        if ahead is _Ahead.END:
            rest = self._take(len(self._buffer))
            self._problem(f"a tool call was cut off by the end of the text: {rest}")
            return False
        self._take(self._position + len(TOOL_BLOCK))
        if ahead == INVOKE:
            self._enter_block()
        else:
            self._is_in_block = True
            self._problem(f"{TOOL_BLOCK} is not followed by a call, what follows is kept as text")
        return True

    def _enter_block(self) -> None:
        """Start a block of calls; it ends the thought, if that is still open."""
        if self._is_thinking:
            self._close_thinking()
        self._may_think = False
        self._is_in_block = True
        self._content.end_segment()
        self._state = self._block

    def _block(self) -> bool:
        self._take_run(_LAYOUT)
        ahead = self._look(self._position, _AFTER_INVOKE)
        if ahead is _Ahead.WAIT:
            return False
        if ahead is _Ahead.END:
            rest = self._take(len(self._buffer)).strip()
            self._problem(f"the tool block has no {END_TOOL_BLOCK}" + f": {rest}" * bool(rest))
            return False
        if ahead is _Ahead.OTHER:
            self._problem("a tool block has text beside its calls, it is kept as content")
            self._state = self._text
        elif ahead == INVOKE:
            self._raw = []
            self._state = self._invoke
        else:  # a second opening tag of the same block
            self._take(self._position + len(ahead))
            if ahead == END_TOOL_BLOCK:
                self._is_in_block = False
                self._state = self._text
        return True

    # One call.

    def _invoke(self) -> bool:
        read = self._read_tag(INVOKE, self._position)
        if read is None:
            return False
        name, end = read
        self._take(end)
        if name is None:
            self._state = self._nameless
            return True
        self._call = _Call(name, self._tools.get(name))
        self._state = self._body
        return True

    def _nameless(self) -> bool:
        end, tag = self._find((END_INVOKE, INVOKE, END_TOOL_BLOCK))
        self._take(end)
        if tag is None:
            return False
        if tag == END_INVOKE:
            self._take(end + len(tag))
        text, self._raw = "".join(self._raw or ()), None
        self._problem(f"a tool call has no name and is kept as content: {text}")
        self._say(without_tags(text, _TAGS))
        self._content.end_segment()
        self._state = self._block
        return True

    def _body(self) -> bool:
        self._take_run(_LAYOUT)
        ahead = self._look(self._position, _CALL_TAGS)
        if isinstance(ahead, _Ahead):
            if ahead is _Ahead.OTHER:
                self._skipped = []
                self._state = self._stray
            return ahead is _Ahead.OTHER
        if ahead != PARAMETER:
            self._end_call(ahead)
            return True
        read = self._read_tag(PARAMETER, self._position)
        if read is None:
            return False
        name, end = read
        text = self._take(end)
        if name is None:
            self._skipped = [text]
            self._state = self._stray
        else:
            self._start_value(name)
        return True

    def _stray(self) -> bool:
        """Skip text in a call that is in no parameter."""
        end, tag = self._find(_CALL_TAGS)
        self._skipped.append(self._take(end))
        if tag is not None:
            skipped = "".join(self._skipped).strip()
            self._problem(f"the call of {self._call.name} has text in no parameter: {skipped}")
            self._state = self._body
        return tag is not None

    def _index(self) -> int:
        """Return the index of the call; the first time, its ToolCallStart goes out."""
        if self._call.index is None:
            self._call.index = self._start_call(self._call.name)
        return self._call.index

    def _end_call(self, tag: str) -> None:
        if tag == END_INVOKE:
            self._take(self._position + len(tag))
        else:
            self._problem(f"the call of {self._call.name} has no {END_INVOKE}")
        index = self._index()
        self._emit(ToolCallDelta(index, "}" if self._call.given else "{}"))
        self._emit(ToolCallEnd(index))
        self._raw = None
        self._state = self._block

    # One value.

    def _start_value(self, name: str) -> None:
        call = self._call
        opening = f"{', ' if call.given else '{'}{dump_json(name)}: "
        types = call.parameters.types(name, call.values)
        self._value = _Value(name, opening, types, is_repeated=name in call.given)
        if self._value.is_repeated:
            self._problem(f"the call of {call.name} gives {name} again, the first value counts")
        else:
            call.given.add(name)
            self._index()
            self._stream_value("")
        self._state = self._in_value

    def _in_value(self) -> bool:
        end, tag = self._find(_VALUE_TAGS)
        self._stream_value(self._take(end))
        if tag is None:
            return False
        is_end = self._ends_value(tag, end)
        if is_end is None:
            return False
        if not is_end:
            self._keep_tag(tag, end)
            return True
        if tag == END_PARAMETER:
            self._take(end + len(tag))
        else:
            self._problem(f"the call of {self._call.name} has a value with no {END_PARAMETER}")
        self._end_value()
        self._state = self._body
        return True

    def _ends_value(self, tag: str, at: int) -> bool | None:
        """Return True if a tag ends the value, False if it belongs to it, None while open."""
        after = at + len(tag)
        if tag == END_PARAMETER:
            return self._is_followed(after, _CALL_TAGS)
        if tag == END_INVOKE:
            return self._is_followed(after, _AFTER_INVOKE)
        if tag == END_TOOL_BLOCK:
            ahead, _ = self._look_after_space(after, (END_PARAMETER,))
            return None if ahead is _Ahead.WAIT else ahead != END_PARAMETER
        return tag == PARAMETER and self._is_new_parameter(at)

    def _is_followed(self, at: int, tags: tuple[str, ...]) -> bool | None:
        """Return True if one of the tags, with a name if it needs one, follows white space."""
        ahead, start = self._look_after_space(at, tags)
        if isinstance(ahead, str) and ahead in (PARAMETER, INVOKE):
            read = self._read_tag(ahead, start)
            if read is not None:
                return read[0] is not None
            ahead = _Ahead.END if self._is_final else _Ahead.WAIT
        return None if ahead is _Ahead.WAIT else ahead is not _Ahead.OTHER

    def _is_new_parameter(self, at: int) -> bool | None:
        read = self._read_tag(PARAMETER, at)
        if read is None:
            return False if self._is_final else None
        name, _ = read
        declared, given = self._call.declared, self._call.given
        return name is not None and (declared is None or (name in declared and name not in given))

    def _keep_tag(self, tag: str, at: int) -> None:
        """Take a tag for text of the value, and note it if the model may have meant the end."""
        end = at + len(tag)
        if tag in (END_PARAMETER, INVOKE) or (
            tag == PARAMETER and self._buffer[end : end + 1].isspace()
        ):
            self._value.kept_tags[tag] = None
        self._stream_value(self._take(end))

    def _stream_value(self, text: str) -> None:
        value = self._value
        if value.is_repeated:
            return
        value.pieces.append(text)
        if value.is_streaming:
            self._send(escape_json(text))
            return
        if value.may_stream():
            value.is_streaming = True
            self._send(f'{value.opening}"{escape_json("".join(value.pieces))}')

    def _end_value(self) -> None:
        value = self._value
        if value.is_repeated:
            return
        call, text = self._call, "".join(value.pieces)
        if value.is_streaming:
            call.values[value.name] = text
            self._send('"')
        else:
            meant = call.values[value.name] = call.parameters.read(text, value.name, call.values)
            self._send(value.opening + dump_json(meant))
        if value.kept_tags:
            tags = ", ".join(value.kept_tags)
            self._problem(
                f"the value of {value.name} in the call of {self._call.name} keeps {tags} "
                "as its text"
            )

    def _send(self, fragment: str) -> None:
        if fragment:
            self._emit(ToolCallDelta(self._index(), fragment))
