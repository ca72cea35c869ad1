"""MiniMax-M1's format: <beginning_of_sentence>role turns, thinking and tool calls as plain text.

This file writes prompts; `m1_parser.py` reads completions.

Rendering gives what the checkpoint's own template gives, byte for byte, wherever the template is
right. Where it is not:

- content may be a string or null, and all its text parts count (the template fails on a string
  and reads only the first part of system and user messages);
- an assistant's thinking and tool_calls are written as the model writes them, around the content,
  in every turn: the template ignores both fields, and would keep them if they were in the content;
- a tool result that does not name its tool takes the name of the call it answers, by id or order.
"""

import re
from collections.abc import Iterator, Sequence

from fulmen.chat.arguments import dump_json
from fulmen.chat.call_grammar import m1_call_schema
from fulmen.chat.expressions import json_rule, repeated, text_rule
from fulmen.chat.format import (
    CallTags,
    ChatFormat,
    ThinkingTags,
    ThoughtPlace,
    sampled_segments,
)
from fulmen.chat.m1_parser import END_THINK, END_TOOL_BLOCK, THINK, TOOL_BLOCK, M1Parser
from fulmen.chat.messages import (
    CallIds,
    Message,
    Messages,
    Part,
    Tool,
    ToolCall,
    Tools,
    random_call_id,
)
from fulmen.chat.parsing import Parser
from fulmen.chat.reading import read_messages, read_tools
from fulmen.chat.tokenizer import Control, Segment, Tokenizer

_START = Control("<begin_of_document>")
_TURN, _END_TURN = Control("<beginning_of_sentence>"), Control("<end_of_sentence>")

_TOOLS_BEFORE = "system tool_setting=tools\nYou are provided with these tools:\n<tools>\n"
_TOOLS_AFTER = (
    "</tools>\n\nIf you need to call tools, please respond with <tool_calls></tool_calls> XML "
    "tags, and provide tool-name and json-object of arguments, following the format below:\n"
    "<tool_calls>\n{name: <tool-name-1>, arguments: <args-json-object-1>}\n...\n</tool_calls>"
)


class MiniMaxM1(ChatFormat):
    """Format of MiniMax-M1 (40k and 80k) and MiniMax-Text-01."""

    name = "minimax_m1"
    end_of_turn = "<end_of_sentence>"
    thinking = ThinkingTags(
        start=THINK,
        end=END_THINK,
        is_open_in_prompt=False,
        forced_start=f"{THINK}\n",
        forced_end=f"\n{END_THINK}\n",
        again=THINK,
    )
    calls = CallTags(block=TOOL_BLOCK, ends_thought=False)
    tags = (THINK, END_THINK, TOOL_BLOCK, END_TOOL_BLOCK)

    def segments(
        self,
        messages: Messages,
        tools: Tools = None,
        add_generation_prompt: bool = True,
        *,
        keep_thoughts: bool = False,
    ) -> list[Segment]:
        read = read_messages(messages)
        segments: list[Segment] = [_START]
        system = "".join(message.content for message in read if message.role == "system")
        if system:
            segments += [_TURN, f"system ai_setting=assistant\n{system}", _END_TURN, "\n"]
        lines = "".join(_tool_line(tool) for tool in read_tools(tools))
        if lines:
            segments += [_TURN, _TOOLS_BEFORE + lines + _TOOLS_AFTER, _END_TURN, "\n"]
        turns = [message for message in read if message.role != "system"]
        for message, name in zip(turns, _tool_names(turns), strict=True):
            segments += [_TURN, *_turn(message, name), _END_TURN, "\n"]
        if add_generation_prompt:
            segments += [_TURN, "ai name=assistant\n"]
        return segments

    def shows_thoughts(
        self, messages: Sequence[Message], *, keep_thoughts: bool = False
    ) -> list[bool]:
        """Return True for every answer: the template keeps what was written before it."""
        return [message.role == "assistant" for message in messages]

    def parser(
        self,
        tools: Tools = None,
        thinking_open: bool = True,
        *,
        new_call_id: CallIds = random_call_id,
    ) -> Parser:
        return M1Parser(read_tools(tools), thinking_open, new_call_id)

    def find_thought(self, text: str) -> ThoughtPlace:
        """Find the thought between a leading <think> and </think>."""
        opening = re.match(rf"\s*{THINK}\n*", text)
        if opening is None:
            return ThoughtPlace(0, 0, 0)
        closing = re.compile(rf"\n*{END_THINK}\n*").search(text, opening.end())
        if closing is None:
            return ThoughtPlace(opening.end(), len(text), len(text), is_closed=False)
        return ThoughtPlace(opening.end(), closing.start(), closing.end())

    def call_grammar(
        self, tools: tuple[Tool, ...], tokenizer: Tokenizer, *, max_calls: int | None = None
    ) -> str:
        """Return the grammar of one JSON object a line, as `segments` writes them."""
        names = [f"call_{index}" for index in range(len(tools))]
        calls = [
            f"{name}: {json_rule(m1_call_schema(tool))}"
            for name, tool in zip(names, tools, strict=True)
        ]
        some = repeated(f'({" | ".join(names)}) "\\n"', max_calls)
        start = f'start: "\\n" {some} {text_rule(END_TOOL_BLOCK, tokenizer)}'
        return "\n".join((start, *calls))


