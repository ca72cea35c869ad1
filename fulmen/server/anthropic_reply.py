"""Replies of Anthropic's Messages: updates become events, or one message.

    message_start -> content_block_start, deltas, content_block_stop ... -> message_delta -> stop

A thought is a block with a signature, by which it is found again whatever the client made of its
text. Blocks come in the order in which the model spoke.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fulmen.chat import (
    ContentDelta,
    Event,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from fulmen.server.answers import Answers
from fulmen.server.anthropic_messages import MessagesCall
from fulmen.server.asking import End, Progress, Report, Update
from fulmen.server.errors import Refusal
from fulmen.server.sse import frame

_NUM_PROMPT_END_TOKENS: Final = 4
"""Tokens after a client's last cache mark: those that open the answer"""


def stop_reason(end: End) -> tuple[str, str | None]:
    """Return Anthropic's word for the end of an answer, and the stop sequence that ended it. A call
    that was cut is one that max_tokens cut: nobody may carry it out."""
    completion = end.completion
    if completion.is_context_full:
        return "model_context_window_exceeded", None
    if end.is_call_cut or completion.finish_reason in ("length", "repetition"):
        return "max_tokens", None
    if completion.stop_text is not None:
        return "stop_sequence", completion.stop_text
    return ("tool_use" if completion.reply.tool_calls else "end_turn"), None


