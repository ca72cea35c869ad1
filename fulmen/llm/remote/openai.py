"""OpenAI's dialect: a request as the body of Chat Completions or Completions, and their streams.

    ChatRequest -> chat_body, completions_body -> the server -> ChatReader, CompletionsReader

Servers of this dialect differ in small things. What is read here is what any of them sends: a
thought under three names, calls with and without an index, token ids in two places.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from fulmen.chat import Event, Message, Tool
from fulmen.files import shorten
from fulmen.llm.http import PeerError, ServerEvent
from fulmen.llm.remote.answer import (
    RemoteAnswer,
    TokenText,
    is_ids,
    read_count,
    read_error,
    read_token,
)
from fulmen.llm.remote.asking import Asked, refuse, refuse_max_calls, thinking_fields
from fulmen.llm.remote.servers import Server
from fulmen.sampling import FinishReason

CHAT_PATH: Final = "/chat/completions"
COMPLETIONS_PATH: Final = "/completions"

_DONE: Final = "[DONE]"
_REASONS: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "tool_calls": "stop",
    "function_call": "stop",
    "length": "length",
    "repetition": "repetition",
    "abort": "abort",
    "error": "error",
}
"""A word that is not here, such as eos, ends the answer in the usual way"""


# ---- a request ----------------------------------------------------------------------------------


def chat_body(asked: Asked, model: str, server: Server) -> dict[str, Any]:
    """Return the body of a Chat Completions request. Raises ValueError for an option that the
    server cannot be told."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message, server) for message in asked.messages],
        **_sampling(asked, server),
        **_tool_fields(asked),
        **thinking_fields(asked, server),
    }
    most = asked.value("max_tokens")
    if most is not None:
        # The newer name; OpenAI's newer models know no other, and older servers only max_tokens.
        body["max_tokens" if server.has_extensions else "max_completion_tokens"] = most
    if (num_top := asked.value("logprobs")) is not None:
        body |= {"logprobs": True, "top_logprobs": num_top}
        body |= _token_id_fields(server)
    if server.has_details:
        body["reasoning_split"] = True
    return body


def completions_body(asked: Asked, model: str, server: Server) -> dict[str, Any]:
    """Return the body of a Completions request, which goes on from a text as it stands."""
    prompt = asked.text
    assert prompt is not None
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        **_sampling(asked, server),
    }
    if (most := asked.value("max_tokens")) is not None:
        body["max_tokens"] = most
    if (num_top := asked.value("logprobs")) is not None:
        body["logprobs"] = num_top
        body |= _token_id_fields(server)
    return body


def _sampling(asked: Asked, server: Server) -> dict[str, Any]:
    body: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    for name in ("temperature", "top_p", "seed"):
        if (value := asked.value(name)) is not None:
            body[name] = value
    if stop := asked.value("stop"):
        body["stop"] = list(stop)
    names = ("top_k", "min_p", "stop_token_ids", "ignore_eos")
    if not server.has_extensions:
        for name in names:
            refuse(asked, name, f"{server.name} has no such option")
    else:
        for name in names:
            value = asked.value(name)
            if name in asked.given and value != () and value is not False:
                body[name] = value
        if "top_k" in body:
            body["top_k"] = -1 if body["top_k"] is None else body["top_k"]
    return body | _constraint(asked, server)


def _constraint(asked: Asked, server: Server) -> dict[str, Any]:
    """Return the field that says what text the answer may be."""
    if (schema := asked.value("json_schema")) is not None:
        named = {"name": "answer", "schema": json.loads(schema), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    if choice := asked.value("choice"):
        if not server.constraints:
            refuse(asked, "choice", f"{server.name} has no such option")
        return {str(server.constraints): {"choice": list(choice)}}
    if (regex := asked.value("regex")) is not None:
        if server.constraints is None:
            refuse(asked, "regex", f"{server.name} has no such option")
        own: dict[str, Any] = {"regex": regex}
        return {server.constraints: own} if server.constraints else own
    return {}


def _token_id_fields(server: Server) -> dict[str, Any]:
    if not server.has_token_ids:
        return {}
    return {"return_token_ids": True, "return_tokens_as_token_ids": True}


def _tool_fields(asked: Asked) -> dict[str, Any]:
    if not asked.tools:
        return {}
    fields: dict[str, Any] = {
        "tools": [_tool(tool, is_strict=bool(asked.value("strict_tools"))) for tool in asked.tools]
    }
    choice, allowed = asked.value("tool_choice"), asked.value("allowed_tools")
    if allowed and choice != "none":
        named = [{"type": "function", "function": {"name": name}} for name in allowed]
        if len(named) == 1 and choice == "required":
            fields["tool_choice"] = named[0]
        else:
            some = {"mode": choice or "auto", "tools": named}
            fields["tool_choice"] = {"type": "allowed_tools", "allowed_tools": some}
    elif choice in ("none", "required"):
        fields["tool_choice"] = choice
    refuse_max_calls(asked)
    if asked.value("max_calls") == 1:
        fields["parallel_tool_calls"] = False
    return fields


def _tool(tool: Tool, *, is_strict: bool) -> dict[str, Any]:
    function = dict(tool.function)
    if is_strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _message(message: Message, server: Server) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": _content(message)}
    if message.thinking is not None and server.has_extensions:
        fields["reasoning_content"] = message.thinking
        if server.has_details:
            detail = {"type": "reasoning.text", "index": 0, "text": message.thinking}
            fields["reasoning_details"] = [detail]
    if message.tool_calls:
        fields["content"] = fields["content"] or None
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(call.arguments, ensure_ascii=False),
                },
            }
            for call in message.tool_calls
        ]
    for name in ("tool_call_id", "name", "current_date", "current_location"):
        if (value := getattr(message, name)) is not None:
            fields[name] = value
    return fields


