"""Any other checkpoint's jinja chat template, rendered in jinja2's sandbox.

A template from a checkpoint is a stranger's program. It runs in an immutable sandbox, with the
few names that chat templates use, and whatever it raises becomes one sentence. It also renders
MiniMax's own templates, as the reference that the native formats are tested against.
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from fulmen.chat.format import ChatFormat, EncodedHistory
from fulmen.chat.messages import CallIds, Message, Messages, Tools, random_call_id
from fulmen.chat.parsing import Parser, PlainParser
from fulmen.chat.reading import list_calls, read_call, read_message_object, read_tools
from fulmen.chat.tokenizer import Segment, Tokenizer


class TemplateFormat(ChatFormat):
    """Renders with a checkpoint's own template; a completion is plain text, all of it content.

    The template writes the prompt as one text, so special tokens written in a message act as
    special tokens: only the native formats can tell them apart.
    """

    name = "template"
    thinking_open_in_prompt = False
    thinking_end = None
    thinking_forced_start = None
    thinking_forced_end = None

    def __init__(self, template: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self._template = template
        self._special_tokens = dict(special_tokens or {})  # bos_token and the like, used by name
        self.end_of_turn = self._special_tokens.get("eos_token", "")

    def render(
        self, messages: Messages, tools: Tools = None, add_generation_prompt: bool = True
    ) -> str:
        """The prompt as text."""
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
        """The prompt as one text; which of it is a control token, only the tokenizer can say."""
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
        """The prompt as ids."""
        return tokenizer.encode(self.render(messages, tools, add_generation_prompt))

    def parser(
        self,
        tools: Tools = None,
        thinking_open: bool = True,
        *,
        new_call_id: CallIds = random_call_id,
    ) -> Parser:
        """A parser that passes text through."""
        return PlainParser()


def render_template(template: str, **variables: Any) -> str:
    """What a chat template makes of the variables; any failure is a ValueError in one sentence."""
    try:
        return _compiled(template).render(**variables)
    except _RefusedError as error:
        raise ValueError(f"the chat template refused the messages: {error}") from None
    except Exception as error:  # the template is a stranger's program: it may raise anything
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the chat template failed: {text}") from None


class _RefusedError(Exception):
    """What a template says through raise_exception."""


class _GenerationTag(jinja2.ext.Extension):
    """{% generation %} marks what the assistant wrote, for training masks; here for nothing."""

    tags = {"generation"}  # noqa: RUF012, jinja2 declares it as an instance variable

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@cache
def _compiled(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationTag],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes <, >, & and ' for HTML, which a prompt must not have.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise _RefusedError(str(message).rstrip(".! "))


def _strftime_now(format_: str) -> str:
    return datetime.now().strftime(format_)


def _plain_dict(message: Message | Mapping[str, Any]) -> dict[str, Any]:
    """The message as templates expect it: text as one string, arguments decoded.

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
