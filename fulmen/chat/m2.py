"""MiniMax-M2's format: ]~b]role turns, thinking in <think>, tool calls as XML-like elements.

This file writes prompts; `m2_parser.py` reads completions.

Rendering gives what the checkpoint's own template gives, byte for byte, wherever the template is
right. Where it is not:

- null content is empty (the template prints the word None), and arguments given as a JSON string
  are decoded (it fails);
- a developer message is a system message, and all system messages before any other are the system
  block, a blank line between (it drops all but the first). A later one stays where it is, so the
  prompt before it does not change: in <system-reminder> tags at the end of the user or tool turn
  before it, else at the start of the one after it, else in a user turn of its own, which is no
  question: the thoughts before it stay. A user message after tool results that is in these tags
  is one too;
- tools given flat are shown like those given with `function` (it fails);
- a tool's result that is not text is shown as JSON (it prints Python's form of it);
- unknown roles and parts that are not text are errors (it skips them).
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from fulmen.chat.arguments import dump_json
from fulmen.chat.call_grammar import m2_call_rules
from fulmen.chat.expressions import repeated, text_rule
from fulmen.chat.format import (
    CallTags,
    ChatFormat,
    ThinkingTags,
    ThoughtPlace,
    sampled_segments,
)
from fulmen.chat.m2_parser import END_THINK, M1_TOOL_BLOCK, THINK, M2Parser
from fulmen.chat.m2_tags import (
    END_INVOKE,
    END_PARAMETER,
    END_TOOL_BLOCK,
    INVOKE,
    PARAMETER,
    TOOL_BLOCK,
)
from fulmen.chat.messages import CallIds, Message, Messages, Tool, Tools, random_call_id
from fulmen.chat.parsing import Parser
from fulmen.chat.reading import read_messages, read_tools
from fulmen.chat.tokenizer import Control, Ids, Segment, Tokenizer

DEFAULT_IDENTITY = "You are a helpful assistant."

_START, _TURN, _END_TURN = Control("]~!b["), Control("]~b]"), Control("[e~[")
_REMINDER, _END_REMINDER = "<system-reminder>", "</system-reminder>"
_RESERVED = (PARAMETER, END_PARAMETER, INVOKE, END_INVOKE, TOOL_BLOCK, END_TOOL_BLOCK)
_THOUGHT_END = re.compile(rf"\n*{END_THINK}\n*|(?={TOOL_BLOCK}\s*{INVOKE})")

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


class MiniMaxM2(ChatFormat):
    """Format of MiniMax-M2, M2.1, M2.5 and M2.7."""

    name = "minimax_m2"
    end_of_turn = "[e~["
    thinking = ThinkingTags(
        end=END_THINK,
        is_open_in_prompt=True,
        forced_start="",
        forced_end=f"\n{END_THINK}\n\n",
        again=THINK,
    )
    calls = CallTags(block=TOOL_BLOCK, ends_thought=True, reserved=_RESERVED)
    tags = (THINK, END_THINK, TOOL_BLOCK, END_TOOL_BLOCK, M1_TOOL_BLOCK)

    def __init__(self, *, model_identity: str = DEFAULT_IDENTITY) -> None:
        self.model_identity = model_identity
        """System text of a conversation that brings none; each release names itself here"""

    def segments(
        self,
        messages: Messages,
        tools: Tools = None,
        add_generation_prompt: bool = True,
        *,
        keep_thoughts: bool = False,
    ) -> list[Segment]:
        read = [one for group in _with_reminders(read_messages(messages)) for one in group]
        segments: list[Segment] = [_START, _TURN, "system\n"]
        num_leading = next((i for i, one in enumerate(read) if one.role != "system"), len(read))
        segments += _system_texts(read[:num_leading], self.model_identity)
        segments += _tools_segments(read_tools(tools))
        segments += [_END_TURN, "\n"]
        segments += _turns(read[num_leading:], keep_thoughts=keep_thoughts)
        if add_generation_prompt:
            segments += [_TURN, "ai\n", Control(THINK), "\n"]
        return segments

    def shows_thoughts(
        self, messages: Sequence[Message], *, keep_thoughts: bool = False
    ) -> list[bool]:
        """Return True for answers after the last user message, or for all that are kept."""
        groups = _with_reminders(messages)
        last_user = _last_user([group[0] for group in groups])
        return [
            message.role == "assistant" and (keep_thoughts or index > last_user)
            for index, message in enumerate(messages)
        ]

    def parser(
        self,
        tools: Tools = None,
        thinking_open: bool = True,
        *,
        new_call_id: CallIds = random_call_id,
    ) -> Parser:
        return M2Parser(read_tools(tools), thinking_open, new_call_id)

    def find_thought(self, text: str) -> ThoughtPlace:
        """Find the thought before </think> or before a call inside it; the prompt has opened it."""
        end = _THOUGHT_END.search(text)
        if end is None:
            return ThoughtPlace(0, len(text), len(text), is_closed=False)
        return ThoughtPlace(0, end.start(), end.end())

    def call_grammar(
        self, tools: tuple[Tool, ...], tokenizer: Tokenizer, *, max_calls: int | None = None
    ) -> str:
        """Return the grammar of calls as `segments` writes them, with parameters in the order of
        their schema. A value that is text holds none of the call's tags."""
        names = [f"call_{index}" for index in range(len(tools))]
        some = repeated(" | ".join(names), max_calls)
        rules = [f'start: "\\n" {some} {text_rule(END_TOOL_BLOCK, tokenizer)}']
        for name, tool in zip(names, tools, strict=True):
            rules += m2_call_rules(name, tool, _RESERVED)
        return "\n".join(rules)


