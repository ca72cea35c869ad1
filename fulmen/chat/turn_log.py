"""A log of answers, found again in whatever history a client sends.

    history -> runs of assistant messages -> the surest sign that finds a logged turn -> Found

    tool_call_id, signature   we issued it
    conversation              this answer after this conversation
    question                  this answer to this question
    content                   this answer

Signs only find candidates: a turn is used if its canonical answer (`canonical.py`) is what the
client shows. Then the history has the ids it was sampled as, and its thought. An answer that was
edited is left as it is and rendered; the turns after it still match. `turn_rows.py` keeps the rows.
"""

import json
import struct
import time
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from secrets import token_bytes
from typing import Any, Final, Literal, get_args

from fulmen.chat.canonical import Answer, Context, Run, read_answer, read_contexts, split_runs
from fulmen.chat.format import ChatFormat
from fulmen.chat.mending import whole_text
from fulmen.chat.messages import Message, SampledIds, Span, ToolCall
from fulmen.chat.model import Completion
from fulmen.chat.tokenizer import Tokenizer
from fulmen.chat.turn_rows import Row, TurnRows
from fulmen.sampling import FinishReason, SamplingParams, check_whole

Sign = Literal["tool_call_id", "signature", "conversation", "question", "content"]

_MAX_PAYLOAD_BYTES: Final = 2**26
"""Size of an unpacked payload; an answer of a million tokens with its text has a quarter of it"""
_MAX_SIGNS: Final = 256
"""Call ids, or signatures, of one answer that are kept or looked up"""
_MAX_PIECES: Final = 8
"""Messages into which a client may have split an answer"""
_MAX_CONVERSATIONS: Final = 8
_SURE_CHARS: Final = 64
"""Characters by which an answer, without its conversation, is not another's by chance"""


