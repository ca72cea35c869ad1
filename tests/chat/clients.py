"""Conversations as clients hold them: logged turn by turn, and sent back in every spelling.

Client.ask -> the history, spelled at random -> read_history -> TurnLog.find -> an answer
           -> TurnLog.add
"""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fulmen.chat import (
    ChatFormat,
    Completion,
    Found,
    Message,
    Token,
    Tokenizer,
    Tool,
    TurnLog,
    Usage,
    find_spans,
    read_history,
)
from fulmen.sampling import FinishReason, SamplingParams
from tests.chat.test_transcript import FORMATS, SMALL

__all__ = ["FORMATS", "SMALL"]

BILLING = "x-anthropic-billing-header: cc_version=2.1.{}; cc_entrypoint=cli;"
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
DEFAULTS: dict[str, Any] = {"b": False, "größe": [1]}
"""Arguments that a client may add to a call, and their values"""


def completion(
    format: ChatFormat,
    text: str,
    *,
    finish_reason: FinishReason = "stop",
    stop_text: str | None = None,
    tokenizer: Tokenizer = SMALL,
    seed: int = 0,
) -> Completion:
    """Return an answer with this text, as ids that the text itself would not be encoded as."""
    random_ = random.Random(seed)
    ids: list[int] = []
    rest = text
    while rest:
        size = random_.choice([1, 2, 3, 9, len(rest)])
        ids += tokenizer.encode(rest[:size])
        rest = rest[size:]
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.feed([token_id]) for token_id in ids]
    end = tokenizer.token_id(format.end_of_turn)
    has_end = finish_reason == "stop" and stop_text is None and end is not None
    tokens = [*ids, end] if has_end and end is not None else ids
    return Completion(
        reply=format.parse(text),
        finish_reason=finish_reason,
        prompt_ids=(),
        tokens=tuple(Token(one, -random_.random()) for one in tokens),
        params=SamplingParams(seed=seed, stop=("x", "y"), top_k=None),
        usage=Usage(num_prompt_tokens=0, num_new_tokens=len(tokens)),
        sampled=find_spans(format, ids, pieces),
        stop_text=stop_text,
    )


def written(
    format: ChatFormat, thought: str, content: str, calls: Sequence[tuple[str, dict[str, Any]]]
) -> str:
    """Return an answer as a model of the format writes it."""
    if format.name == "template":
        return content
    block = ""
    if calls and format.name == "minimax_m2":
        invokes = "".join(
            f'<invoke name="{name}">\n'
            + "".join(
                f'<parameter name="{key}">{_parameter(value)}</parameter>\n'
                for key, value in arguments.items()
            )
            + "</invoke>\n"
            for name, arguments in calls
        )
        block = f"\n<minimax:tool_call>\n{invokes}</minimax:tool_call>"
    elif calls:
        lines = "".join(
            json.dumps({"name": name, "arguments": arguments}) + "\n" for name, arguments in calls
        )
        block = f"\n<tool_calls>\n{lines}</tool_calls>"
    if format.thinking_open_in_prompt:
        return f"{thought}\n</think>\n\n{content}{block}"
    return f"<think>\n{thought}\n</think>\n{content}{block}" if thought else f"{content}{block}"