def _tool_line(tool: Tool) -> str:
    return f"{dump_json(tool.function if tool.given is None else tool.given)}\n"


def _turn(message: Message, tool_name: str | None) -> list[Segment]:
    if message.role == "user":
        return [f"user name=user\n{message.content}"]
    if message.role == "assistant" and message.sampled is not None:
        closing = "" if message.sampled.is_thinking_closed else f"\n{END_THINK}\n"
        thought = _thought(message) if message.sampled.is_answer_only else ""
        ids = sampled_segments(message, with_thought=True)
        return [f"ai name=assistant\n{thought}", *ids, closing]
    if message.role == "assistant":
        return [f"ai name=assistant\n{_assistant(message)}"]
    parts = message.parts or (Part(message.content, message.name),)
    if tool_name is None and not all(part.name for part in parts):
        raise ValueError(
            "a tool message comes after no tool call and does not name its tool, "
            "the assistant message before it must have tool_calls"
        )
    results = [
        f"tool name: {part.name or tool_name}\ntool result: {part.text}\n\n" for part in parts
    ]
    return [f"tool name=tools\n{''.join(results)}"]


def _thought(message: Message) -> str:
    return f"{THINK}\n{message.thinking}\n{END_THINK}\n" if message.thinking else ""


def _assistant(message: Message) -> str:
    thought = _thought(message)
    if not message.tool_calls:
        return thought + message.content
    lines = "".join(
        f"{dump_json({'name': call.name, 'arguments': call.arguments})}\n"
        for call in message.tool_calls
    )
    break_ = "\n" if message.content else ""
    return f"{thought}{message.content}{break_}{TOOL_BLOCK}\n{lines}{END_TOOL_BLOCK}"


def _tool_names(messages: Sequence[Message]) -> Iterator[str | None]:
    """Yield for each message the name of the tool whose call it answers: its own, or that of the
    call with its id, else at its place. None where no call is known."""
    calls: tuple[ToolCall, ...] = ()
    names: dict[str | None, str] = {}
    place = 0
    for message in messages:
        if message.role == "assistant":
            calls = message.tool_calls
            names = {call.id: call.name for call in calls if call.id is not None}
        if message.role != "tool":
            place = 0
            yield None
            continue
        by_place = calls[min(place, len(calls) - 1)].name if calls else None
        by_id = names.get(message.tool_call_id) if message.tool_call_id else None
        yield message.name or by_id or by_place
        place += 1
