"""Replies of OpenAI's Chat Completions: updates become chunks, or one object.

    role -> reasoning_content ... -> content or tool_calls ... -> finish_reason -> usage -> [DONE]

Role, ids and names are sent once, since clients join what they get.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from fulmen.chat import (
    ContentDelta,
    Event,
    ProblemFound,
    ThinkingDelta,
    Token,
    Tokenizer,
    ToolCallDelta,
    ToolCallStart,
    dump_json,
)
from fulmen.server.answers import Answers
from fulmen.server.asking import End, Progress, Report, Update
from fulmen.server.errors import Refusal
from fulmen.server.openai_chat import ChatCall
from fulmen.server.sse import DONE, comment, frame
from fulmen.server.thinking import Thinking

LOWEST_LOGPROB: Final = -9999.0
"""OpenAI's number for a token of no probability: JSON has no infinity"""


def usage(ends: Sequence[End]) -> dict[str, Any]:
    """Return the tokens of the answers to one prompt, which counts once."""
    num_prompt = ends[0].num_prompt_tokens
    new = sum(end.completion.usage.num_new_tokens for end in ends)
    thinking = sum(end.num_thinking_tokens for end in ends)
    cached = min(ends[0].completion.usage.num_cached_tokens, num_prompt)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": new,
        "total_tokens": num_prompt + new,
        "prompt_tokens_details": {
            "cached_tokens": cached,
            "cache_write_tokens": num_prompt - cached,
        },
        "completion_tokens_details": {"reasoning_tokens": thinking},
    }


def cache_diagnostics(report: Report, num_cached_tokens: int) -> dict[str, Any]:
    """Return why the cache held no more of a prompt, in OpenAI's words; nothing where no earlier
    prompt is known."""
    if report.miss_reason is not None:
        is_tools = report.miss_reason == "tools_changed"
        miss = {
            "type": "cache_miss",
            "reason": "tools_changed" if is_tools else "input_changed",
            "cache_missed_tokens": report.num_missed_tokens,
        }
        return {"prompt_cache_diagnostics": miss}
    if report.previous_id is None:
        return {}
    kind = "unavailable" if report.is_evicted(num_cached_tokens) else "cache_hit"
    return {"prompt_cache_diagnostics": {"type": kind}}


def token_by_id(token_id: int) -> str:
    """Return a token as vLLM shows it by its id."""
    return f"token_id:{token_id}"


def logprob_fields(
    tokens: Sequence[Token], tokenizer: Tokenizer, *, shows_ids: bool = False
) -> list[dict[str, Any]]:
    """Return the log-probabilities of tokens, each with those of the likeliest in its place.

    shows_ids  show a token by its id in place of its text
    """

    def fields(token_id: int, logprob: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token_id)
        return {
            "token": token_by_id(token_id) if shows_ids else data.decode(errors="replace"),
            "logprob": logprob if math.isfinite(logprob) else LOWEST_LOGPROB,
            "bytes": list(data),
        }

    return [
        {
            **fields(token.token_id, token.logprob),
            "top_logprobs": [fields(*top) for top in token.top_logprobs],
        }
        for token in tokens
    ]


def finish_reason(end: End) -> Literal["stop", "length", "tool_calls"]:
    """Return OpenAI's word for the end of an answer. A call that was cut is one that length cut:
    nobody may carry it out."""
    if end.is_call_cut or end.completion.finish_reason in ("length", "repetition"):
        return "length"
    return "tool_calls" if end.completion.reply.tool_calls else "stop"