@dataclass
class MessagesWriter:
    """The reply to one request."""

    call: MessagesCall
    answers: Answers
    _num_blocks: int = 0
    _block: str | None = None
    """Type of the open block"""
    _blank: str = ""
    """White space of the content that no block holds yet"""

    def whole(self, end: End) -> dict[str, Any]:
        """Return the answer as one message."""
        reason, sequence = stop_reason(end)
        return {
            **self._message(self._blocks(end)),
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": self._usage(end),
            **self._reports(end),
        }

    def begin(self) -> Iterator[bytes]:
        """Yield the start of the message."""
        request = self.answers.prepared.request
        num_tokens = len(self.answers.prompt_ids or ()) + len(request.prefix_ids)
        message = self._message([])
        message["usage"] = {
            "input_tokens": num_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        }
        yield _frame(_event("message_start", message=message))

    def update(self, update: Update) -> Iterator[bytes]:
        """Yield the events of an update."""
        for event in update.events:
            yield from map(_frame, self._events(event))

    def progress(self, progress: Progress) -> Iterator[bytes]:
        """Yield a ping, with what is read of the prompt."""
        read = {
            "prompt_tokens": progress.num_prompt_tokens,
            "read_tokens": progress.num_read_tokens,
        }
        yield _frame(_event("ping", fulmen=read))

    def end(self, end: End) -> Iterator[bytes]:
        """Yield the end of the message."""
        yield from map(_frame, self._last_events())
        reason, sequence = stop_reason(end)
        yield _frame(
            _event(
                "message_delta",
                delta={"stop_reason": reason, "stop_sequence": sequence},
                usage=self._usage(end),
                **self._reports(end),
            )
        )
        yield _frame(_event("message_stop"))

    def fail(self, refusal: Refusal, request_id: str) -> Iterator[bytes]:
        """Yield an error, which ends the stream."""
        yield frame(refusal.body("anthropic", request_id), event="error")

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        message: dict[str, Any] = {
            "id": self.answers.id,
            "type": "message",
            "role": "assistant",
            "model": self.call.ask.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
        }
        if self.call.has_diagnostics:
            message["diagnostics"] = diagnostics(self.answers.report, self.call.ask.previous_id)
        return message

    def _usage(self, end: End) -> dict[str, Any]:
        usage = end.completion.usage
        cached = min(usage.num_cached_tokens, end.num_prompt_tokens)
        new = end.num_prompt_tokens - cached
        written = max(0, new - _NUM_PROMPT_END_TOKENS) if self.call.has_cache_marks else 0
        return {
            "input_tokens": new - written,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": cached,
            "cache_creation": {
                "ephemeral_5m_input_tokens": written,
                "ephemeral_1h_input_tokens": 0,
            },
            "output_tokens": usage.num_new_tokens,
            "output_tokens_details": {"thinking_tokens": end.num_thinking_tokens},
        }

    def _reports(self, end: End) -> dict[str, Any]:
        report = self.answers.report.to_dict()
        if end.completion.reply.problems:
            report["problems"] = list(end.completion.reply.problems)
        return {"fulmen": report}

    def _blocks(self, end: End) -> list[dict[str, Any]]:
        """Return the blocks of an answer, as those of its stream add up. A call that was begun and
        not ended is left out."""
        events = [event for spoken in end.spoken for event in self._events(spoken)]
        blocks: list[dict[str, Any]] = []
        for event in [*events, *self._last_events()]:
            if event["type"] == "content_block_start":
                blocks.append(dict(event["content_block"]))
            elif event["type"] == "content_block_delta":
                _add(blocks[-1], event["delta"])
        whole = {call.id: call.arguments for call in end.shown.tool_calls}
        for block in blocks:
            if block["type"] == "tool_use":
                block["input"] = whole.get(block["id"])
        return [block for block in blocks if block.get("input", {}) is not None]

    # ---- events of a stream

    def _events(self, event: Event) -> Iterator[dict[str, Any]]:
        match event:
            case ThinkingDelta(text):
                if self._block != "thinking":
                    yield from self._close()
                    yield self._open({"type": "thinking", "thinking": "", "signature": ""})
                if self.call.thinking.show != "hidden":
                    yield self._delta({"type": "thinking_delta", "thinking": text})
            case ContentDelta(text):
                if self._block != "text":
                    self._blank += text
                    if not self._blank.strip():
                        return  # a block of white space is refused when it comes back
                    text, self._blank = self._blank, ""
                    yield from self._close()
                    yield self._open({"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})
            case ToolCallStart(_, id, name):
                yield from self._close()
                yield self._open({"type": "tool_use", "id": id, "name": name, "input": {}})
            case ToolCallDelta(_, arguments):
                yield self._delta({"type": "input_json_delta", "partial_json": arguments})
            case ToolCallEnd():
                yield from self._close()

    def _last_events(self) -> Iterator[dict[str, Any]]:
        """Yield the end of the last block; an answer without any gets an empty one."""
        yield from self._close()
        if not self._num_blocks:
            yield self._open({"type": "text", "text": ""})
            yield from self._close()

    def _open(self, block: Mapping[str, Any]) -> dict[str, Any]:
        self._block = block["type"]
        return _event("content_block_start", index=self._num_blocks, content_block=block)

    def _delta(self, delta: Mapping[str, Any]) -> dict[str, Any]:
        return _event("content_block_delta", index=self._num_blocks, delta=delta)

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._block is None:
            return
        if self._block == "thinking":
            signature = self.answers.signatures[0]
            yield self._delta({"type": "signature_delta", "signature": signature})
        self._block = None
        yield _event("content_block_stop", index=self._num_blocks)
        self._num_blocks += 1


def _event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


def _frame(event: Mapping[str, Any]) -> bytes:
    return frame(event, event=event["type"])


def _add(block: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Add a fragment to the block it belongs to."""
    for name in ("text", "thinking", "signature"):
        if name in delta:
            block[name] += delta[name]


def diagnostics(report: Report, previous_id: str | None) -> dict[str, Any] | None:
    """Return why the prompt could not go on from an earlier one, in Anthropic's words; None where
    it could."""
    if previous_id is not None and report.previous_id != previous_id:
        return {"cache_miss_reason": {"type": "previous_message_not_found"}}
    if report.miss_reason is None:
        return None
    return {
        "cache_miss_reason": {
            "type": report.miss_reason,
            "cache_missed_input_tokens": report.num_missed_tokens,
        }
    }
