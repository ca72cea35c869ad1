"""Replies of OpenAI's Responses: updates become events, or one object.

    created -> in_progress -> items: added, parts and deltas, done -> completed

The items of an answer stand in the order in which the model spoke. The object at the end is made of
the same events as the stream, so both say the same.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fulmen.chat import (
    ContentDelta,
    Event,
    ProblemFound,
    ThinkingDelta,
    Tokenizer,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    load_json,
)
from fulmen.server.answers import Answers
from fulmen.server.asking import End, Progress, Update
from fulmen.server.errors import Refusal
from fulmen.server.openai_reply import cache_diagnostics, logprob_fields
from fulmen.server.openai_responses import NamedTool, ResponsesCall, custom_input
from fulmen.server.responses_store import PLACE_DIGITS
from fulmen.server.sse import comment, frame

Fields = dict[str, Any]


@dataclass
class ResponsesWriter:
    """The reply to one request."""

    call: ResponsesCall
    answers: Answers
    tokenizer: Tokenizer | None
    created: int = field(default_factory=lambda: int(time.time()))
    is_stored: bool = True
    """False once it could not be stored"""
    _number: int = 0
    _items: "_Items | None" = None

    def __post_init__(self) -> None:
        self._items = _Items(self.call, self.answers)

    def whole(self, end: End) -> Fields:
        """Return the answer as one object."""
        items = _Items(self.call, self.answers)
        for event in end.spoken:
            for _ in items.events(event):
                pass
        for _ in items.last_events():
            pass
        return self._ended(end, items.output)

    def begin(self) -> Iterator[bytes]:
        """Yield the start of the response."""
        for kind in ("response.created", "response.in_progress"):
            yield self._frame({"type": kind, "response": self.object("in_progress")})

    def update(self, update: Update) -> Iterator[bytes]:
        """Yield the events of an update."""
        assert self._items is not None
        for event in update.events:
            yield from map(self._frame, self._items.events(event))

    def progress(self, progress: Progress) -> Iterator[bytes]:
        """Yield a sign of life, with what is read of the prompt."""
        yield comment(f"ping {progress.num_read_tokens}/{progress.num_prompt_tokens} prompt tokens")

    def end(self, end: End) -> Iterator[bytes]:
        """Yield the end of the response."""
        assert self._items is not None
        yield from map(self._frame, self._items.last_events())
        response = self._ended(end, self._items.output)
        yield self._frame({"type": f"response.{response['status']}", "response": response})

    def fail(self, refusal: Refusal, request_id: str) -> Iterator[bytes]:
        """Yield an error, which ends the stream."""
        response = self.object("failed")
        response["error"] = failure(refusal)
        yield from self.broken(response)

    def broken(self, response: Fields) -> Iterator[bytes]:
        """Yield the last event of a response that did not come to its end: it failed, or was
        cancelled, for which there is no event of its own."""
        kind = "failed" if response["status"] == "failed" else "incomplete"
        yield self._frame({"type": f"response.{kind}", "response": response})

    def object(self, status: str) -> Fields:
        """Return the response before its end."""
        call, body, params = self.call, self.call.body, self.call.ask.params
        return {
            "id": self.answers.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": None,
            "status": status,
            "background": call.is_background,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": call.ask.model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {
                "effort": (body.reasoning or {}).get("effort"),
                "summary": (body.reasoning or {}).get("summary"),
            },
            "store": call.is_stored and self.is_stored,
            "temperature": params.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    def _ended(self, end: End, output: Sequence[Fields]) -> Fields:
        response = self.object("completed")
        response["completed_at"] = int(time.time())
        if end.is_call_cut or end.completion.finish_reason in ("length", "repetition"):
            response |= {
                "status": "incomplete",
                "completed_at": None,
                "incomplete_details": {"reason": "max_output_tokens"},
            }
        response["output"] = [*output]
        if self.call.has_logprobs and self.tokenizer is not None:
            _add_logprobs(response["output"], logprobs_of_content(end, self.tokenizer))
        return response | {"usage": usage(end), **self._reports(end)}

    def _reports(self, end: End) -> Fields:
        report = self.answers.report
        fields: Fields = {"fulmen": report.to_dict()}
        if end.completion.reply.problems:
            fields["fulmen"]["problems"] = list(end.completion.reply.problems)
        return fields | cache_diagnostics(report, end.completion.usage.num_cached_tokens)

    def _frame(self, event: Mapping[str, Any]) -> bytes:
        numbered = {**event, "sequence_number": self._number}
        self._number += 1
        return frame(numbered, event=event["type"])


def usage(end: End) -> Fields:
    """Return the tokens of a response."""
    num_prompt, new = end.num_prompt_tokens, end.completion.usage.num_new_tokens
    cached = min(end.completion.usage.num_cached_tokens, num_prompt)
    return {
        "input_tokens": num_prompt,
        "input_tokens_details": {
            "cached_tokens": cached,
            "cache_write_tokens": num_prompt - cached,
        },
        "output_tokens": new,
        "output_tokens_details": {"reasoning_tokens": end.num_thinking_tokens},
        "total_tokens": num_prompt + new,
    }


def failure(refusal: Refusal) -> Fields:
    """Return a refusal as the error of a response."""
    code = "rate_limit_exceeded" if refusal.status == 429 else "server_error"
    return {"code": code, "message": refusal.message}


def logprobs_of_content(end: End, tokenizer: Tokenizer) -> list[Fields]:
    """Return the log-probabilities of the tokens that the answer's text is made of."""
    sampled, completion = end.completion.sampled, end.completion
    num_before = len(completion.prefix_ids)
    if sampled is None:
        return []
    tokens = [
        completion.tokens[place - num_before]
        for span in sampled.spans
        if span.kind == "content"
        for place in range(max(span.start, num_before), span.stop)
    ]
    return logprob_fields(tokens, tokenizer)