@dataclass(frozen=True, slots=True)
class FoundTurn:
    """What became of one assistant message of a history."""

    index: int
    """Index of the message in the history"""
    state: Literal["matched", "restored", "rendered"]
    """restored: a thought that the prompt shows was put back; rendered: no logged turn, or edited"""
    by: Sign | None = None
    """Sign that found the turn"""
    turn_id: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A history with the ids and the thoughts of the answers that were found."""

    messages: tuple[Message, ...]
    """Messages to render; an answer that a client had split is one message again"""
    turns: tuple[FoundTurn, ...]
    """One for each assistant message of the history, in their order"""


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


def fingerprint_of_vocabulary(tokenizer: Tokenizer, format: ChatFormat) -> str:
    """Return a text that is equal where ids and their spans mean the same."""
    digest = blake2b(digest_size=16)
    tags = repr((format.name, format.end_of_turn, format.thinking, format.calls, format.tags))
    for text in (tokenizer.to_json(), tags):
        digest.update(blake2b(text.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()


class TurnLog:
    """Log of the turns of a server, in a file or in memory; for any thread and several processes.

    Every look-up is within one scope, such as an API key, and one vocabulary. A file that is no log
    of turns, or broken, is a ValueError that names it; one that cannot be read or written for now,
    such as on a full disk, is an OSError.
    """

    def __init__(
        self,
        file: Path | None,
        *,
        vocabulary: str,
        max_bytes: int = 2**30,
        max_age_seconds: float = 30 * 86400,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        file             database, made if it is missing; None keeps turns in memory
        vocabulary       `fingerprint_of_vocabulary`: ids of another one are never found
        max_bytes        size beyond which the turns go that were not used for longest
        max_age_seconds  time after which a turn goes that was not used
        """
        check_whole("max_bytes", max_bytes, 1, 2**62)
        if not max_age_seconds > 0:
            raise ValueError(f"max_age_seconds is {max_age_seconds}, it must be more than 0")
        self._vocabulary = vocabulary
        self._max_bytes = max_bytes
        self._rows = TurnRows(
            file, max_bytes=max_bytes, max_age_seconds=max_age_seconds, now=now
        )

    def find(
        self,
        history: Sequence[Message],
        *,
        scope: str,
        format: ChatFormat,
        keep_thoughts: bool = False,
    ) -> Found:
        """Return a history with the sampled ids and the thought of every answer that is logged.

        keep_thoughts  the prompt will show the thoughts that the template drops
        """
        runs, _ = read_contexts(history)
        matches = _Search(self._rows, _Keys(scope, self._vocabulary), runs).matches()
        payloads = self._rows.payloads([match.row.id for match in matches.values()])
        messages: list[Message] = []
        found: list[tuple[int, int, _Match | None, bool]] = []
        index = 0
        while index < len(history):
            message, length = history[index], 1
            match = matches.get(index)
            is_other = False
            if match is not None and match.row.id in payloads:
                turn = self._unpack(match.row, payloads[match.row.id])
                put_back = _put_back(turn, match, history[index : index + match.length], format)
                if put_back is None:
                    match = None
                else:
                    message, length = put_back, match.length
                    is_other = not match.is_weak and _is_other_thought(turn, match.answer)
            else:
                match = None
            if message.role == "assistant":
                found += [(index + i, len(messages), match, is_other) for i in range(length)]
            messages.append(message)
            index += length
        shows = format.shows_thoughts(messages, keep_thoughts=keep_thoughts)
        turns = [
            FoundTurn(at, "restored" if is_other and shows[place] else "matched", match.by,
                      match.row.turn_id)
            if match is not None else FoundTurn(at, "rendered")
            for at, place, match, is_other in found
        ]
        return Found(tuple(messages), tuple(turns))

    def add(
        self,
        history: Sequence[Message],
        completion: Completion,
        *,
        scope: str,
        turn_id: str,
        shown: Message,
        signatures: Sequence[str] = (),
    ) -> None:
        """Log an answer.

        history     messages before the answer, as `find` returned them or as they were read
        shown       the answer as the client was sent it, with the ids of its calls
        signatures  signatures that the client was sent for its thought

        Left out is what no client can send back: an answer that failed, one that was cut inside a
        call (the client has a part of the call, and the ids would end in it), one without ids, and
        one that is larger than the log. An answer that was aborted is logged as far as it came.
        Raises ValueError for a turn that cannot be written as JSON.
        """
        sampled = completion.sampled
        if sampled is None or completion.finish_reason == "error" or _is_cut_in_call(completion):
            return
        payload = _pack(completion, sampled)
        if payload is None or len(payload) > self._max_bytes:
            return
        keys = _Keys(scope, self._vocabulary)
        runs, context = read_contexts(history)
        answer = read_answer([shown])
        thinking = completion.message.thinking or ""
        body = array("I", sampled.ids).tobytes() + thinking.encode("utf-8", "surrogatepass")
        self._rows.add(
            list(keys.of(answer, context, [call.id for call in shown.tool_calls], signatures)),
            payload,
            owner=keys.owner,
            answer=answer.digest,
            conversation=_Search(self._rows, keys, runs).conversation() or token_bytes(8),
            body=blake2b(body, digest_size=16).digest(),
            turn_id=turn_id,
        )

    def read(self, turn_id: str, *, scope: str) -> LoggedTurn | None:
        """Return a logged turn by its id, or None."""
        row = self._rows.by_turn_id(turn_id, _Keys(scope, self._vocabulary).owner)
        if row is None:
            return None
        payload = self._rows.payloads([row.id]).get(row.id)
        return None if payload is None else self._unpack(row, payload)

    def close(self) -> None:
        """Close the file."""
        self._rows.close()

    def _unpack(self, row: Row, payload: bytes) -> LoggedTurn:
        try:
            return _unpack(row.turn_id, payload)
        except (AttributeError, KeyError, TypeError, ValueError, struct.error, zlib.error) as error:
            raise ValueError(f"{self._rows.name} has a broken turn, remove it: {error}") from None