def _system_texts(system: list[Message], model_identity: str) -> Iterator[str]:
    first = system[0] if system else Message("system")
    # A list of empty parts counts as content, as in the template.
    yield first.content if first.content or first.parts else model_identity
    yield from _date_and_place(first)
    for message in system[1:]:
        if message.content:
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


def _with_reminders(messages: Sequence[Message]) -> list[list[Message]]:
    """Return what each message stands for: a user message after tool results that is reminders
    alone stands for system messages. Clients write one where a server refuses system messages in
    mid-conversation, and it is no question: the thoughts before it are shown."""
    found: list[list[Message]] = []
    is_after_results = False
    for message in messages:
        texts: list[str] = []
        if message.role == "user" and is_after_results:
            texts = _reminders(message.content)
        if message.role != "system" and not texts:
            is_after_results = message.role == "tool"
        found.append([Message("system", text) for text in texts] or [message])
    return found


def _reminders(text: str) -> list[str]:
    """Return the reminders that a text consists of; none if there is anything else in it."""
    found: list[str] = []
    at = _skip_space(text, 0)
    while at < len(text):
        start, end = at + len(_REMINDER), text.find(_END_REMINDER, at)
        if end < start or not text.startswith(_REMINDER, at):
            return []
        found.append(text[start:end].strip("\n"))
        at = _skip_space(text, end + len(_END_REMINDER))
    return found


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _last_user(messages: Sequence[Message]) -> int:
    return max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)


def _turns(messages: list[Message], *, keep_thoughts: bool) -> Iterator[Segment]:
    last_user = _last_user(messages)
    has_calls = False
    index = 0
    while index < len(messages):
        if messages[index].role == "assistant":
            has_calls = bool(messages[index].tool_calls)
            is_thinking_kept = keep_thoughts or index > last_user
            yield from _answer(messages[index], is_thinking_kept=is_thinking_kept)
            index += 1
            continue
        end = _end_of_turn(messages, index)
        turn = messages[index:end]
        if any(message.role == "tool" for message in turn):
            if not has_calls:
                raise ValueError(
                    "a tool message comes after no tool call, "
                    "the assistant message before it must have tool_calls"
                )
            yield from _turn("tool", _tool_turn(turn))
        elif text := _user_turn(turn):
            yield from _turn("user\n", text)
        index = end


def _turn(head: str, content: Iterable[Segment]) -> Iterator[Segment]:
    yield from (_TURN, head)
    yield from content
    yield from (_END_TURN, "\n")


def _end_of_turn(messages: Sequence[Message], start: int) -> int:
    """Return the end of a turn that is one user message or a run of tool messages, with the system
    messages before it, between and after it, or of system messages alone."""
    end = start
    role = "system"
    while end < len(messages):
        following = messages[end].role
        if following == "assistant" or (
            following != "system" and role != "system" and (following, role) != ("tool", "tool")
        ):
            break
        role = following if following != "system" else role
        end += 1
    return end


def _user_turn(turn: Sequence[Message]) -> list[str]:
    """Return the texts of a turn; none for system messages without a text."""
    texts: list[str] = []
    for message in turn:
        text = message.content if message.role == "user" else _reminder(message)
        is_line_open = bool(texts and texts[-1]) and not texts[-1].endswith("\n")
        if text and is_line_open:
            texts.append("\n")
        if text or message.role == "user":
            texts.append(text)
    return texts


def _tool_turn(turn: Sequence[Message]) -> Iterator[Segment]:
    for message in turn:
        if message.role == "tool":
            yield from _responses(message)
        elif text := _reminder(message):
            yield f"\n{text}"


def _reminder(message: Message) -> str:
    """Return a system message as it stands among other turns; empty if it says nothing."""
    text = message.content + "".join(_date_and_place(message))
    text = text if message.content else text.removeprefix("\n")
    return f"{_REMINDER}\n{text}\n{_END_REMINDER}" if text else ""


def _answer(message: Message, *, is_thinking_kept: bool) -> Iterator[Segment]:
    yield from (_TURN, "ai\n")
    if message.sampled is None:
        yield from _assistant(message, is_thinking_kept=is_thinking_kept)
    elif message.sampled.has_later_thoughts and not is_thinking_kept:
        # Thoughts among the answer's ids: what the template shows has to be encoded anew.
        yield from _assistant(message, is_thinking_kept=False)
        yield Ids((), num_dropped=1)
    else:
        yield from _sampled(message, is_thinking_kept=is_thinking_kept)
    yield from (_END_TURN, "\n")


def _sampled(message: Message, *, is_thinking_kept: bool) -> Iterator[Segment]:
    if message.sampled is not None and message.sampled.is_answer_only:
        if message.thinking and is_thinking_kept:
            yield from _thought(message.thinking)
    elif is_thinking_kept:
        yield from (Control(THINK), "\n")
    yield from sampled_segments(message, with_thought=is_thinking_kept)
    if is_thinking_kept and message.sampled is not None and not message.sampled.is_thinking_closed:
        yield from ("\n", Control(END_THINK), "\n\n")


def _thought(thinking: str) -> Iterator[Segment]:
    yield from (Control(THINK), f"\n{thinking}\n", Control(END_THINK), "\n\n")


def _assistant(message: Message, *, is_thinking_kept: bool) -> Iterator[Segment]:
    thinking, content = message.thinking, message.content
    if thinking is None and END_THINK in content:
        before, _, _ = content.partition(END_THINK)
        _, _, after = content.rpartition(END_THINK)
        thinking = before.strip("\n").split(THINK)[-1].strip("\n")
        content = after.strip("\n")
    if thinking and is_thinking_kept:
        yield from _thought(thinking)
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
