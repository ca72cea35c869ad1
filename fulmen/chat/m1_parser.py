"""MiniMax-M1's completions: text to thought, content and tool calls.

A completion is `<think>` thought `</think>` answer, then one or more blocks of calls:

    <tool_calls>
    {"name": "N", "arguments": {"K": "V"}}
    </tool_calls>

- The prompt does not open the thought. With thinking_open=True a leading <think> opens it; newlines
  around it are layout, and a thought without an end is all thought. With False, <think> and its
  text stay in the content. Calls inside <think>...</think> are never calls.
- After a thought, <think> opens another anywhere in the content but in Markdown code, where the
  tags of a thought are text.
- White space before a block is layout. The block's own tags are not content.
- Calls are JSON objects, one or several, on one line or many, checked character by character, and
  their arguments stream as they are. Stray commas, brackets and doubled closing braces between
  them, and a brace missing at a call's end, are tolerated.
- A malformed call is never lost. Anything the model finished but got wrong (text, broken JSON, an
  object that is not a call) becomes content, and is reported. Broken JSON ends where its brackets
  close, at a line where the next call begins, or with the block. Two things are not in the content
  but quoted in full in `problems`: an object with a name and no `arguments`, as upstream's tests
  have it, and a call that the end of the text cut off. The start of a malformed call may have been
  streamed as a ToolCallStart, which without its ToolCallEnd is not a call.
"""

import re
from collections.abc import Callable

from fulmen.chat.arguments import JsonObjectScanner, dump_json, load_json
from fulmen.chat.events import ToolCallDelta, ToolCallEnd
from fulmen.chat.messages import CallIds, Tool
from fulmen.chat.parsing import CodePlace, StreamParser, all_space, without_tags

THINK, END_THINK = "<think>", "</think>"
TOOL_BLOCK, END_TOOL_BLOCK = "<tool_calls>", "</tool_calls>"

_SPACE_AND_SEPARATORS = re.compile(r"[\s,\[\]}]*")
_BLOCK_TAGS = (TOOL_BLOCK, END_TOOL_BLOCK)
_CALL_STARTS = ('{"name"', '{"arguments"')
_LONGEST_START = max(map(len, (*_BLOCK_TAGS, *_CALL_STARTS)))


class _Call:
    """Call being read."""

    def __init__(self) -> None:
        self.scanner = JsonObjectScanner()
        self.raw: list[str] = []
        self.name: str | None = None
        self.arguments: list[str] | None = None  # JSON not sent yet; None before it begins
        self.has_whole_arguments = False
        self.is_in_arguments = False
        self.index: int | None = None  # set once its ToolCallStart is out


class _Broken:
    """Object being read that is not JSON: only its brackets and strings still count."""

    def __init__(self, reason: str, raw: str) -> None:
        self.reason = reason
        self.raw: list[str] = []
        self.depth = 0
        self.is_line_start = False
        self._is_in_string = False
        self._is_escaped = False
        self.add(raw)

    def add(self, text: str) -> None:
        self.raw.append(text)
        for char in text:
            self._count(char)

    def _count(self, char: str) -> None:
        self.is_line_start = char == "\n" or (self.is_line_start and char.isspace())
        if self._is_escaped:
            self._is_escaped = False
        elif char == "\\":
            self._is_escaped = self._is_in_string
        elif char == '"':
            self._is_in_string = not self._is_in_string
        elif not self._is_in_string:
            self.depth += (char in "{[") - (char in "}]")