class _Keys:
    """Digests of signs in one scope and one vocabulary."""

    def __init__(self, scope: str, vocabulary: str) -> None:
        digest = blake2b(digest_size=32)
        for text in (scope, vocabulary):
            digest.update(blake2b(text.encode("utf-8", "surrogatepass")).digest())
        self._secret = digest.digest()
        self.owner = self.key("owner")

    def key(self, kind: str, *items: bytes) -> bytes:
        """Return the digest of a sign."""
        digest = blake2b(kind.encode(), digest_size=16, key=self._secret)
        for item in items:
            digest.update(blake2b(item, digest_size=16).digest())
        return digest.digest()

    def of_text(self, sign: Sign, text: str) -> bytes:
        """Return the key of a text that we issued."""
        return self.key(sign, whole_text(text).encode())

    def of(
        self,
        answer: Answer,
        context: Context,
        call_ids: Iterable[str | None],
        signatures: Iterable[str],
    ) -> Iterator[bytes]:
        """Yield the keys under which an answer is logged."""
        for id in list(call_ids)[:_MAX_SIGNS]:
            if id is not None:
                yield self.of_text("tool_call_id", id)
        for text in list(signatures)[:_MAX_SIGNS]:
            yield self.of_text("signature", text)
        yield self.key("conversation", context.chain, answer.digest)
        if context.question is not None:
            yield self.key("question", context.question, answer.digest)
        yield self.key("content", answer.digest)


@dataclass(slots=True)
class _Match:
    """Logged turn found for some messages of a run."""

    row: Row
    by: Sign
    length: int
    """Number of messages that are its answer"""
    answer: Answer
    is_weak: bool = False
    """True if only the text is known to be the same, not the thought before it"""


@dataclass(slots=True)
class _Piece:
    """Messages of a run that may be one answer."""

    index: int
    """Index of the first in the history"""
    messages: Sequence[Message]
    answer: Answer
    context: Context