@dataclass
class ChatWriter:
    """The replies to one request."""

    call: ChatCall
    answers: Answers
    tokenizer: Tokenizer | None
    created: int = field(default_factory=lambda: int(time.time()))
    _open: dict[int, "_Shown"] = field(default_factory=dict)

    def whole(self, ends: Sequence[End]) -> dict[str, Any]:
        """Return the answers as one object."""
        ends = sorted(ends, key=lambda end: end.index)
        reply = {
            **self._head("chat.completion"),
            "choices": [self._choice(end) for end in ends],
            "usage": usage(ends),
            **self._reports(ends),
        }
        if self.call.has_token_ids:
            reply["prompt_token_ids"] = list(ends[0].completion.prompt_ids)
        return reply

    def begin(self) -> Iterator[bytes]:
        """Yield the first chunk of each answer: its role."""
        for index in range(self.call.ask.num_answers):
            extra: dict[str, Any] = {}
            if self.call.has_token_ids and index == 0:
                extra["prompt_token_ids"] = list(self.answers.prompt_ids or ())
            yield self._chunk(index, {"role": "assistant", "content": ""}, **extra)

    def update(self, update: Update) -> Iterator[bytes]:
        """Yield the chunks of an update."""
        self._shown(update.index).num_tokens += len(update.tokens)
        deltas = list(self._deltas(update.index, update.events))
        if not deltas and update.tokens and (self.call.has_logprobs or self.call.has_token_ids):
            deltas = [{}]
        for place, delta in enumerate(deltas):
            tokens = update.tokens if place == 0 else ()
            yield self._chunk(update.index, delta, choice=self._token_fields(tokens))

    def progress(self, progress: Progress) -> Iterator[bytes]:
        """Yield a sign of life."""
        if self.call.has_progress:
            yield frame(
                {
                    **self._head("chat.completion.chunk"),
                    "choices": [],
                    "prompt_progress": {
                        "total": progress.num_prompt_tokens,
                        "processed": progress.num_read_tokens,
                    },
                }
            )
        else:
            yield comment(
                f"ping {progress.num_read_tokens}/{progress.num_prompt_tokens} prompt tokens"
            )

    def end(self, end: End) -> Iterator[bytes]:
        """Yield the last chunk of an answer."""
        deltas = list(self._shown(end.index).close(self.call.thinking))
        for delta in deltas:
            yield self._chunk(end.index, delta)
        left = end.completion.tokens[self._shown(end.index).num_tokens :]
        reports = {} if self.call.has_usage else self._reports([end])
        yield self._chunk(
            end.index,
            {},
            finish=finish_reason(end),
            choice=self._token_fields(left),
            **reports,
        )

    def finish(self, ends: Sequence[End]) -> Iterator[bytes]:
        """Yield the usage, the report and the end of the stream."""
        ends = sorted(ends, key=lambda end: end.index)
        if self.call.has_usage:
            yield frame(
                {
                    **self._head("chat.completion.chunk"),
                    "choices": [],
                    "usage": usage(ends),
                    **self._reports(ends),
                }
            )
        yield DONE

    def fail(self, refusal: Refusal, request_id: str) -> Iterator[bytes]:
        """Yield an error and the end of the stream."""
        yield frame(refusal.body("openai", request_id))
        yield DONE

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.answers.id,
            "object": kind,
            "created": self.created,
            "model": self.call.ask.model,
        }

    def _reports(self, ends: Sequence[End]) -> dict[str, Any]:
        """Return what became of the history and the cache, in OpenAI's words and in ours."""
        report = self.answers.report
        fields: dict[str, Any] = {"fulmen": report.to_dict()}
        problems = [problem for end in ends for problem in end.completion.reply.problems]
        if problems:
            fields["fulmen"]["problems"] = problems
        return fields | cache_diagnostics(report, ends[0].completion.usage.num_cached_tokens)

    def _chunk(
        self,
        index: int,
        delta: Mapping[str, Any],
        *,
        finish: str | None = None,
        choice: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> bytes:
        one = {
            "index": index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": finish,
            **(choice or {}),
        }
        chunk = {**self._head("chat.completion.chunk"), "choices": [one], **extra}
        if self.call.has_usage:
            chunk["usage"] = None
        return frame(chunk)

    def _shown(self, index: int) -> "_Shown":
        return self._open.setdefault(index, _Shown())

    def _deltas(self, index: int, events: Sequence[Event]) -> Iterator[dict[str, Any]]:
        shown_so_far = self._shown(index)
        for event in events:
            yield from shown_so_far.deltas(event, self.call.thinking)

    def _token_fields(self, tokens: Sequence[Token]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if self.call.has_token_ids:
            fields["token_ids"] = [token.token_id for token in tokens]
        if self.call.has_logprobs and tokens:
            fields["logprobs"] = self._logprobs(tokens)
        return fields

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        assert self.tokenizer is not None
        content = logprob_fields(tokens, self.tokenizer, shows_ids=self.call.shows_ids)
        return {"content": content, "refusal": None}

    def _choice(self, end: End) -> dict[str, Any]:
        thinking, thought = self.call.thinking, end.shown.thinking
        message: dict[str, Any] = {
            "role": "assistant",
            "content": end.shown.content or None if end.shown.tool_calls else end.shown.content,
            "refusal": None,
        }
        if thought and thinking.show == "apart":
            message["reasoning_content"] = thought
            if thinking.has_reasoning:
                message["reasoning"] = thought
            if thinking.has_details:
                message["reasoning_details"] = [_detail(thought)]
        if thought and thinking.show == "inline":
            message["content"] = _inline(end, thinking)
        if end.shown.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": dump_json(call.arguments)},
                }
                for call in end.shown.tool_calls
            ]
        choice = {
            "index": end.index,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_reason(end),
        }
        if self.call.has_logprobs:
            choice["logprobs"] = self._logprobs(end.completion.tokens)
        if self.call.has_token_ids:
            choice["token_ids"] = [token.token_id for token in end.completion.tokens]
        return choice