def _content(message: Message) -> Any:
    parts = message.parts
    if parts is None or (len(parts) == 1 and parts[0].name is None):
        return message.content
    named = [{"type": "text", "text": part.text, "name": part.name} for part in parts]
    return [{name: value for name, value in part.items() if value is not None} for part in named]


# ---- a stream -----------------------------------------------------------------------------------


class ChatReader:
    """Reads a stream of Chat Completions."""

    def __init__(self, where: str) -> None:
        self.answer = RemoteAnswer(where)
        self._last_call: object = None
        """Key of the call that was said last"""
        self._unnamed: tuple[object, str] | None = None
        """Key and id of a call whose name has yet to come"""

    def feed(self, event: ServerEvent) -> list[Event]:
        """Return the events that a chunk holds. Raises PeerError."""
        answer = self.answer
        choice = _read_chunk(event, answer)
        if choice is None:
            return []
        delta = choice.get("delta")
        if not delta and answer.is_empty:  # MiniMax ends a stream with all of it once more
            delta = choice.get("message")
        events = self._delta(delta) if isinstance(delta, Mapping) else []
        answer.add_token_ids(choice.get("token_ids"))
        answer.add_token_texts(_chat_logprobs(choice.get("logprobs")))
        return events + _read_finish(choice, answer)

    def _delta(self, delta: Mapping[str, Any]) -> list[Event]:
        answer = self.answer
        events = answer.think(_thought(delta))
        for text in (delta.get("content"), delta.get("refusal")):
            events += answer.say(text) if isinstance(text, str) else self._parts(text)
        calls = delta.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, Mapping):
                events += self._call(call)
        return events

    def _parts(self, parts: object) -> list[Event]:
        """Read a content that is a list of parts, as Mistral sends it."""
        events: list[Event] = []
        for part in parts if isinstance(parts, list) else ():
            if not isinstance(part, Mapping):
                continue
            if isinstance(text := part.get("text"), str):
                events += self.answer.say(text)
            inner = part.get("thinking")
            for each in inner if isinstance(inner, list) else ():
                if isinstance(each, Mapping) and isinstance(text := each.get("text"), str):
                    events += self.answer.think(text)
        return events

    def _call(self, call: Mapping[str, Any]) -> list[Event]:
        """Read a fragment of a call.

        Most servers number calls. Some send an id in place of that, or the same number with another
        id; some have neither, and a name begins a call. A name may come after its id.
        """
        answer = self.answer
        function = call.get("function")
        function = function if isinstance(function, Mapping) else {}
        id, name = _text(call.get("id")), _text(function.get("name"))
        arguments = function.get("arguments")
        if isinstance(arguments, Mapping):
            arguments = json.dumps(arguments, ensure_ascii=False)
        arguments = _text(arguments)
        key: object = call.get("index")
        if type(key) is not int:
            key = id or self._last_call
        self._last_call = key
        if id and not name:
            self._unnamed = (key, id)
        elif self._unnamed is not None and self._unnamed[0] == key:
            id = id or self._unnamed[1]
        events: list[Event] = []
        if name and answer.has_call(key) and self._is_other(key, id, name, arguments):
            events += answer.end_call(key)
        if not answer.has_call(key):
            if not name and not arguments:  # of one that has ended, or an id alone
                return events
            events += answer.start_call(key, id or None, name)
            self._unnamed = None
        return events + answer.add_arguments(key, arguments)

    def _is_other(self, key: object, id: str, name: str, arguments: str) -> bool:
        """Return whether a fragment with a name begins another call than the one with its key."""
        answer = self.answer
        if id:
            return answer.id_of_call(key) not in (None, id)
        is_repeated = name == answer.name_of_call(key) and not arguments
        return not is_repeated and answer.is_whole(key)


class CompletionsReader:
    """Reads a stream of Completions: all of it is content."""

    def __init__(self, where: str) -> None:
        self.answer = RemoteAnswer(where)

    def feed(self, event: ServerEvent) -> list[Event]:
        """Return the events that a chunk holds. Raises PeerError."""
        answer = self.answer
        choice = _read_chunk(event, answer)
        if choice is None:
            return []
        text = choice.get("text")
        events = answer.say(text) if isinstance(text, str) else []
        if is_ids(ids := choice.get("prompt_token_ids")) and ids:
            answer.prompt_ids = tuple(ids)
        answer.add_token_ids(choice.get("token_ids"))
        answer.add_token_texts(_columns(choice.get("logprobs")))
        return events + _read_finish(choice, answer)