class _Search:
    """Search for the logged turns of one history, by the surest signs first.

    A turn stands for one answer only, and among several the one of a conversation that other
    answers of this history are from is taken, in their order.
    """

    def __init__(self, rows: TurnRows, keys: _Keys, runs: Sequence[Run]) -> None:
        self._rows = rows
        self._keys = keys
        self._runs = runs
        self._matches: dict[int, _Match] = {}
        self._is_open = [[True] * len(run.messages) for run in runs]
        self._used: set[int] = set()
        self._conversations: dict[bytes, int] = {}
        """Conversations of the turns found, with their number of turns"""
        self._known: dict[bytes, list[Row]] = {}
        self._pieces: dict[tuple[int, int], _Piece] = {}

    def matches(self) -> dict[int, _Match]:
        """Return the turns found by the index of their first message."""
        self._try(self._by_issued)
        for search in (self._by_question, self._by_any_question, self._by_content, self._by_text):
            if not any(map(any, self._is_open)):
                break
            self._try(self._in_conversation)
            self._try(search)
        return self._matches

    def conversation(self) -> bytes | None:
        """Return the conversation of the last turn found."""
        matches = self.matches()
        sure = [index for index, match in matches.items() if not match.is_weak]
        return matches[max(sure)].row.conversation if sure else None

    def _try(self, search: Callable[[_Piece], _Match | None]) -> None:
        for run, is_open in zip(self._runs, self._is_open, strict=True):
            for start, stop in split_runs(run, is_open, _MAX_PIECES):
                if not all(is_open[start:stop]):
                    continue
                piece = self._piece(run, start, stop)
                match = search(piece)
                if match is None:
                    continue
                is_open[start:stop] = [False] * (stop - start)
                self._matches[piece.index] = match
                self._used.add(match.row.id)
                if not match.is_weak:
                    conversation = match.row.conversation
                    count = self._conversations.get(conversation, 0)
                    self._conversations[conversation] = count + 1

    def _piece(self, run: Run, start: int, stop: int) -> _Piece:
        place = run.start + start, stop - start
        if place not in self._pieces:
            messages = run.messages[start:stop]
            self._pieces[place] = _Piece(
                place[0], messages, read_answer(messages), run.context_at(start)
            )
        return self._pieces[place]

    def _by_issued(self, piece: _Piece) -> _Match | None:
        """Find a turn by an id or a signature that we issued, or by the whole conversation."""
        ids = [call.id for one in piece.messages for call in one.tool_calls if call.id is not None]
        signatures = [text for one in piece.messages for text in one.signatures]
        for sign, texts in (("tool_call_id", ids), ("signature", signatures)):
            for text in texts[:_MAX_SIGNS]:
                rows = self._rows_of(self._keys.of_text(sign, text), piece)  # type: ignore[arg-type]
                if rows:
                    return self._match(piece, rows, sign)  # type: ignore[arg-type]
        key = self._keys.key("conversation", piece.context.chain, piece.answer.digest)
        return self._match(piece, self._rows_of(key, piece), "conversation")

    def _in_conversation(self, piece: _Piece) -> _Match | None:
        """Find a turn of a conversation that others of this history are from."""
        by_count = sorted(self._conversations, key=lambda one: -self._conversations[one])
        asked = {row.id for row in self._of_question(piece)}
        for conversation in by_count[:_MAX_CONVERSATIONS]:
            key = self._keys.key("within", conversation, piece.answer.digest)
            if key not in self._known:
                self._known[key] = self._rows.by_conversation(
                    conversation, self._keys.owner, piece.answer.digest
                )
            rows = [row for row in self._known[key] if row.id not in self._used]
            same = [row for row in rows if row.id in asked]
            if rows:
                return self._match(piece, same or rows, "question" if same else "content")
        return None

    def _by_question(self, piece: _Piece) -> _Match | None:
        rows = self._of_question(piece)
        return self._match(piece, rows, "question") if len({row.body for row in rows}) == 1 else None

    def _by_any_question(self, piece: _Piece) -> _Match | None:
        return self._match(piece, self._of_question(piece), "question")

    def _by_content(self, piece: _Piece) -> _Match | None:
        """Find the one turn that gave this answer, if it is too long to be given by chance."""
        rows = self._of_content(piece)
        is_sure = piece.answer.num_chars >= _SURE_CHARS
        if is_sure and len({row.body for row in rows}) == 1:
            return self._match(piece, rows, "content")
        return None

    def _by_text(self, piece: _Piece) -> _Match | None:
        """Find a turn whose answer reads the same; its thought may be about something else."""
        match = self._match(piece, self._of_content(piece), "content")
        return replace(match, is_weak=True) if match else None

    def _of_question(self, piece: _Piece) -> list[Row]:
        context, answer = piece.context, piece.answer
        if context.question is None:
            return []
        if not context.has_user and context.num_chars + answer.num_chars < _SURE_CHARS:
            return []  # a tool that says ok asks nothing
        return self._rows_of(self._keys.key("question", context.question, answer.digest), piece)

    def _of_content(self, piece: _Piece) -> list[Row]:
        if not piece.answer.num_chars:
            return []
        return self._rows_of(self._keys.key("content", piece.answer.digest), piece)

    def _rows_of(self, key: bytes, piece: _Piece) -> list[Row]:
        if key not in self._known:
            self._known[key] = self._rows.by_key(key, self._keys.owner, piece.answer.digest)
        return [row for row in self._known[key] if row.id not in self._used]

    def _match(self, piece: _Piece, rows: Sequence[Row], by: Sign) -> _Match | None:
        """Return the likeliest of several turns: of a known conversation, and in its order."""
        if not rows:
            return None
        before = [m.row.id for i, m in self._matches.items() if i < piece.index]
        last = max(before, default=0)
        row = min(
            rows,
            key=lambda one: (
                -self._conversations.get(one.conversation, 0),
                one.id < last,
                one.id if one.conversation in self._conversations else -one.id,
            ),
        )
        return _Match(row, by, len(piece.messages), piece.answer)