class M1Parser(StreamParser):
    """State machine: `_state` is the method that reads the next text."""

    def __init__(self, tools: tuple[Tool, ...], thinking_open: bool, new_call_id: CallIds) -> None:
        super().__init__(tools, new_call_id)
        self._may_think = thinking_open
        self._is_in_quoted_think = False
        self._has_thought = False
        self._state: Callable[[], bool] = self._text
        self._call: _Call | None = None
        self._broken: _Broken | None = None
        self._has_block_content = False
        self._content.layout_before_tools = all_space

    def _step(self) -> bool:
        return self._state()

    def _is_in_text(self) -> bool:
        return self._state == self._text and not self._is_in_quoted_think

    def _end(self) -> None:
        if self._call is not None:
            self._cut_off(self._call)
        if self._broken is not None:
            self._is_call_open = True
            self._problem(f"{self._broken.reason}: {''.join(self._broken.raw)}".rstrip())
        if self._state != self._text:
            self._is_call_open |= not self._has_block_content
            self._problem(f"the tool block has no {END_TOOL_BLOCK}")
        super()._end()

    # Thought and content.

    def _text(self) -> bool:
        if self._is_thinking or self._is_in_quoted_think:
            tags: tuple[str, ...] = (END_THINK,)
        else:
            tags = (THINK, TOOL_BLOCK, END_TOOL_BLOCK)
            if self._has_thought:
                tags = (*tags, END_THINK)
        end, tag = self._find(tags)
        self._say(self._take(end))
        if tag is None:
            return False
        if tag == THINK and self._opens_thought():
            self._open_thought()
            self._may_think = False
            self._take(end + len(tag))
            return True
        self._take(end + len(tag))
        if tag == TOOL_BLOCK:
            self._may_think = self._has_block_content = False
            self._content.end_segment()
            self._code = CodePlace()
            self._state = self._block
        elif tag == END_THINK and self._is_thinking:
            self._close_thought()
            self._has_thought = True
        elif tag != END_TOOL_BLOCK and self._has_thought and self._code.is_code:
            self._say(tag)
        elif tag == END_TOOL_BLOCK or (tag == END_THINK and not self._is_in_quoted_think):
            self._problem(f"a stray {tag} was taken out of the text")
        else:
            self._is_in_quoted_think = tag == THINK
            self._say(tag)
        return True

    def _opens_thought(self) -> bool:
        if self._has_thought:
            return not self._code.is_code
        return self._may_think and self._content.is_blank

    def _block(self) -> bool:
        self._take_run(_SPACE_AND_SEPARATORS)
        rest = self._buffer[self._position : self._position + len(END_TOOL_BLOCK)]
        if rest == END_TOOL_BLOCK:
            self._take(self._position + len(rest))
            if not self._has_block_content:
                self._problem("a tool block has no call in it")
            self._code = CodePlace()
            self._state = self._text
        elif rest.startswith(TOOL_BLOCK):
            self._take(self._position + len(TOOL_BLOCK))
        elif any(tag.startswith(rest) for tag in _BLOCK_TAGS):
            return False
        elif rest[0] == "{":
            self._has_block_content = True
            self._call = _Call()
            self._state = self._object
        else:
            self._has_block_content = True
            self._problem("a tool block has text beside its calls, it is kept as content")
            self._state = self._beside
        return True

    def _beside(self) -> bool:
        """Read text in a block that is not an object: it is content, to the end of its line."""
        end, tag = self._find(("\n", *_BLOCK_TAGS))
        self._say(self._take(end))
        if tag == "\n":
            self._say(tag)
        if tag is not None:
            self._state = self._block
        return tag is not None

    # One call.

    def _object(self) -> bool:
        call = self._call
        assert call is not None
        start = self._position
        while self._position < len(self._buffer):
            end = call.scanner.skip_plain(self._buffer, self._position)
            self._keep(call, end)
            if end == len(self._buffer):
                break
            char = self._buffer[end]
            try:
                call.scanner.push(char)
            except ValueError as error:
                call.raw.append(self._buffer[start:end])
                # `{` or `<` begins the next call or tag: perhaps only the last brace is missing.
                is_whole = char in "{<" and self._finish_unclosed(call)
                if not is_whole:
                    self._give_up(call, f"a tool call is not JSON ({error})")
                return True
            self._keep(call, end + 1)
            if call.scanner.depth == 0:
                call.raw.append(self._buffer[start : self._position])
                self._close(call)
                return True
        call.raw.append(self._buffer[start : self._position])
        self._send(call)
        return False

    def _keep(self, call: _Call, end: int) -> None:
        """Consume the buffer up to `end`, and keep the name and the arguments in it."""
        text = self._take(end)
        if not text:
            return
        scanner = call.scanner
        if call.is_in_arguments:
            assert call.arguments is not None
            call.arguments.append(text)
            if scanner.depth == 1:
                call.is_in_arguments = False
                call.has_whole_arguments = True
        elif scanner.depth == 2 and text == "{" and self._is_first_arguments(call):
            call.is_in_arguments = True
            call.arguments = ["{"]
        elif scanner.depth == 1 and scanner.value_text is not None:
            if scanner.key == "name" and call.name is None:
                call.name = scanner.value_text
            elif self._is_first_arguments(call):
                self._read_encoded(call, scanner.value_text)

    def _is_first_arguments(self, call: _Call) -> bool:
        return call.scanner.key == "arguments" and call.arguments is None

    def _read_encoded(self, call: _Call, text: str) -> None:
        """Read arguments given as a JSON string that holds the object."""
        try:
            value = load_json(text)
        except ValueError:
            return
        if isinstance(value, dict):
            call.arguments = [dump_json(value)]
            call.has_whole_arguments = True

    def _send(self, call: _Call) -> None:
        """Stream the arguments so far, once the name is known."""
        if not call.name or not call.arguments:
            return
        if call.index is None:
            call.index = self._start_call(call.name)
        self._emit(ToolCallDelta(call.index, "".join(call.arguments)))
        call.arguments.clear()

    def _close(self, call: _Call) -> None:
        """Finish an object that is whole, and JSON: a call, or a problem."""
        if call.name and call.has_whole_arguments:
            self._finish_call(call)
            return
        self._call = None
        self._state = self._block
        raw = "".join(call.raw)
        self._problem(f"a tool call needs a name and an object of arguments: {raw}")
        if not call.name or "arguments" in load_json(raw):
            self._say_line(raw)

    def _finish_call(self, call: _Call) -> None:
        self._send(call)
        assert call.index is not None
        self._emit(ToolCallEnd(call.index))
        self._call = None
        self._state = self._block

    def _finish_unclosed(self, call: _Call) -> bool:
        """Finish a call whose text stops short, if only its last brace is missing."""
        if not call.name or not call.has_whole_arguments:
            return False
        self._finish_call(call)
        self._problem(f"the call of {call.name} has no closing brace")
        return True

    def _cut_off(self, call: _Call) -> None:
        if not self._finish_unclosed(call):
            self._is_call_open = True
            raw = "".join(call.raw).rstrip()
            self._problem(f"a tool call was cut off by the end of the text: {raw}")

    # Text that is not a call.

    def _give_up(self, call: _Call, reason: str) -> None:
        self._send(call)
        self._call = None
        self._broken = _Broken(reason, "".join(call.raw))
        self._state = self._broken_object

    def _broken_object(self) -> bool:
        broken = self._broken
        assert broken is not None
        while broken.depth:
            is_end = self._begins_something(is_line_start=broken.is_line_start)
            if is_end is None:
                return False
            if is_end:
                break
            broken.add(self._take(self._position + 1))
        raw = "".join(broken.raw).rstrip()
        self._broken = None
        self._state = self._block
        self._problem(f"{broken.reason}: {raw}")
        self._say_line(without_tags(raw, _BLOCK_TAGS))
        return True

    def _begins_something(self, *, is_line_start: bool) -> bool | None:
        """Return True if a tag or a call begins here; None when only the next piece can tell."""
        rest = self._buffer[self._position : self._position + _LONGEST_START]
        starts = (*_BLOCK_TAGS, *_CALL_STARTS) if is_line_start else _BLOCK_TAGS
        if rest.startswith(starts):
            return True
        if not self._is_final and any(start.startswith(rest) for start in starts):
            return None
        return False if rest else None

    def _say_line(self, text: str) -> None:
        self._say(f"{text}\n")