def _read_chunk(event: ServerEvent, answer: RemoteAnswer) -> Mapping[str, Any] | None:
    """Return the first choice of a chunk, if it has one; what tells of the whole is read."""
    if event.data.strip() == _DONE:
        answer.is_ended = True
        return None
    data = event.json(answer.where)
    if (said := read_error(data)) is not None:
        raise PeerError(f"{answer.where} failed in mid-answer: {said}", said=said)
    if isinstance(usage := data.get("usage"), Mapping):
        _read_usage(usage, answer)
    if is_ids(ids := data.get("prompt_token_ids")) and ids:
        answer.prompt_ids = tuple(ids)
    choices = data.get("choices")
    if choices is None and "usage" not in data and "prompt_progress" not in data:
        said = shorten(event.data, 80)
        raise PeerError(f"{answer.where} sent {said!r} in place of a chunk of an answer")
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, Mapping) or first.get("index", 0) != 0:
        return None
    return first


def _read_usage(usage: Mapping[str, Any], answer: RemoteAnswer) -> None:
    counts = answer.counts
    prompt, new = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    for name, value in (
        ("prompt", usage.get("prompt_tokens")),
        ("cached", prompt.get("cached_tokens") if isinstance(prompt, Mapping) else None),
        ("new", usage.get("completion_tokens")),
        ("thinking", new.get("reasoning_tokens") if isinstance(new, Mapping) else None),
    ):
        if (count := read_count(value)) is not None:
            setattr(counts, name, count)


def _read_finish(choice: Mapping[str, Any], answer: RemoteAnswer) -> list[Event]:
    """Read the reason for which a choice ended, if it did."""
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or not reason or answer.finish_reason is not None:
        return []
    # vLLM's name, then SGLang's, for the stop text; both hold an id where that was one.
    for stop in (choice.get("stop_reason"), choice.get("matched_stop")):
        if isinstance(stop, str) and stop and reason == "stop":
            answer.stop_text = stop
    events: list[Event] = []
    if reason == "content_filter":
        events = answer.note("the server's filter ended the answer")
    return events + answer.finish(_REASONS.get(reason, "stop"))


def _text(value: object) -> str:
    """Return a text; an empty one for anything else."""
    return value if isinstance(value, str) else ""


def _thought(delta: Mapping[str, Any]) -> str:
    """Return the piece of a thought, under whichever of its names; some servers send several."""
    for name in ("reasoning_content", "reasoning"):
        if isinstance(text := delta.get(name), str) and text:
            return text
    details = delta.get("reasoning_details")
    texts = [
        detail.get("text") or detail.get("summary")
        for detail in (details if isinstance(details, list) else ())
        if isinstance(detail, Mapping)
    ]
    return "".join(text for text in texts if isinstance(text, str))


def _chat_logprobs(logprobs: object) -> list[TokenText]:
    """Read the log-probabilities of Chat Completions, one object a token."""
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    tokens: list[TokenText] = []
    for entry in content if isinstance(content, list) else ():
        token = _entry(entry)
        if token is None:
            continue
        above = entry.get("top_logprobs")
        top = [_entry(each) for each in (above if isinstance(above, list) else ())]
        found = tuple(each for each in top if each is not None)
        tokens.append(TokenText(token.text, token.logprob, token.token_id, token.data, found))
    return tokens


def _entry(entry: object) -> TokenText | None:
    if not isinstance(entry, Mapping):
        return None
    token = read_token(entry.get("token"), entry.get("logprob"), entry.get("id"))
    data = entry.get("bytes")
    if token is None or not isinstance(data, list):
        return token
    is_bytes = all(type(each) is int and 0 <= each < 256 for each in data)
    # The bytes of a token that is shown by its id may be those of the digits.
    own = bytes(data) if is_bytes and bytes(data) != token.text.encode() else None
    return TokenText(token.text, token.logprob, token.token_id, own)


def _columns(logprobs: object) -> list[TokenText]:
    """Read the log-probabilities of Completions, a column each for texts, numbers and the likeliest
    tokens."""
    if not isinstance(logprobs, Mapping):
        return []
    texts, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
    tops = logprobs.get("top_logprobs")
    if not isinstance(texts, list) or not isinstance(values, list) or len(texts) != len(values):
        return []
    if not isinstance(tops, list) or len(tops) != len(texts):
        tops = [None] * len(texts)
    tokens: list[TokenText] = []
    for text, value, top in zip(texts, values, tops, strict=True):
        token = read_token(text, value)
        if token is None:
            continue
        pairs = top.items() if isinstance(top, Mapping) else ()
        read = [read_token(each, logprob) for each, logprob in pairs]
        found = sorted((each for each in read if each is not None), key=lambda each: -each.logprob)
        tokens.append(TokenText(text, token.logprob, token.token_id, None, tuple(found)))
    return tokens
