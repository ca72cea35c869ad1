"""The format of a checkpoint that is not MiniMax's: its own jinja chat template writes the prompt.

A template from a checkpoint is a stranger's program: `rendering.py` runs it within bounds. The
tests render MiniMax's own templates there too, as the reference for the native formats.
"""

import re
from collections.abc import Mapping
from typing import Any

from fulmen.chat.format import ChatFormat, EncodedHistory
from fulmen.chat.messages import CallIds, Message, Messages, Tools, random_call_id
from fulmen.chat.parsing import Parser, PlainParser
from fulmen.chat.reading import list_calls, read_call, read_message_object, read_tools
from fulmen.chat.rendering import render_template
from fulmen.chat.tokenizer import Segment, Tokenizer


class TemplateFormat(ChatFormat):
    """Format that a checkpoint's template writes; a completion is plain text, all of it content.

    The template writes the prompt as one text, so special tokens written in a message act as
    special tokens: only the native formats can tell them apart.
    """

    name = "template"

    def __init__(self, template: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self._template = template
        self._special_tokens = dict(special_tokens or {})  # such as bos_token, by name
        self.end_of_turn = self._special_tokens.get("eos_token", "")

    def render(
        self, messages: Messages, tools: Tools = None, add_generation_prompt: bool = True
    ) -> str:
        """Return the prompt as text."""
        shown = [
            {"type": "function", "function": dict(tool.function)} for tool in read_tools(tools)
        ]
        return render_template(
            self._template,
            **self._special_tokens,
            messages=[_plain_dict(message) for message in messages],
            tools=shown or None,
            add_generation_prompt=add_generation_prompt,
        )

    def segments(
        self,
        messages: Messages,
        tools: Tools = None,
        add_generation_prompt: bool = True,
        *,
        keep_thoughts: bool = False,
    ) -> list[Segment]:
        """Return the prompt as one text; only the tokenizer can tell its control tokens."""
        return [self.render(messages, tools, add_generation_prompt)]

    def encode_history(
        self,
        messages: Messages,
        tools: Tools = None,
        *,
        tokenizer: Tokenizer,
        keep_thoughts: bool = False,
    ) -> EncodedHistory:
        """Return the prompt as ids: the template renders a mark for each sampled answer, and the
        ids take its place. An answer whose mark the template does not print once is rendered."""
        messages = list(messages)
        marks = {
            f"\ue000{index}\ue001": message.sampled
            for index, message in enumerate(messages)
            if isinstance(message, Message) and message.sampled is not None
        }
        marked: list[Message | Mapping[str, Any]] = list(messages)
        for mark in marks:
            index = int(mark[1:-1])
            marked[index] = Message("assistant", mark)
        text = self.render(marked, tools)
        if any(text.count(mark) != 1 for mark in marks):
            return EncodedHistory(tokenizer.encode(self.render(messages, tools)), 0, 0, 0)
        ids: list[int] = []
        num_history_ids = 0
        for piece in re.split("(\ue000[0-9]+\ue001)", text):
            sampled = marks.get(piece)
            if sampled is None:
                ids += tokenizer.encode(piece)
                continue
            ids += sampled.ids
            num_history_ids = len(ids)
            ids += tokenizer.encode_plain(sampled.tail)
        return EncodedHistory(ids, num_history_ids, 0, 0)

    def encode(
        self,
        messages: Messages,
        tools: Tools = None,
        add_generation_prompt: bool = True,
        *,
        tokenizer: Tokenizer,
    ) -> list[int]:
        """Return the prompt as ids."""
        return tokenizer.encode(self.render(messages, tools, add_generation_prompt))

    def parser(
        self,
        tools: Tools = None,
        thinking_open: bool = True,
        *,
        new_call_id: CallIds = random_call_id,
    ) -> Parser:
        """Return a parser that passes text through."""
        return PlainParser()


def _plain_dict(message: Message | Mapping[str, Any]) -> dict[str, Any]:
    """Return a message as templates expect it: text as one string, arguments decoded.

    Keys that only this template may know are passed on, and so are its own roles.
    """
    if isinstance(message, Message):
        return message.to_dict()
    plain = dict(read_message_object(message))
    content = plain.get("content")
    if content is None:
        plain["content"] = ""
    elif isinstance(content, list | tuple):
        texts = [item.get("text") if isinstance(item, Mapping) else item for item in content]
        known = [text for text in texts if isinstance(text, str)]
        if len(known) == len(texts):
            plain["content"] = "".join(known)
    if plain.get("tool_calls"):
        plain["tool_calls"] = [_plain_call(call) for call in list_calls(plain)]
    return plain


def _plain_call(given: object) -> dict[str, Any]:
    call = read_call(given).to_dict()
    if not isinstance(given, Mapping):
        return call
    function = {**(given.get("function") or given), **call["function"]}
    return {**given, "type": "function", "function": function}
