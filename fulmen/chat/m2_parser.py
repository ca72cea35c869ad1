"""MiniMax-M2's completions: text to thought, content and tool calls.

Parsing undoes rendering. A completion starts inside the thought, which the prompt has opened:

    thought </think> content <minimax:tool_call> <invoke name="N"> <parameter name="K">V</parameter>
    </invoke> </minimax:tool_call>

- Layout is dropped: newlines around the thought and after </think>, and the one newline that the
  template puts before a tool block. With thinking_open=False there was no layout, so content is
  verbatim. Blank text beside tool blocks is dropped too.
- <think> opens a thought anywhere in the content but in Markdown code, where the tags of a thought
  are text. A thought is kept as written, but for a <think> that repeats the prompt's own. A call
  inside it ends it.
- Elsewhere tags are not content; one that means nothing is taken out and reported, and so are
  closing tags after a call that may have been cut there.
- Nothing in a value is escaped. `m2_values.py` says which tag ends a value: what follows the tag
  decides, which parameters the tool declares, and which elements are open inside the value. Where
  only later text can tell, the call waits for it; a call that stays uncertain is refused.
  A missing closing tag is reported, and so is a value that keeps a </parameter>, or that keeps text
  that may be the start of a parameter or a call.
- String values stream, escaped; others wait for their end, which alone shows their type. Of a
  repeated parameter the first value counts, since it may be out already. Text of a call that is in
  no parameter is skipped, and quoted in `problems`: the call around it is still whole.
- A malformed call is never lost. Anything the model finished but got wrong (a call without a name,
  text in the tool block) becomes content, and is reported. A call that is refused, or that the end
  of the text cut off, is in `problems`, quoted in full, and not in the content: its start may have
  been streamed as a ToolCallStart, which without its ToolCallEnd is not a call.
"""

import re
from collections.abc import Callable

from fulmen.chat.arguments import dump_json, escape_json
from fulmen.chat.events import ToolCallDelta, ToolCallEnd
from fulmen.chat.m2_tags import (
    END_INVOKE,
    END_PARAMETER,
    END_TOOL_BLOCK,
    INVOKE,
    PARAMETER,
    TOOL_BLOCK,
    Ahead,
    follower,
    look,
    look_after_space,
    read_tag,
)
from fulmen.chat.m2_values import Call, Doubt, OpenTags, Value, Verdict, judge_end_parameter
from fulmen.chat.messages import CallIds, Tool
from fulmen.chat.parameters import Parameters
from fulmen.chat.parsing import CodePlace, StreamParser, one_newline, without_tags

THINK, END_THINK = "<think>", "</think>"
M1_TOOL_BLOCK = "<tool_calls>"

_TAGS = (THINK, END_THINK, TOOL_BLOCK, END_TOOL_BLOCK)
_CALL_TAGS = (PARAMETER, END_INVOKE, INVOKE, END_TOOL_BLOCK, TOOL_BLOCK)
_VALUE_TAGS = (END_PARAMETER, PARAMETER, END_INVOKE, INVOKE, END_TOOL_BLOCK, TOOL_BLOCK)
_AFTER_INVOKE = (INVOKE, END_TOOL_BLOCK, TOOL_BLOCK)
_MAX_REREAD = 2_000_000
"""Characters that are read again for doubts which only the end of the text settled; the calls after
those are refused where they are in doubt"""
_LAYOUT = re.compile(r"\s*")