def _put_back(
    turn: LoggedTurn, match: _Match, messages: Sequence[Message], format: ChatFormat
) -> Message | None:
    """Return a client's answer with its ids and its thought; None where they cannot stand."""
    calls = tuple(call for one in messages for call in one.tool_calls)
    logged = turn.message
    if match.is_weak:
        assert logged.sampled is not None
        if logged.sampled.has_later_thoughts or format.thinking is None:
            return None if logged.sampled.has_later_thoughts else replace(logged, tool_calls=calls)
        return replace(
            logged,
            thinking=match.answer.thinking or None,
            tool_calls=calls,
            sampled=logged.sampled.without_thought(),
        )
    return replace(logged, tool_calls=calls)


def _is_other_thought(turn: LoggedTurn, answer: Answer) -> bool:
    """Return whether the client showed another thought than the one that was logged."""
    logged = whole_text(turn.message.thinking or "").strip()
    return bool(logged) and whole_text(answer.thinking).strip() != logged


def _is_cut_in_call(completion: Completion) -> bool:
    """Return whether the answer ended inside a call: its last span is of calls, none of which is
    its end."""
    sampled = completion.sampled
    if sampled is None or completion.finish_reason == "stop":
        return False
    return bool(sampled.spans) and sampled.spans[-1].kind == "tool_calls"


def _pack(completion: Completion, sampled: SampledIds) -> bytes | None:
    message = completion.message
    head = {
        "content": message.content,
        "thinking": message.thinking,
        "calls": [[call.name, call.arguments, call.id] for call in message.tool_calls],
        "sampled": {
            **{k: v for k, v in asdict(sampled).items() if k not in ("ids", "spans")},
            "spans": [[span.kind, span.start, span.stop] for span in sampled.spans],
        },
        "num_ids": len(sampled.ids),
        "num_all": len(completion.answer_ids),
        "num_logprobs": len(completion.tokens),
        "finish_reason": completion.finish_reason,
        "params": asdict(completion.params),
    }
    text = json.dumps(head).encode()
    body = (
        array("I", sampled.ids).tobytes()
        + array("I", completion.answer_ids).tobytes()
        + array("f", [token.logprob for token in completion.tokens]).tobytes()
    )
    raw = struct.pack("<I", len(text)) + text + body
    return zlib.compress(raw, 1) if len(raw) <= _MAX_PAYLOAD_BYTES else None


def _unpack(turn_id: str, payload: bytes) -> LoggedTurn:
    unpacker = zlib.decompressobj()
    raw = unpacker.decompress(payload, _MAX_PAYLOAD_BYTES)
    (size,) = struct.unpack_from("<I", raw)
    head = json.loads(raw[4 : 4 + size])
    body = memoryview(raw)[4 + size :]
    bounds = [0]
    for name in ("num_ids", "num_all", "num_logprobs"):
        bounds.append(bounds[-1] + 4 * head[name])
    ids = array("I", body[: bounds[1]].tobytes())
    answer_ids = array("I", body[bounds[1] : bounds[2]].tobytes())
    logprobs = array("f", body[bounds[2] : bounds[3]].tobytes())
    spans = tuple(Span(*span) for span in head["sampled"].pop("spans"))
    sampled = SampledIds(tuple(ids), spans, **head["sampled"])
    params = {k: tuple(v) if isinstance(v, list) else v for k, v in head["params"].items()}
    calls = tuple(ToolCall(*call) for call in head["calls"])
    return LoggedTurn(
        turn_id=turn_id,
        message=Message("assistant", head["content"], head["thinking"], calls, sampled=sampled),
        ids=tuple(answer_ids),
        logprobs=tuple(logprobs),
        finish_reason=head["finish_reason"],
        params=SamplingParams(**params),
    )
