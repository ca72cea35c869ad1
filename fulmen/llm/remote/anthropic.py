"""Anthropic's dialect: a request as the body of Messages, and its stream.

    ChatRequest -> messages_body -> the server -> MessagesReader

A thought comes with a signature, and goes back with it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fulmen.chat import Event, Message, Tool
from fulmen.llm.http import PeerError, ServerEvent
from fulmen.llm.remote.answer import RemoteAnswer, read_count, read_error
from fulmen.llm.remote.asking import Asked, check_soft_end, refuse, refuse_max_calls
from fulmen.sampling import FinishReason, shown

MESSAGES_PATH: Final = "/messages"
VERSION: Final = "2023-06-01"
"""Version of the dialect, which every request names"""
DEFAULT_MAX_TOKENS: Final = 32_000
"""Most tokens of an answer that was given no limit: the dialect needs a number"""

_REASONS: Final[dict[str, FinishReason]] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
}
"""Every other reason ends the answer in the usual way"""
_UNKNOWN: Final = ("min_p", "seed", "stop_token_ids", "ignore_eos", "regex", "choice", "logprobs")
"""Options that the dialect has no name for"""


# ---- a request ----------------------------------------------------------------------------------


def messages_body(
    asked: Asked, model: str, *, thoughts: Mapping[str, Mapping[str, str]], is_anthropics: bool
) -> dict[str, Any]:
    """Return the body of a Messages request. Raises ValueError for an option that the dialect has
    no name for.

    thoughts       blocks of thought that the server sent, by their signatures
    is_anthropics  for Anthropic itself, which refuses a thought without its signature and draws
                   from all tokens unless it is told otherwise
    """
    if asked.text is not None:
        raise ValueError("the request has a text, Anthropic's dialect takes only messages")
    for name in _UNKNOWN:
        refuse(asked, name, "Anthropic's dialect has no such option")
    most = asked.value("max_tokens")
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": DEFAULT_MAX_TOKENS if most is None else most,
        "stream": True,
    }
    num_system = 0
    while num_system < len(asked.messages) and asked.messages[num_system].role == "system":
        num_system += 1
    if num_system:
        system = [_text(message.content) for message in asked.messages[:num_system]]
        body["system"] = system[0]["text"] if num_system == 1 else system
    body["messages"] = _messages(
        asked.messages[num_system:], thoughts, needs_signatures=is_anthropics
    )
    for name in ("temperature", "top_p"):
        if (value := asked.value(name)) is not None:
            body[name] = value
    top_k = asked.value("top_k")
    if "top_k" in asked.given and (top_k is not None or not is_anthropics):
        body["top_k"] = top_k or 0  # 0: all tokens
    if stop := asked.value("stop"):
        body["stop_sequences"] = list(stop)
    if (schema := asked.value("json_schema")) is not None:
        format = {"type": "json_schema", "schema": json.loads(schema)}
        body["output_config"] = {"format": format}
    return body | _thinking(asked) | _tool_fields(asked)


def _thinking(asked: Asked) -> dict[str, Any]:
    check_soft_end(asked)
    budget = asked.value("thinking_budget")
    if budget is None:
        return {}
    if budget == 0:
        return {"thinking": {"type": "disabled"}}
    return {"thinking": {"type": "enabled", "budget_tokens": budget}}


def _tool_fields(asked: Asked) -> dict[str, Any]:
    if not asked.tools:
        return {}
    is_strict = bool(asked.value("strict_tools"))
    fields: dict[str, Any] = {"tools": [_tool(tool, is_strict=is_strict) for tool in asked.tools]}
    choice, allowed = asked.value("tool_choice") or "auto", asked.value("allowed_tools")
    if allowed and choice == "required" and len(allowed) == 1:
        fields["tool_choice"] = {"type": "tool", "name": allowed[0]}
    elif allowed and choice != "none":
        refuse(asked, "allowed_tools", "Anthropic's dialect can only require one tool by name")
    else:
        fields["tool_choice"] = {"type": "any" if choice == "required" else choice}
    refuse_max_calls(asked)
    if asked.value("max_calls") == 1 and choice != "none":
        fields["tool_choice"]["disable_parallel_tool_use"] = True
    return fields


def _tool(tool: Tool, *, is_strict: bool) -> dict[str, Any]:
    fields = {
        "input_schema" if name == "parameters" else name: value
        for name, value in tool.function.items()
    }
    fields["input_schema"] = fields.get("input_schema") or {"type": "object", "properties": {}}
    if is_strict:
        fields["strict"] = True
    return fields


def _messages(
    messages: Sequence[Message],
    thoughts: Mapping[str, Mapping[str, str]],
    *,
    needs_signatures: bool,
) -> list[dict[str, Any]]:
    """Return messages as blocks; the results of one turn's calls stand in one message."""
    done: list[dict[str, Any]] = []
    is_result = False
    for message in messages:
        if message.role == "tool":
            block = {
                "type": "tool_result",
                "tool_use_id": message.tool_call_id,
                "content": _content(message),
            }
            if not is_result:
                done.append({"role": "user", "content": []})
            done[-1]["content"].append(block)
        elif message.role == "assistant":
            blocks = _thought_blocks(message, thoughts, needs_signatures=needs_signatures)
            done.append({"role": "assistant", "content": [*blocks, *_blocks(message)]})
        else:
            done.append({"role": message.role, "content": _content(message)})
        is_result = message.role == "tool"
    return done