class M2Parser(StreamParser):
    """State machine: `_state` is the method that reads the next text."""

    def __init__(self, tools: tuple[Tool, ...], thinking_open: bool, new_call_id: CallIds) -> None:
        super().__init__(tools, new_call_id)
        self._is_thinking = thinking_open
        self.num_thoughts = int(thinking_open)
        self._may_repeat_opening = thinking_open
        self._is_in_block = False
        self._state: Callable[[], bool] = self._text
        self._raw: list[str] | None = None  # the text since <invoke
        self._parameters: dict[str, Parameters] = {}  # of the tools that were called
        self._call = Call("", Parameters({}))
        self._value = Value("", "", frozenset(), is_repeated=True)
        self._skipped: list[str] = []
        self._refusal = ""
        self._num_reread = 0
        self._ended_calls: dict[str, None] = {}  # names of those not reported as perhaps cut
        self._elements = OpenTags()  # in the content after calls
        if thinking_open:
            self._content.layout_before_tools = one_newline

    def _step(self) -> bool:
        return self._state()

    def _is_in_text(self) -> bool:
        return self._state in (self._text, self._block)

    def _end(self) -> None:
        if self._raw is not None:
            self._take(len(self._buffer))
            raw = "".join(self._raw)
            is_refused = self._state == self._refused
            self._is_call_open = not is_refused or not raw.rstrip().endswith(END_TOOL_BLOCK)
            if is_refused:
                self._problem(f"{self._refusal}: {raw}")
            else:
                self._problem(f"a tool call was cut off by the end of the text: {raw}")
        super()._end()

    # Reading ahead.

    def _take(self, end: int) -> str:
        text = super()._take(end)
        if self._raw is not None:
            self._raw.append(text)
        return text

    def _read_tag(self, tag: str, at: int) -> tuple[str | None, int] | None:
        return read_tag(self._buffer, at, tag, is_final=self._is_final)

    def _follower(self, at: int, tags: tuple[str, ...]) -> tuple[str | Ahead, int, str | None]:
        return follower(self._buffer, at, tags, is_final=self._is_final)

    # Thought and content.

    def _text(self) -> bool:
        if self._is_thinking:
            tags: tuple[str, ...] = (THINK, END_THINK, TOOL_BLOCK, M1_TOOL_BLOCK)
        else:
            tags = (*_TAGS, M1_TOOL_BLOCK)
            if self._num_calls:
                tags = (*tags, INVOKE, PARAMETER, END_INVOKE, END_PARAMETER)
            elif self._is_in_block:
                tags = (*tags, INVOKE)
        end, tag = self._find(tags)
        self._say(self._take(end))
        if tag is None:
            return False
        if tag == TOOL_BLOCK:
            return self._open_block()
        if tag == INVOKE and self._is_in_block:
            return self._enter_block()
        if tag == THINK and not self._is_thinking and not self._code.is_code:
            self._open_thought()
            self._content.layout_before_tools = one_newline
            self._take(end + len(tag))
            return True
        self._take(end + len(tag))
        if tag == M1_TOOL_BLOCK:
            self._say(tag)
            self._problem(f"{tag} belongs to MiniMax-M1, was the prompt rendered by its template?")
        elif self._is_thinking:
            if tag == END_THINK:
                self._close_thought()
            elif self._may_repeat_opening and self.num_thoughts == 1 and self._thinking.is_blank:
                self._may_repeat_opening = False  # the prompt's own tag once more
            else:
                self._say(tag)
        elif tag == END_TOOL_BLOCK and self._is_in_block:
            self._is_in_block = False
            self._code = CodePlace()
        elif self._is_text(tag):
            self._say(tag)
        else:
            if tag != END_THINK:
                self._report_cut()
            self._problem(f"a stray {tag} was taken out of the text")
        return True

    def _is_text(self, tag: str) -> bool:
        """Return True if a tag in the content is quoted in code, or of an element written there."""
        if self._code.is_code:
            return tag != END_TOOL_BLOCK
        return tag != END_THINK and self._elements.follow(tag)

    def _report_cut(self) -> None:
        """Report that a value may have held the closing tags by which its call ended."""
        for name in self._ended_calls:
            self._problem(f"the call of {name} may be cut: closing tags come again after it")
        self._ended_calls.clear()

    def _open_block(self) -> bool:
        ahead, _ = look_after_space(
            self._buffer, self._position + len(TOOL_BLOCK), (INVOKE,), is_final=self._is_final
        )
        if ahead is Ahead.WAIT:
            return False
        if ahead is Ahead.END and not self._is_thinking:
            rest = self._take(len(self._buffer))
            self._is_call_open = True
            self._problem(f"a tool call was cut off by the end of the text: {rest}")
            return False
        tag = self._take(self._position + len(TOOL_BLOCK))
        if ahead == INVOKE:
            self._enter_block()
        elif self._is_thinking:
            self._say(tag)
        else:
            self._is_in_block = True
            self._problem(f"{TOOL_BLOCK} is not followed by a call, what follows is kept as text")
        return True

    def _enter_block(self) -> bool:
        """Start a block of calls; it ends the thought, if that is still open."""
        if self._is_thinking:
            self._close_thought()
        self._is_in_block = True
        self._content.end_segment()
        self._code = CodePlace()
        self._state = self._block
        return True

    def _block(self) -> bool:
        self._take_run(_LAYOUT)
        ahead = look(self._buffer, self._position, (*_AFTER_INVOKE, THINK), is_final=self._is_final)
        if ahead is Ahead.WAIT:
            return False
        if ahead is Ahead.END:
            rest = self._take(len(self._buffer)).strip()
            self._is_call_open = not END_TOOL_BLOCK.startswith(rest)
            self._problem(f"the tool block has no {END_TOOL_BLOCK}" + f": {rest}" * bool(rest))
            return False
        if ahead == THINK:
            self._state = self._text
        elif ahead is Ahead.OTHER:
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
        if name not in self._parameters:
            tool = self._tools.get(name)
            self._parameters[name] = Parameters(tool.parameters if tool else {})
        self._call = Call(name, self._parameters[name])
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
        ahead = look(self._buffer, self._position, _CALL_TAGS, is_final=self._is_final)
        if isinstance(ahead, Ahead):
            if ahead is Ahead.OTHER:
                self._skipped = []
                self._state = self._stray
            return ahead is Ahead.OTHER
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
        self._call.is_odd = True
        end, tag = self._find(_CALL_TAGS)
        self._skipped.append(self._take(end))
        if tag is not None:
            skipped = "".join(self._skipped).strip()
            if self._ended_calls and END_PARAMETER in skipped and PARAMETER not in skipped:
                self._report_cut()
                self._call.may_be_text = True
            self._problem(f"the call of {self._call.name} has text in no parameter: {skipped}")
            self._state = self._body
        return tag is not None

    def _index(self) -> int:
        """Return the index of the call; the first time, its ToolCallStart goes out."""
        if self._call.index is None:
            self._call.index = self._start_call(self._call.name)
        return self._call.index

    def _end_call(self, tag: str) -> None:
        call = self._call
        if tag == END_INVOKE:
            self._take(self._position + len(tag))
        else:
            self._problem(f"the call of {call.name} has no {END_INVOKE}")
            call.is_odd = True
        reason = call.refusal()
        if reason is None:
            index = self._index()
            self._emit(ToolCallDelta(index, "}" if call.given else "{}"))
            self._emit(ToolCallEnd(index))
            self._ended_calls[call.name] = None
        else:
            raw = "".join(self._raw or ())
            self._problem(f"the call of {call.name} is refused, {reason}: {raw}")
        self._raw = None
        self._state = self._block

    def _refuse(self, reason: str) -> None:
        """Refuse the call, and all that follows: it may be text of the call's value."""
        self._refusal = f"the call of {self._call.name} is refused, {reason}"
        self._state = self._refused

    def _refused(self) -> bool:
        self._take(len(self._buffer))
        return False

    # One value.

    def _start_value(self, name: str) -> None:
        call = self._call
        opening = f"{', ' if call.given else '{'}{dump_json(name)}: "
        types = call.parameters.types(name, call.values)
        self._value = Value(name, opening, types, is_repeated=name in call.given)
        if self._value.is_repeated:
            self._problem(f"the call of {call.name} gives {name} again, the first value counts")
        else:
            if not call.is_known(name):
                self._problem(
                    f"the call of {call.name} gives {name}, which its tool does not declare"
                )
                call.undeclared.append(name)
            call.given.add(name)
            self._index()
            self._stream_value("")
        self._state = self._in_value

    def _in_value(self) -> bool:
        value = self._value
        end, tag = self._find(_VALUE_TAGS)
        self._add_to_value(self._take(end))
        if tag is None:
            if self._is_final and value.doubt is not None:
                self._settle(value.doubt)
                return True
            return False
        if self.has_plain_values and tag == END_PARAMETER:
            self._end_value_at(tag)
            return True
        if (verdict := value.weigh(self._judge(tag, end))) is Verdict.WAIT:
            return False
        if verdict is Verdict.END:
            if value.doubt is not None:
                doubt, value.doubt = value.doubt, None
                self._stream_value("".join(doubt.pieces))
                value.kept_tags |= doubt.kept_tags
            self._end_value_at(tag)
            return True
        if verdict is not Verdict.TEXT and value.doubt is None:
            if self._num_reread > _MAX_REREAD:
                self._refuse("too much of the text before it was unclear")
                return True
            is_in_element = tag != PARAMETER and value.closes_element(tag)
            is_in_json = value.json is not None and value.json.is_open
            num_raw = len(self._raw or ())
            value.doubt = Doubt(tag, verdict, is_in_element, is_in_json, num_raw)
        self._keep_tag(tag, end)
        return True

    def _judge(self, tag: str, at: int) -> Verdict:
        """Judge a tag by what follows it."""
        after = at + len(tag)
        if tag == TOOL_BLOCK:
            return Verdict.TEXT
        if tag in (PARAMETER, INVOKE):
            read = self._read_tag(tag, at)
            if read is None:
                return Verdict.TEXT if self._is_final else Verdict.WAIT
            name, _ = read
            call = self._call
            is_next = name is not None and call.is_declared(name) and call.may_come(name)
            return Verdict.MAYBE if tag == PARAMETER and is_next else Verdict.TEXT
        if tag == END_PARAMETER:
            return self._judge_end_parameter(after)
        followers = _AFTER_INVOKE if tag == END_INVOKE else (END_PARAMETER,)
        ahead, _, _ = self._follower(after, followers)
        if ahead is Ahead.WAIT:
            return Verdict.WAIT
        if (ahead is Ahead.OTHER) == (tag == END_INVOKE) and ahead is not Ahead.END:
            return Verdict.TEXT
        return Verdict.UNSURE if self._value.closes_element(tag) else Verdict.MAYBE

    def _judge_end_parameter(self, after: int) -> Verdict:
        ahead, start, name = self._follower(after, _CALL_TAGS)
        if ahead is Ahead.END:
            return Verdict.END
        if isinstance(ahead, Ahead):
            return Verdict.WAIT if ahead is Ahead.WAIT else Verdict.TEXT
        ends_call = False
        if ahead == END_INVOKE:
            end, _, _ = self._follower(start + len(END_INVOKE), _AFTER_INVOKE)
            if end is Ahead.WAIT:
                return Verdict.WAIT
            ends_call = end in (INVOKE, END_TOOL_BLOCK, Ahead.END)
        return judge_end_parameter(self._value, self._call, ahead, name, ends_call=ends_call)

    def _keep_tag(self, tag: str, at: int) -> None:
        """Take a tag for text of the value, and note it if the model may have meant the end."""
        value = self._value
        end = at + len(tag)
        if tag in (END_PARAMETER, INVOKE) or (
            tag == PARAMETER and self._buffer[end : end + 1].isspace()
        ):
            (value.doubt or value).kept_tags[tag] = None
        if tag not in (PARAMETER, INVOKE) or self._opens_element(tag, at):
            value.follow(tag)
        self._add_to_value(self._take(end))

    def _opens_element(self, tag: str, at: int) -> bool:
        """Return True if an opening tag is whole: it has a name, or nothing but its bracket."""
        read = self._read_tag(tag, at)
        name = read[0] if read else None
        return name is not None or self._buffer.startswith(">", at + len(tag))

    def _add_to_value(self, text: str) -> None:
        doubt = self._value.doubt
        self._value.read(text)
        if doubt is None:
            self._stream_value(text)
        elif text:
            doubt.pieces.append(text)

    def _end_value_at(self, tag: str) -> None:
        """End the value at a tag, which comes next in the buffer."""
        if tag == END_PARAMETER:
            self._take(self._position + len(tag))
        else:
            self._problem(f"the call of {self._call.name} has a value with no {END_PARAMETER}")
            self._call.is_odd = True
        self._end_value()
        self._state = self._body

    def _settle(self, doubt: Doubt) -> None:
        """Go back to where a doubt began: the text ended without a sure end of the value."""
        self._value.doubt = None
        rest = "".join(doubt.pieces)
        self._num_reread += len(rest)
        self._put_back(rest)
        assert self._raw is not None
        del self._raw[doubt.num_raw :]
        if doubt.is_settled_by(rest):
            self._end_value_at(doubt.tag)
        else:
            self._refuse(f"its value of {self._value.name} may be cut off")

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
            self._call.keeps_tags = True
            tags = ", ".join(value.kept_tags)
            self._problem(
                f"the value of {value.name} in the call of {self._call.name} keeps {tags} "
                "as its text"
            )

    def _send(self, fragment: str) -> None:
        if fragment:
            self._emit(ToolCallDelta(self._index(), fragment))