def _parameter(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@dataclass
class Client:
    """A client and the log of its server."""

    log: TurnLog
    format: ChatFormat
    random: random.Random
    scope: str = "key"
    name: str = "c"
    keep_thoughts: bool = False
    is_plain: bool = False
    """True if every message is sent as it was shown"""
    messages: list[Message] = field(default_factory=list)
    """The conversation as it was shown"""
    completions: dict[int, Completion] = field(default_factory=dict)
    """Answers by the index of their message"""
    edited: set[int] = field(default_factory=set)
    """Answers that the client changed"""
    is_changed: bool = False
    """True if the client changed an answer or a question"""
    history: tuple[Message, ...] = ()
    """History that was read last"""
    lacking: set[int] = field(default_factory=set)
    """Answers whose thought was not sent back last time"""
    owners: list[int] = field(default_factory=list)
    """Index in `messages` of each assistant message that was sent last"""

    def find(self, *, scope: str | None = None) -> Found:
        """Send the conversation and return what is found in it."""
        history = read_history(
            self.spelled(), volatile_lines=["x-anthropic-billing-header:.*"], drop_images=True
        )
        self.history = history.messages
        return self.log.find(
            self.history,
            scope=self.scope if scope is None else scope,
            format=self.format,
            tools=tools_of(self.messages),
            keep_thoughts=self.keep_thoughts,
        )

    def answer(self, text: str, *, finish_reason: FinishReason = "stop") -> Completion:
        """Let the model answer, log it and show it."""
        found = self.find()
        number = len(self.messages)
        made = completion(
            self.format, text, finish_reason=finish_reason, seed=self.random.getrandbits(32)
        )
        reply = made.reply
        calls = tuple(
            replace(call, id=f"call_{self.name}_{number}_{index}")
            for index, call in enumerate(reply.tool_calls)
        )
        shown = Message("assistant", reply.content, reply.thinking or None, calls)
        history = found.messages if self.random.random() < 0.7 else self.history
        self.log.add(
            history,
            made,
            scope=self.scope,
            turn_id=f"{self.name}-{number}",
            shown=shown,
            signatures=[f"sig-{self.name}-{number}"],
            tools=tools_of([*self.messages, shown]),
        )
        self.completions[number] = made
        self.messages.append(shown)
        return made

    def ask(self, text: str) -> None:
        """Answer the calls of the last message, if it has any, or say something."""
        calls = self.messages[-1].tool_calls if self.messages else ()
        if calls:
            self.messages += [
                Message("tool", f"{text}{i}", tool_call_id=call.id) for i, call in enumerate(calls)
            ]
        else:
            self.messages.append(Message("user", text))

    # How it is spelled.

    def spelled(self) -> list[dict[str, Any]]:
        """Return the conversation as a client may send it."""
        self.lacking, self.owners = set(), []
        sent: list[dict[str, Any]] = []
        if not self.is_plain and self._maybe(0.3):
            sent.append({"role": "system", "content": self._system()})
        for index, message in enumerate(self.messages):
            match message.role:
                case "assistant":
                    pieces = self._assistant(index, message)
                    self.owners += [index] * len(pieces)
                    sent += pieces
                case "tool":
                    sent.append(self._tool(message))
                case _:
                    sent.append({"role": message.role, "content": self._content(message.content)})
            if not self.is_plain and message.role != "assistant" and self._maybe(0.15):
                sent.append({"role": "system", "content": self._content("tokens left: 5")})
        return sent

    def _maybe(self, probability: float) -> bool:
        return self.random.random() < probability

    def _system(self) -> Any:
        head = BILLING.format(self.random.randrange(1000))
        return self.random.choice(
            [
                f"{head}\nBe kind.",
                [{"type": "text", "text": head}, {"type": "text", "text": "Be kind."}],
                "Be kind.",
            ]
        )

    def _content(self, text: str) -> Any:
        if self.is_plain:
            return text
        text = self.random.choice(["", "", "\n", " "]) + text + self.random.choice(["", "", "\n"])
        part: dict[str, Any] = {"type": "text", "text": text}
        if self._maybe(0.5):
            part["cache_control"] = {"type": "ephemeral"}
        middle = len(text) // 2
        halves = [{"type": "text", "text": text[:middle]}, {"type": "text", "text": text[middle:]}]
        empty: list[Any] = [text] if text.strip() else [text, None, "", []]
        return self.random.choice([text, text, [part], halves, *empty])

    def _tool(self, message: Message) -> dict[str, Any]:
        content = self._content(message.content)
        if self.is_plain or self._maybe(0.6):
            return {"role": "tool", "tool_call_id": message.tool_call_id, "content": content}
        block = {"type": "tool_result", "tool_use_id": message.tool_call_id, "content": content}
        return {"role": "user", "content": [block]}

    def _assistant(self, index: int, message: Message) -> list[dict[str, Any]]:
        sent: dict[str, Any] = {"role": "assistant", "content": message.content}
        thought = message.thinking
        if not self.is_plain:
            thought = self.random.choice([thought, thought, None, f"{thought}, I think"])
        if (thought or None) != message.thinking:
            self.lacking.add(index)
        if not self.is_plain and self._maybe(0.4):
            return self._blocks(index, message, thought)
        if not self.is_plain:
            sent["content"] = self._content(message.content)
        if thought is not None:
            self._add_thought(sent, thought, f"sig-{self.name}-{index}")
        if message.tool_calls:
            sent["tool_calls"] = [
                {
                    "id": self._id(call.id),
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": self._arguments(self._checked(call.arguments)),
                    },
                }
                for call in message.tool_calls
            ]
        if not self.is_plain and message.tool_calls and message.content and self._maybe(0.3):
            calls = {"role": "assistant", "content": None, "tool_calls": sent.pop("tool_calls")}
            return [sent, calls]
        return [sent]

    def _add_thought(self, sent: dict[str, Any], thought: str, signature: str) -> None:
        details = {"type": "reasoning.text", "text": thought, "index": 0}
        if self._maybe(0.5):
            details["signature"] = signature
        ways = [*THOUGHT_KEYS, "details"]
        if isinstance(sent["content"], str) and "</think>" not in thought:
            ways.append("tags")
        way = "reasoning_content" if self.is_plain else self.random.choice(ways)
        if way == "details":
            sent["reasoning_details"] = [details]
        elif way == "tags":
            sent["content"] = f"<think>\n{thought}\n</think>\n\n{sent['content']}"
        else:
            sent[way] = thought

    def _blocks(self, index: int, message: Message, thought: str | None) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = []
        signature = f"sig-{self.name}-{index}"
        if thought is not None:
            blocks.append({"type": "thinking", "thinking": thought, "signature": signature})
        elif self._maybe(0.3):
            blocks.append({"type": "redacted_thinking", "data": signature})
        if message.content:
            content = self._content(message.content)
            blocks += content if isinstance(content, list) else [{"type": "text", "text": content}]
        blocks += [
            {
                "type": "tool_use",
                "id": self._id(call.id),
                "name": call.name,
                "input": json.loads(javascript(self._checked(call.arguments))),
            }
            for call in message.tool_calls
        ]
        return [{"role": "assistant", "content": blocks}]

    def _id(self, id: str | None) -> str | None:
        return id

    def _checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments as a client's check of them leaves them: with defaults, maybe."""
        return (
            {**DEFAULTS, **arguments} if not self.is_plain and self._maybe(0.3) else {**arguments}
        )

    def _arguments(self, arguments: dict[str, Any]) -> Any:
        if self.is_plain:
            return json.dumps(arguments)
        if not arguments and self._maybe(0.5):
            return ""
        return self.random.choice(
            [
                json.dumps(arguments),
                javascript(arguments),
                json.dumps(arguments, indent=1, ensure_ascii=False),
                arguments,
            ]
        )


def tools_of(messages: Iterable[Message]) -> list[Tool]:
    """Return a tool for every call, of which each has the same defaults."""
    properties = {name: {"default": value} for name, value in DEFAULTS.items()}
    names = {call.name for message in messages for call in message.tool_calls}
    return [Tool(name, parameters={"properties": properties}) for name in sorted(names)]


def javascript(value: Any) -> str:
    """Return JSON as JavaScript's parse and stringify make it."""
    return json.dumps(_as_javascript(value), ensure_ascii=False, separators=(",", ":"))


def _as_javascript(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            return None
        return int(number) if number.is_integer() and abs(number) < 1e21 else number
    if isinstance(value, list):
        return [_as_javascript(one) for one in value]
    keys = sorted((key for key in value if _is_index(key)), key=int)
    keys += [key for key in value if not _is_index(key)]
    return {key: _as_javascript(value[key]) for key in keys}


def _is_index(key: str) -> bool:
    return key.isascii() and key.isdigit() and (key == "0" or key[0] != "0") and int(key) < 2**32