def _thought_blocks(
    message: Message, thoughts: Mapping[str, Mapping[str, str]], *, needs_signatures: bool
) -> list[Mapping[str, str]]:
    """Return the thought of a message: as the blocks it came in, where they are known."""
    known = [thoughts[signature] for signature in message.signatures if signature in thoughts]
    if known and len(known) == len(message.signatures):
        return known
    signature = message.signatures[0] if message.signatures else ""
    if not message.thinking or (needs_signatures and not signature):
        return []
    return [{"type": "thinking", "thinking": message.thinking, "signature": signature}]


def _blocks(message: Message) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if message.content:
        blocks.append(_text(message.content))
    for call in message.tool_calls:
        blocks.append(
            {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}
        )
    return blocks


def _content(message: Message) -> Any:
    if message.parts is None or len(message.parts) == 1:
        return message.content
    return [_text(part.text) for part in message.parts]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


# ---- a stream -----------------------------------------------------------------------------------


class MessagesReader:
    """Reads a stream of Messages."""

    def __init__(self, where: str) -> None:
        self.answer = RemoteAnswer(where)
        self._thoughts: dict[int, tuple[list[str], list[str]]] = {}
        """Pieces of the text and of the signature of each open thought, by the block's index"""

    def feed(self, event: ServerEvent) -> list[Event]:
        """Return the events that one of the stream holds. Raises PeerError."""
        data = event.json(self.answer.where)
        if (said := read_error(data)) is not None:
            raise PeerError(f"{self.answer.where} failed in mid-answer: {said}", said=said)
        given = data.get("index")
        index = given if type(given) is int else 0
        match data.get("type", event.event):
            case "message_start":
                message = data.get("message")
                self._usage(message.get("usage") if isinstance(message, Mapping) else None)
            case "content_block_start":
                return self._start(index, data.get("content_block"))
            case "content_block_delta":
                return self._delta(index, data.get("delta"))
            case "content_block_stop":
                return self._stop(index)
            case "message_delta":
                self._usage(data.get("usage"))
                return self._finish(data.get("delta"))
            case "message_stop":
                self.answer.is_ended = True
        return []  # a ping, or a kind that is not known yet

    def _start(self, index: int, block: object) -> list[Event]:
        if not isinstance(block, Mapping):
            return []
        match block.get("type"):
            case "thinking":
                self._thoughts[index] = [], []
                return self._delta(index, {**block, "type": "thinking_delta"})
            case "redacted_thinking":
                if isinstance(data := block.get("data"), str):
                    self.answer.count_chars(data)
                    self.answer.thoughts[data] = {"type": "redacted_thinking", "data": data}
                return []
            case "text":
                return self._delta(index, {**block, "type": "text_delta"})
            case "tool_use":
                id, name = block.get("id"), block.get("name")
                events = self.answer.start_call(
                    index,
                    id if isinstance(id, str) and id else None,
                    name if isinstance(name, str) else "",
                )
                given = block.get("input")
                whole = json.dumps(given, ensure_ascii=False) if given else ""
                return events + self.answer.add_arguments(index, whole)
        return self.answer.note(
            f"the server sent a block of type {shown(block.get('type'))}, which is left out"
        )

    def _delta(self, index: int, delta: object) -> list[Event]:
        if not isinstance(delta, Mapping):
            return []
        kind = delta.get("type")
        name = _NAMES.get(kind) if isinstance(kind, str) else None
        text = delta.get(name) if name is not None else None
        if not isinstance(text, str):
            return []
        match name:
            case "text":
                return self.answer.say(text)
            case "thinking" | "signature":
                pieces, signature = self._thoughts.setdefault(index, ([], []))
                if name == "thinking":
                    pieces.append(text)
                    return self.answer.think(text)
                self.answer.count_chars(text)
                signature.append(text)
                return []
        if not self.answer.has_call(index):
            raise PeerError(f"{self.answer.where} sent arguments of a call that did not begin")
        return self.answer.add_arguments(index, text)

    def _stop(self, index: int) -> list[Event]:
        if self.answer.has_call(index):
            # One that is not whole waits for the reason of the end, which may have cut it.
            return self.answer.end_call(index) if self.answer.is_whole(index) else []
        pieces, signature = self._thoughts.pop(index, ([], []))
        if signature:
            signed = "".join(signature)
            thought = {"type": "thinking", "thinking": "".join(pieces), "signature": signed}
            self.answer.thoughts[signed] = thought
        return []

    def _usage(self, usage: object) -> None:
        """Read counts of tokens; of the prompt's, the dialect counts the cached ones apart. A later
        count replaces an earlier one, where it tells of the prompt too."""
        if not isinstance(usage, Mapping):
            return
        counts = self.answer.counts
        new = read_count(usage.get("input_tokens"))
        cached = read_count(usage.get("cache_read_input_tokens"))
        written = read_count(usage.get("cache_creation_input_tokens"))
        if new is not None and (total := new + (cached or 0) + (written or 0)):
            counts.prompt = total
            counts.cached = cached
        if (count := read_count(usage.get("output_tokens"))) is not None:
            counts.new = count
        details = usage.get("output_tokens_details")
        if isinstance(details, Mapping):
            counts.thinking = read_count(details.get("thinking_tokens"))

    def _finish(self, delta: object) -> list[Event]:
        reason = delta.get("stop_reason") if isinstance(delta, Mapping) else None
        if not isinstance(delta, Mapping) or not isinstance(reason, str):
            return []
        stop = delta.get("stop_sequence")
        if reason == "stop_sequence" and isinstance(stop, str):
            self.answer.stop_text = stop
        self.answer.is_context_full = reason == "model_context_window_exceeded"
        events: list[Event] = []
        if reason == "refusal":
            events = self.answer.note("the server refused to go on with the answer")
        return events + self.answer.finish(_REASONS.get(reason, "stop"))


_NAMES: Final = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "input_json_delta": "partial_json",
}
"""Field of each kind of delta that holds its text"""
