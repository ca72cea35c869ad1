"""One logged answer as bytes: a head in JSON, then ids and log-probabilities, all of it compressed.

Bytes from a file may be anything: they are read within bounds, checked, or a ValueError.
"""

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final, get_args

from fulmen.chat.messages import Message, SampledIds, Span, ToolCall
from fulmen.chat.model import Completion
from fulmen.sampling import FinishReason, SamplingParams

_MAX_BYTES: Final = 2**26
"""Size before compression; an answer of a million tokens with its text has a quarter of it"""
_SIZE: Final = struct.Struct("<I")
_KINDS: Final = ("thinking", "content", "tool_calls")
_LAYOUT: Final = {
    "answer_start": int,
    "answer_lead": str,
    "is_thinking_closed": bool,
    "tail": str,
    "has_later_thoughts": bool,
    "is_answer_only": bool,
}
"""Fields of `SampledIds` beside ids and spans"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedTurn:
    """An answer as it was logged."""

    turn_id: str
    message: Message
    """The answer, with its ids"""
    ids: tuple[int, ...]
    """All ids of the answer, the one that ended the turn included"""
    logprobs: tuple[float, ...]
    """Log-probabilities of the last of them, in float32"""
    finish_reason: FinishReason
    params: SamplingParams


def pack_turn(completion: Completion, sampled: SampledIds) -> bytes | None:
    """Return an answer as bytes, or None if it is too large.

    Raises ValueError for one that cannot be written as JSON.
    """
    message = completion.message
    ids, answer_ids = sampled.ids, completion.answer_ids
    head = {
        "content": message.content,
        "thinking": message.thinking,
        "calls": [[call.name, call.arguments, call.id] for call in message.tool_calls],
        "sampled": {name: getattr(sampled, name) for name in _LAYOUT},
        "spans": [[span.kind, span.start, span.stop] for span in sampled.spans],
        "counts": [len(ids), len(answer_ids), len(completion.tokens)],
        "is_prefix": answer_ids[: len(ids)] == ids,
        "finish_reason": completion.finish_reason,
        "params": asdict(completion.params),
    }
    try:
        text = json.dumps(head).encode()
        body = _pack("I", answer_ids) + _pack("I", () if head["is_prefix"] else ids)
        body += _pack("f", [token.logprob for token in completion.tokens])
    except (OverflowError, RecursionError, TypeError, ValueError, struct.error) as error:
        raise ValueError(f"the turn cannot be written: {error}") from None
    raw = _SIZE.pack(len(text)) + text + body
    return zlib.compress(raw, 1) if len(raw) <= _MAX_BYTES else None


def unpack_turn(turn_id: str, payload: object) -> LoggedTurn:
    """Return the answer in bytes that `pack_turn` wrote.

    Raises ValueError for any others.
    """
    if not isinstance(payload, bytes):
        raise ValueError(f"it is of type {type(payload).__name__}")
    try:
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(payload, _MAX_BYTES)
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError("it does not end where it should")
        (size,) = _SIZE.unpack_from(raw)
        head = json.loads(raw[_SIZE.size : _SIZE.size + size])
        return _read(turn_id, head, raw[_SIZE.size + size :])
    except KeyError as error:
        raise ValueError(f"it has no {error}") from None
    except (AttributeError, RecursionError, TypeError, struct.error, zlib.error) as error:
        raise ValueError(str(error)) from None


def _read(turn_id: str, head: Mapping[str, Any], body: bytes) -> LoggedTurn:
    counts = [_typed(count, int) for count in head["counts"]]
    num_ids, num_all, num_logprobs = counts
    num_apart = 0 if _typed(head["is_prefix"], bool) else num_ids
    if min(counts) < 0 or 4 * (num_all + num_apart + num_logprobs) != len(body):
        raise ValueError(f"it has {len(body)} bytes of numbers, not as many as it says")
    if max(num_ids - num_apart, num_logprobs) > num_all:
        raise ValueError(f"it has more ids or log-probabilities than the {num_all} of its answer")
    numbers = struct.unpack(f"<{num_all + num_apart}I{num_logprobs}f", body)
    start = num_all if num_apart else 0
    finish_reason = head["finish_reason"]
    if finish_reason not in get_args(FinishReason):
        raise ValueError("it has no finish_reason")
    layout: dict[str, Any] = {
        name: _typed(head["sampled"][name], kind) for name, kind in _LAYOUT.items()
    }
    sampled = SampledIds(
        ids=numbers[start : start + num_ids], spans=_read_spans(head["spans"], num_ids), **layout
    )
    if not 0 <= sampled.answer_start <= num_ids:
        raise ValueError("its answer begins outside of its ids")
    params: dict[str, Any] = {
        _typed(name, str): tuple(value) if isinstance(value, list) else value
        for name, value in head["params"].items()
    }
    calls = tuple(
        ToolCall(
            _typed(name, str), _typed(arguments, dict), None if id is None else _typed(id, str)
        )
        for name, arguments, id in head["calls"]
    )
    return LoggedTurn(
        turn_id=turn_id,
        message=Message("assistant", head["content"], head["thinking"], calls, sampled=sampled),
        ids=numbers[:num_all],
        logprobs=numbers[num_all + num_apart :],
        finish_reason=finish_reason,
        params=SamplingParams(**params),
    )


def _read_spans(given: Sequence[Any], num_ids: int) -> tuple[Span, ...]:
    spans = tuple(Span(kind, _typed(start, int), _typed(stop, int)) for kind, start, stop in given)
    places = [place for span in spans for place in (span.start, span.stop)]
    if any(before > after for before, after in pairwise([0, *places, num_ids])):
        raise ValueError("its spans are not in order")
    if any(span.kind not in _KINDS for span in spans):
        raise ValueError("it has a span of an unknown kind")
    return spans


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"it has a value of type {type(value).__name__}, not {kind.__name__}")
    return value


def _pack(kind: str, numbers: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(numbers)}{kind}", *numbers)