def _inline(end: End, thinking: Thinking) -> str:
    """Return an answer with its thoughts in tags, as its stream adds up."""
    shown = _Shown()
    deltas = [delta for event in end.spoken for delta in shown.deltas(event, thinking)]
    return "".join(delta.get("content", "") for delta in [*deltas, *shown.close(thinking)])


def _detail(text: str) -> dict[str, Any]:
    """Return a thought as OpenRouter's and MiniMax's list has it; clients join by index."""
    return {"type": "reasoning.text", "text": text, "format": "unknown", "index": 0}


@dataclass(slots=True)
class _Shown:
    """State of one streamed answer."""

    is_thinking_open: bool = False
    has_detail: bool = False
    num_tokens: int = 0

    def deltas(self, event: Event, thinking: Thinking) -> Iterator[dict[str, Any]]:
        """Yield the deltas of an event."""
        match event:
            case ThinkingDelta(text):
                yield from self._thought(text, thinking)
                return
            case ProblemFound():
                return
        yield from self.close(thinking)
        match event:
            case ContentDelta(text):
                yield {"content": text}
            case ToolCallStart(index, id, name):
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": id, "type": "function", "function": function}
                yield {"tool_calls": [call]}
            case ToolCallDelta(index, arguments):
                yield {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}

    def close(self, thinking: Thinking) -> Iterator[dict[str, Any]]:
        """Yield the closing tag of a thought that is shown in the content."""
        if self.is_thinking_open:
            self.is_thinking_open = False
            yield {"content": "\n</think>\n\n"}

    def _thought(self, text: str, thinking: Thinking) -> Iterator[dict[str, Any]]:
        if thinking.show == "hidden":
            return
        if thinking.show == "inline":
            opening = "" if self.is_thinking_open else "<think>\n"
            self.is_thinking_open = True
            yield {"content": opening + text}
            return
        delta: dict[str, Any] = {"reasoning_content": text}
        if thinking.has_reasoning:
            delta["reasoning"] = text
        if thinking.has_details:
            # Clients join strings that come twice, so what tells the kind comes once.
            delta["reasoning_details"] = [
                {"index": 0, "text": text} if self.has_detail else _detail(text)
            ]
            self.has_detail = True
        yield delta
