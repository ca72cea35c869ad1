"""The format of a checkpoint that is not MiniMax's: its own jinja chat template writes the prompt.

A template from a checkpoint is a stranger's program: `rendering.py` runs it within bounds. The
tests render MiniMax's own templates there too, as the reference for the native formats.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from fulmen.chat.blocks import without_blocks
from fulmen.chat.format import ChatFormat, EncodedHistory
from fulmen.chat.messages import (
    ROLES,
    SYSTEM_ROLES,
    CallIds,
    Message,
    Messages,
    Tools,
    random_call_id,
)
from fulmen.chat.parsing import Parser, PlainParser
from fulmen.chat.reading import (
    check_not_empty,
    list_calls,
    order_of_results,
    read_call,
    read_message_object,
    read_tools,
    refuse_media,
    wrong_role,
)
from fulmen.chat.rendering import render_template
from fulmen.chat.tokenizer import Segment, Tokenizer

_ROLE = re.compile(
    r"""\brole['"]?\]?\s*(?:[=!]=|(?:not\s+)?in)\s*(['"]\w+['"]|[\[(][^\])]{0,200}[\])])"""
)
"""Roles that a template compares with: message.role == 'ipython', message['role'] in ['tool']"""
_LLAMA_ROLES = frozenset({"ipython"})
"""Llama's word for a tool's result, which templates may print without a comparison"""
_WORD = re.compile(r"""['"](\w+)['"]""")


class TemplateFormat(ChatFormat):
    """Format that a checkpoint's template writes; a completion is plain text, all of it content.

    The template writes the prompt as one text, so special tokens written in a message act as
    special tokens: only the native formats can tell them apart.
    """

    name = "template"

    def __init__(self, template: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self.template = self._source = template
        self._own_roles = _LLAMA_ROLES.union(
            role for match in _ROLE.finditer(template) for role in _WORD.findall(match[1])
        )
        self._special_tokens = dict(special_tokens or {})  # such as bos_token, by name
        self.end_of_turn = self._special_tokens.get("eos_token", "")

    def render(
        self, messages: Messages, tools: Tools = None, add_generation_prompt: bool = True
    ) -> str:
        """Return the prompt as text."""
        plain = [_plain_dict(message, self._own_roles) for message in without_blocks(messages)]
        order = order_of_results([_seen(message) for message in plain])
        shown = [
            {"type": "function", "function": dict(tool.function)} for tool in read_tools(tools)
        ]
        return render_template(
            self._source,
            **self._special_tokens,
            messages=[plain[index] for index in order],
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
        add_generation_prompt: bool = True,
        *,
        tokenizer: Tokenizer,
        keep_thoughts: bool = False,
    ) -> EncodedHistory:
        """Return the prompt as ids: the template renders a mark for each sampled answer, and the
        ids take its place. An answer whose mark the template does not print once is rendered."""
        messages = list(messages)
        check_not_empty(messages)
        marks = {
            f"\ue000{index}\ue001": message.sampled
            for index, message in enumerate(messages)
            if isinstance(message, Message) and message.sampled is not None
        }
        marked: list[Message | Mapping[str, Any]] = list(messages)
        for mark in marks:
            index = int(mark[1:-1])
            marked[index] = Message("assistant", mark)
        text = self.render(marked, tools, add_generation_prompt)
        if any(text.count(mark) != 1 for mark in marks):
            text = self.render(messages, tools, add_generation_prompt)
            return EncodedHistory(tokenizer.encode(text), 0, 0, 0)
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
        messages = list(messages)
        check_not_empty(messages)
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


def _plain_dict(message: Message | Mapping[str, Any], own_roles: Collection[str]) -> dict[str, Any]:
    """Return a message as templates expect it: text as one string, arguments decoded.

    Keys that only this template may know are passed on, and so are roles that it compares with. A
    system prompt by another name is one for every other template.
    """
    if isinstance(message, Message):
        return message.to_dict()
    plain = dict(read_message_object(message))
    role = plain.get("role")
    if not isinstance(role, str) or role not in (*ROLES, *SYSTEM_ROLES, *own_roles):
        raise ValueError(wrong_role(role))
    if role in SYSTEM_ROLES and role not in own_roles:
        plain["role"] = "system"
    content = plain.get("content")
    if content is None:
        plain["content"] = ""
    elif isinstance(content, list | tuple):
        refuse_media(content, plain["role"])
        texts = [item.get("text") if isinstance(item, Mapping) else item for item in content]
        known = [text for text in texts if isinstance(text, str)]
        if len(known) == len(texts):
            plain["content"] = "".join(known)
    if plain.get("tool_calls"):
        plain["tool_calls"] = [_plain_call(call) for call in list_calls(plain)]
    return plain


def _seen(message: Mapping[str, Any]) -> tuple[object, list[str | None], str | None]:
    """Return what tells which call a result answers."""
    ids = [call.get("id") for call in message.get("tool_calls") or ()]
    tool_call_id = message.get("tool_call_id")
    return message.get("role"), ids, tool_call_id if isinstance(tool_call_id, str) else None


def _plain_call(given: object) -> dict[str, Any]:
    call = read_call(given).to_dict()
    if not isinstance(given, Mapping):
        return call
    function = {**(given.get("function") or given), **call["function"]}
    return {**given, "type": "function", "function": function}