def _add_logprobs(output: Sequence[Fields], logprobs: list[Fields]) -> None:
    """Put log-probabilities into the first message: tokens do not tell which of several is
    theirs."""
    for item in output:
        if item["type"] == "message" and item["content"]:
            item["content"][0]["logprobs"] = logprobs
            return


class _Items:
    """Items of one answer as they come: events for the stream, and what they add up to."""

    def __init__(self, call: ResponsesCall, answers: Answers) -> None:
        self.output: list[Fields] = []
        """Items that have ended"""
        self._call = call
        self._hex = answers.id.rpartition("_")[2]
        self._signature = answers.signatures[0]
        self._item: Fields | None = None
        """Item that is open"""
        self._text: list[str] = []
        """Its text so far"""
        self._blank = ""
        """White space of the content that no item holds yet"""
        self._calls: dict[int, NamedTool] = {}

    def events(self, event: Event) -> Iterator[Fields]:
        """Yield the events of one event of the answer."""
        match event:
            case ThinkingDelta(text):
                if self._call.thinking.show == "hidden":
                    if not self._is_open("reasoning"):
                        yield from self._close()
                        yield from self._open("rs", "reasoning", summary=[])
                    return
                if not self._is_open("reasoning"):
                    yield from self._close()
                    yield from self._open("rs", "reasoning", summary=[])
                    yield self._part("added", self._thought_part(""))
                yield self._delta(self._thought_events(), text)
            case ContentDelta(text):
                if not self._is_open("message"):
                    self._blank += text
                    if not self._blank.strip():
                        return
                    text, self._blank = self._blank, ""
                    yield from self._close()
                    yield from self._open("msg", "message", role="assistant", content=[])
                    yield self._part("added", _text_part(""))
                yield self._delta("response.output_text", text, logprobs=[])
            case ToolCallStart(_, id, name):
                yield from self._close()
                tool = self._call.tools.get(name) or NamedTool(name)
                fields: Fields = {"call_id": id, "name": tool.name}
                if tool.namespace is not None:
                    fields["namespace"] = tool.namespace
                if tool.is_custom:
                    yield from self._open("ctc", "custom_tool_call", **fields, input="")
                else:
                    yield from self._open("fc", "function_call", **fields, arguments="")
            case ToolCallDelta(_, arguments):
                if self._is_open("custom_tool_call"):
                    self._text.append(arguments)  # its input is known when the call is whole
                else:
                    yield self._delta("response.function_call_arguments", arguments)
            case ToolCallEnd():
                yield from self._close(is_whole=True)
            case ProblemFound():
                return

    def last_events(self) -> Iterator[Fields]:
        """Yield the end of the last item; an answer without any gets an empty message."""
        yield from self._close()
        if not self.output:
            yield from self._open("msg", "message", role="assistant", content=[])
            yield self._part("added", _text_part(""))
            yield from self._close()

    def _is_open(self, kind: str) -> bool:
        return self._item is not None and self._item["type"] == kind

    def _open(self, prefix: str, kind: str, **fields: Any) -> Iterator[Fields]:
        place = len(self.output)
        self._text = []
        self._item = {
            "id": f"{prefix}_{self._hex}{place:0{PLACE_DIGITS}d}",
            "type": kind,
            "status": "in_progress",
            **fields,
        }
        yield {
            "type": "response.output_item.added",
            "output_index": place,
            "item": {**self._item},
        }

    def _close(self, *, is_whole: bool = False) -> Iterator[Fields]:
        """Yield the end of the open item; a call that is not whole was cut."""
        if self._item is None:
            return
        item, text = self._item, "".join(self._text)
        item["status"] = "completed"
        match item["type"]:
            case "reasoning":
                yield from self._close_thought(item, text)
            case "message":
                part = _text_part(text)
                yield self._text_done("response.output_text", text=text, logprobs=[])
                yield self._part("done", part)
                item["content"] = [part]
            case "function_call":
                item["arguments"] = text
                item["status"] = "completed" if is_whole else "incomplete"
                yield self._text_done(
                    "response.function_call_arguments", arguments=text, name=item["name"]
                )
            case "custom_tool_call":
                item["status"] = "completed" if is_whole else "incomplete"
                item["input"] = custom_input(load_json(text)) if is_whole else ""
                yield self._of_item("response.custom_tool_call_input.delta", delta=item["input"])
                yield self._of_item("response.custom_tool_call_input.done", input=item["input"])
        place = len(self.output)
        self.output.append(item)
        self._item = None
        yield {"type": "response.output_item.done", "output_index": place, "item": item}

    def _close_thought(self, item: Fields, text: str) -> Iterator[Fields]:
        if self._call.thinking.show != "hidden":
            part = self._thought_part(text)
            yield self._text_done(self._thought_events(), text=text)
            yield self._part("done", part)
            item["summary" if self._call.has_summary else "content"] = [part]
        item["encrypted_content"] = self._signature

    def _thought_part(self, text: str) -> Fields:
        kind = "summary_text" if self._call.has_summary else "reasoning_text"
        return {"type": kind, "text": text}

    def _thought_events(self) -> str:
        has_summary = self._call.has_summary
        return "response.reasoning_summary_text" if has_summary else "response.reasoning_text"

    # ---- events of the open item

    def _of_item(self, kind: str, **fields: Any) -> Fields:
        assert self._item is not None
        place = {"item_id": self._item["id"], "output_index": len(self.output)}
        return {"type": kind, **place, **fields}

    def _in_part(self) -> Fields:
        assert self._item is not None
        if self._item["type"] in ("function_call", "custom_tool_call"):
            return {}
        is_summary = self._item["type"] == "reasoning" and self._call.has_summary
        return {"summary_index" if is_summary else "content_index": 0}

    def _part(self, what: str, part: Fields) -> Fields:
        is_summary = "summary_index" in self._in_part()
        kind = "reasoning_summary_part" if is_summary else "content_part"
        return self._of_item(f"response.{kind}.{what}", **self._in_part(), part=part)

    def _delta(self, kind: str, text: str, **fields: Any) -> Fields:
        self._text.append(text)
        return self._of_item(f"{kind}.delta", **self._in_part(), delta=text, **fields)

    def _text_done(self, kind: str, **fields: Any) -> Fields:
        return self._of_item(f"{kind}.done", **self._in_part(), **fields)


def _text_part(text: str) -> Fields:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
