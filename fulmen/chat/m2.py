"""MiniMax-M2's format: ]~b]role turns, thinking in <think>, tool calls as XML-like elements.

Rendering gives what the checkpoint's own template gives, byte for byte, wherever the template is
right. Where it is not:

- null content is empty (the template prints the word None), and arguments given as a JSON string
  are decoded (it fails);
- a developer message is a system message, and system messages after the first join the system
  block, a blank line between (it drops both). A system message added late thus changes the
  start of the prompt, and nothing of it comes from a prefix cache;
- tools given flat are shown like those given with `function` (it fails);
- unknown roles and parts that are no text are errors (it skips them).

Parsing undoes rendering. A completion starts inside the thought, which the prompt has opened:

    thought </think> content <minimax:tool_call> <invoke name="N"> <parameter name="K">V</parameter>
    </invoke> </minimax:tool_call>

- Layout goes: newlines around the thought and after </think>, and the one newline the template
  puts before a tool block. With thinking_open=False there was no layout, so content is verbatim.
  Blank text beside tool blocks goes as well.
- The four tags never reach the content; one that stands where it means nothing is taken out and
  reported. A tool block inside the thought ends it.
- Nothing in a value is escaped, so a closing tag in it counts only if what follows fits:
  </parameter> before another parameter or the call's end, </invoke> before another call or the
  block's end. A missing </parameter> is closed by either, or by a parameter of the tool's that is
  not yet given. String values stream, escaped; others wait for their end, as their type shows
  only there. Of a repeated parameter the first value counts, since it may be out already. Text of
  a call that is in no parameter is skipped, and quoted in `problems`.
- A malformed call is never lost. What the model finished but got wrong (a call without a name,
  text in the tool block) comes back as content, and is reported. What the end of the text cut off
  is in `problems`, quoted in full, and not in the content: its start may have been streamed as a
  ToolCallStart, which without its ToolCallEnd is no call.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from enum import Enum, auto

from fulmen.chat.arguments import convert, dump_json, escape_json, parameter_types
from fulmen.chat.format import Format
from fulmen.chat.messages import (
    CallIds,
    Message,
    Messages,
    Tool,
    ToolCallDelta,
    ToolCallEnd,
    Tools,
    last_calls,
    random_call_id,
    read_messages,
    read_tools,
)
from fulmen.chat.parsing import (
    Parser,
    StreamParser,
    one_newline,
)
from fulmen.chat.tokenizer import Control, Segment

DEFAULT_IDENTITY = "You are a helpful assistant."

THINK, END_THINK = "<think>", "</think>"
TOOL_BLOCK, END_TOOL_BLOCK = "<minimax:tool_call>", "</minimax:tool_call>"
INVOKE, END_INVOKE = "<invoke", "</invoke>"
PARAMETER, END_PARAMETER = "<parameter", "</parameter>"
NEXT_PARAMETER = "<parameter name="

_START, _TURN, _END_TURN = Control("]~!b["), Control("]~b]"), Control("[e~[")

_TOOLS_BEFORE = (
    "\n\n# Tools\nYou may call one or more tools to assist with the user query.\n"
    "Here are the tools available in JSONSchema format:\n\n<tools>\n"
)
_TOOLS_AFTER = (
    "</tools>\n\nWhen making tool calls, use XML format to invoke tools and pass parameters:\n\n"
)
_TOOLS_EXAMPLE = (
    '\n<invoke name="tool-name-1">\n'
    '<parameter name="param-key-1">param-value-1</parameter>\n'
    '<parameter name="param-key-2">param-value-2</parameter>\n'
    "...\n</invoke>\n"
)


class MiniMaxM2(Format):
    """Renders and parses for MiniMax-M2, M2.1, M2.5 and M2.7."""

    name = "minimax_m2"
    thinking_open_in_prompt = True
    end_of_turn = "[e~["
    thinking_end = END_THINK
    thinking_forced_end = "\n</think>\n\n"

    def __init__(self, *, model_identity: str = DEFAULT_IDENTITY) -> None:
        self.model_identity = model_identity
        """The system text when the conversation brings none; each release names itself here."""

    def segments(
        self, messages: Messages, tools: Tools = None, add_generation_prompt: bool = True
    ) -> list[Segment]:
        read = read_messages(messages)
        segments: list[Segment] = [_START, _TURN, "system\n"]
        segments += _system_texts(read, self.model_identity)
        segments += _tools_segments(read_tools(tools))
        segments += [_END_TURN, "\n"]
        segments += _turns([message for message in read if message.role != "system"])
        if add_generation_prompt:
            segments += [_TURN, "ai\n", Control(THINK), "\n"]
        return segments

    def parser(
        self,
        tools: Tools = None,
        thinking_open: bool = True,
        *,
        new_call_id: CallIds = random_call_id,
    ) -> Parser:
        """thinking_open says that the prompt ended inside <think>, as `render` leaves it."""
        return M2Parser(read_tools(tools), thinking_open, new_call_id)


def _system_texts(messages: list[Message], model_identity: str) -> Iterator[str]:
    system = [message for message in messages if message.role == "system"]
    first = system[0] if messages and messages[0].role == "system" else Message("system")
    # A list of empty parts counts as content, as in the template.
    yield first.content if first.content or first.parts else model_identity
    yield from _date_and_place(first)
    for message in system:
        if message is not first and message.content:
            yield f"\n\n{message.content}"
            yield from _date_and_place(message)


def _date_and_place(message: Message) -> Iterator[str]:
    if message.current_date:
        yield f"\nCurrent date: {message.current_date}"
    if message.current_location:
        yield f"\nCurrent location: {message.current_location}"


def _tools_segments(tools: tuple[Tool, ...]) -> list[Segment]:
    if not tools:
        return []
    lines = "".join(f"<tool>{dump_json(tool.function)}</tool>\n" for tool in tools)
    return [
        _TOOLS_BEFORE + lines + _TOOLS_AFTER,
        Control(TOOL_BLOCK),
        _TOOLS_EXAMPLE,
        Control(END_TOOL_BLOCK),
    ]


def _turns(messages: list[Message]) -> Iterator[Segment]:
    last_user = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
    for index, message in enumerate(messages):
        if message.role == "user":
            yield from (_TURN, "user\n", message.content, _END_TURN, "\n")
        elif message.role == "assistant":
            yield from (_TURN, "ai\n")
            yield from _assistant(message, is_thinking_kept=index > last_user)
            yield from (_END_TURN, "\n")
        else:
            if not last_calls(messages, index):
                raise ValueError(
                    "a tool message comes after no tool call, "
                    "the assistant message before it must have tool_calls"
                )
            if index == 0 or messages[index - 1].role != "tool":
                yield from (_TURN, "tool")
            yield from _responses(message)
            if index + 1 == len(messages) or messages[index + 1].role != "tool":
                yield from (_END_TURN, "\n")


def _assistant(message: Message, *, is_thinking_kept: bool) -> Iterator[Segment]:
    thinking, content = message.thinking, message.content
    if thinking is None and END_THINK in content:
        before, _, _ = content.partition(END_THINK)
        _, _, after = content.rpartition(END_THINK)
        thinking = before.strip("\n").split(THINK)[-1].strip("\n")
        content = after.strip("\n")
    if thinking and is_thinking_kept:
        yield from (Control(THINK), f"\n{thinking}\n", Control(END_THINK), "\n\n")
    yield content
    if message.tool_calls:
        yield from ("\n", Control(TOOL_BLOCK), "\n")
        for call in message.tool_calls:
            yield f'<invoke name="{call.name}">\n'
            for key, value in call.arguments.items():
                text = value if isinstance(value, str) else dump_json(value)
                yield f'<parameter name="{key}">{text}</parameter>\n'
            yield "</invoke>\n"
        yield Control(END_TOOL_BLOCK)


def _responses(message: Message) -> Iterator[Segment]:
    if message.parts is None:
        yield f"\n<response>{message.content}</response>"
    else:
        for part in message.parts:
            yield f"\n<response>{part.text}\n</response>"


class _Ahead(Enum):
    """What follows a tag, when it is none of the tags asked for."""

    WAIT = auto()
    """The next pieces will tell."""
    END = auto()
    """The text ends here, or inside one of the tags asked for."""
    OTHER = auto()


_TAGS = (THINK, END_THINK, TOOL_BLOCK, END_TOOL_BLOCK)
_M1_TOOL_BLOCK = "<tool_calls>"
_VALUE_TAGS = (END_PARAMETER, END_INVOKE, NEXT_PARAMETER)
_CALL_TAGS = (PARAMETER, END_INVOKE, INVOKE, END_TOOL_BLOCK)
_LONGEST_TAG = 1_000
"""White space or a tag longer than this is taken for text, so that waiting has an end."""

_SPACE = re.compile(rf"\s{{0,{_LONGEST_TAG}}}")
_BRACKET = re.compile("[<>]")
_ATTRIBUTE = re.compile(
    r"""\s+name\s*=\s*(?:(?P<quote>["'])(?P<quoted>.*?)(?P=quote)(?:\s.*)?|(?P<bare>[^\s"']+))\s*""",
    re.DOTALL,
)


def _tag_name(attributes: str) -> str | None:
    """The name in ` name="N"`, the quotes double, single or missing; None when there is none."""
    found = _ATTRIBUTE.fullmatch(attributes)
    return (found["quoted"] or found["bare"] or None) if found else None


class _Call:
    """A call being read, and the types its tool declares."""

    def __init__(self, name: str, tool: Tool | None) -> None:
        self.name = name
        self.schema = tool.parameters if tool else {}
        declared = self.schema.get("properties")
        self.declared = set(declared) if isinstance(declared, Mapping) else None
        self.given: set[str] = set()
        self.index: int | None = None  # set once its ToolCallStart is out


class _Value:
    """A parameter's value being read."""

    def __init__(self, opening: str, types: frozenset[str], *, is_repeated: bool) -> None:
        self.opening = opening  # JSON up to the value: `{"key": ` or `, "key": `
        self.types = types
        self.is_repeated = is_repeated
        self.is_streaming = False
        self.text = ""  # while not streaming


class M2Parser(StreamParser):
    """One state machine: `_state` is the method that reads what comes next."""

    def __init__(self, tools: tuple[Tool, ...], thinking_open: bool, new_call_id: CallIds) -> None:
        super().__init__(tools, new_call_id)
        self._is_thinking = thinking_open
        self._may_think = not thinking_open
        self._is_in_block = False
        self._state: Callable[[], bool] = self._text
        self._raw: list[str] | None = None  # what was read since <invoke
        self._call = _Call("", None)
        self._value = _Value("", frozenset(), is_repeated=False)
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

    def _end_of_space(self, start: int) -> int:
        space = _SPACE.match(self._buffer, start)
        assert space is not None
        return space.end()

    def _look(self, start: int, tags: tuple[str, ...]) -> tuple[str | _Ahead, int]:
        """Which of the tags comes at `start` after white space, and where."""
        start = self._end_of_space(start)
        for tag in tags:
            if self._buffer.startswith(tag, start):
                return tag, start
        rest = self._buffer[start:]
        if any(tag.startswith(rest) for tag in tags):
            return (_Ahead.END if self._is_final else _Ahead.WAIT), start
        return _Ahead.OTHER, start

    def _read_tag(self, tag: str, at: int) -> tuple[str | None, int] | None:
        """The name in the tag at `at`, and the tag's end. None: the tag is not whole yet.

        A tag ends at `>`; a `<` before that means it is broken off there and has no name.
        """
        start = at + len(tag)
        found = _BRACKET.search(self._buffer, start, start + _LONGEST_TAG)
        if found is None:
            is_too_long = len(self._buffer) >= start + _LONGEST_TAG
            return (None, start + _LONGEST_TAG) if is_too_long else None
        if found.group() == "<":
            return None, found.start()
        return _tag_name(self._buffer[start : found.start()]), found.end()

    # Thought and content.

    def _text(self) -> bool:
        tags = (*_TAGS, _M1_TOOL_BLOCK, *([INVOKE] if self._is_in_block else []))
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
        if tag == _M1_TOOL_BLOCK:
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
        ahead, _ = self._look(self._position + len(TOOL_BLOCK), (INVOKE,))
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
        """Calls follow: the thought, if still open, ends here."""
        if self._is_thinking:
            self._close_thinking()
        self._may_think = False
        self._is_in_block = True
        self._content.end_segment()
        self._state = self._block

    def _block(self) -> bool:
        self._take(self._end_of_space(self._position))
        ahead, at = self._look(self._position, (INVOKE, END_TOOL_BLOCK, TOOL_BLOCK))
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
        else:  # a block opened once more in a block is the same block
            self._take(at + len(ahead))
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
        end, tag = self._find((END_INVOKE, END_TOOL_BLOCK))
        self._take(end)
        if tag is None:
            return False
        if tag == END_INVOKE:
            self._take(end + len(tag))
        text, self._raw = "".join(self._raw or ()), None
        self._problem(f"a tool call has no name and is kept as content: {text}")
        while any(tag in text for tag in _TAGS):
            for tag in _TAGS:
                text = text.replace(tag, "")
        self._say(text)
        self._content.end_segment()
        self._state = self._block
        return True

    def _body(self) -> bool:
        self._take(self._end_of_space(self._position))
        ahead, at = self._look(self._position, _CALL_TAGS)
        if isinstance(ahead, _Ahead):
            if ahead is _Ahead.OTHER:
                self._skipped = []
                self._state = self._stray
            return ahead is _Ahead.OTHER
        if ahead != PARAMETER:
            self._take(at + len(ahead) if ahead == END_INVOKE else at)
            self._end_call(ahead)
            return True
        read = self._read_tag(PARAMETER, at)
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
        """Text in a call but in no parameter."""
        end, tag = self._find(_CALL_TAGS)
        self._skipped.append(self._take(end))
        if tag is not None:
            skipped = "".join(self._skipped).strip()
            self._problem(f"the call of {self._call.name} has text in no parameter: {skipped}")
            self._state = self._body
        return tag is not None

    def _index(self) -> int:
        """The index of the call, whose ToolCallStart goes out the first time it is asked for."""
        if self._call.index is None:
            self._call.index = self._start_call(self._call.name)
        return self._call.index

    def _end_call(self, tag: str) -> None:
        if tag != END_INVOKE:
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
        types = parameter_types(call.schema, name)
        self._value = _Value(opening, types, is_repeated=name in call.given)
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
            self._stream_value(self._take(end + len(tag)))
            return True
        if tag == END_PARAMETER:
            self._take(end + len(tag))
        else:
            self._problem(f"the call of {self._call.name} has a value with no {END_PARAMETER}")
        self._end_value()
        self._state = self._body
        return True

    def _ends_value(self, tag: str, at: int) -> bool | None:
        """Whether the tag ends the value or belongs to it; None when the next pieces will tell."""
        after = at + len(tag)
        if tag == NEXT_PARAMETER:
            read = self._read_tag(PARAMETER, at)
            if read is None:
                return False if self._is_final else None
            name, _ = read
            call = self._call
            is_new = call.declared is None or (name in call.declared and name not in call.given)
            return name is not None and is_new
        if tag == END_PARAMETER:
            ahead, next_at = self._look(after, (NEXT_PARAMETER, END_INVOKE, END_TOOL_BLOCK))
            if ahead != END_INVOKE:
                return None if ahead is _Ahead.WAIT else ahead is not _Ahead.OTHER
            after = next_at + len(END_INVOKE)
        ahead, _ = self._look(after, (INVOKE, END_TOOL_BLOCK, TOOL_BLOCK))
        return None if ahead is _Ahead.WAIT else ahead is not _Ahead.OTHER

    def _stream_value(self, text: str) -> None:
        value = self._value
        if value.is_repeated:
            return
        if not value.is_streaming:
            value.text += text
            # Text that may be null is text as soon as it cannot become that word.
            could_be_null = "null" in value.types and "null".startswith(value.text.lower())
            if (
                could_be_null
                or not value.types <= {"string", "null"}
                or "string" not in value.types
            ):
                return
            value.is_streaming = True
            self._send(value.opening + '"')
            text = value.text
        self._send(escape_json(text))

    def _end_value(self) -> None:
        value = self._value
        if value.is_repeated:
            return
        if value.is_streaming:
            self._send('"')
        else:
            self._send(value.opening + dump_json(convert(value.text, value.types)))

    def _send(self, fragment: str) -> None:
        if fragment:
            self._emit(ToolCallDelta(self._index(), fragment))
