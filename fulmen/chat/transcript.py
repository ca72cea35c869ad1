"""The one owner of a conversation: every turn with the ids it was sampled as.

    messages -> matched with the turns -> their sampled ids, the rest rendered -> Prompt
    Completion -> Turn: what was new, the answer, its ids, log-probabilities and sampling

Sampled ids are never decoded and encoded again. A history that comes back, from a terminal, a
session or a client, is matched turn by turn: each answer that is still the same stands in the next
prompt as the ids it was sampled as, so the engine finds them in its cache and the model sees what
it said. Where a template drops the thoughts of earlier questions, the answer after such a thought
keeps its ids, and the prompt says how many tokens have to be read again and why.
"""

import json
import math
import reprlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any, Final, get_args

from fulmen.chat.canonical import read_answer
from fulmen.chat.format import ChatFormat
from fulmen.chat.messages import Message, SampledIds, Span, Tool
from fulmen.chat.model import Completion, Prompt
from fulmen.chat.reading import read_messages, read_tools
from fulmen.chat.stopping import StopTexts
from fulmen.chat.tokenizer import Tokenizer
from fulmen.sampling import FinishReason, SamplingParams, shown

_DROPPED: Final = "the template drops the thoughts of earlier questions"
_CHANGED: Final = "the conversation before this question was changed"

_RENAMED: Final = {"thinking_landing": "thinking_soft_end"}
"""Sampling fields of 0.1.0 and their names today"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """New messages of a conversation, and the answer to them."""

    messages: tuple[Message, ...]
    """New messages before the answer"""
    reply: Message
    """The answer, with its ids"""
    tools: tuple[Mapping[str, Any], ...] = ()
    num_shared: int
    """Ids that the turn has in common with the turn before, from the start of the prompt"""
    new_ids: tuple[int, ...]
    """Ids after those, to the end of the answer"""
    num_answer_ids: int
    """Last ids of new_ids that are the answer, the end of the turn included; 0 for an answer that
    was not sampled here"""
    logprobs: tuple[float | None, ...]
    """Log-probability of each id of the answer; None where it is not known, or minus infinity"""
    forced: tuple[int, ...] = ()
    """Indices of the answer's ids that were given, not drawn"""
    num_thinking_tokens: int = 0
    finish_reason: FinishReason
    params: SamplingParams
    format: str
    """Name of the chat format that wrote the prompt"""

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """All ids of the answer."""
        return self.new_ids[len(self.new_ids) - self.num_answer_ids :]

    def record(self) -> dict[str, Any]:
        """Return everything but the ids as a JSON object; `read_turn` reads it back."""
        return {
            "messages": [message.to_dict() for message in self.messages],
            "tools": [dict(tool) for tool in self.tools],
            "reply": self.reply.to_dict(),
            "finish_reason": self.finish_reason,
            "num_thinking_tokens": self.num_thinking_tokens,
            "params": asdict(self.params),
            "logprobs": list(self.logprobs),
            "forced": list(self.forced),
            "format": self.format,
        }


class Transcript:
    """A conversation as turns; append only, but for `rewind`."""

    def __init__(
        self, format: ChatFormat, tokenizer: Tokenizer, *, keep_thoughts: bool = False
    ) -> None:
        """keep_thoughts: every earlier thought stays in the prompt, whatever the template says: the
        cache then holds all of it, and the model reads what it was not trained to read."""
        self.format = format
        self.tokenizer = tokenizer
        self.keep_thoughts = keep_thoughts
        self.turns: list[Turn] = []
        self.num_kept: int | None = None
        """Ids of the last answer that count, if not all: the conversation was rewound into it"""

    @property
    def messages(self) -> list[Message]:
        """All messages; of an answer that is rewound into, only those before it."""
        found = [message for turn in self.turns for message in (*turn.messages, turn.reply)]
        return found if self.num_kept is None else found[:-1]

    def ids(self, num_turns: int | None = None) -> list[int]:
        """Return all ids of the first turns, as the last of them was read and sampled."""
        turns = self.turns if num_turns is None else self.turns[:num_turns]
        parts: list[Sequence[int]] = []
        needed: int | None = None
        for turn in reversed(turns):
            own = turn.new_ids
            if needed is not None:
                own = own[: max(0, needed - turn.num_shared)]
            parts.append(own)
            needed = turn.num_shared if needed is None else min(needed, turn.num_shared)
        return [token_id for part in reversed(parts) for token_id in part]

    def match(self, messages: Sequence[Message]) -> tuple[int, int]:
        """Return how many turns messages begin with, and how many messages these are."""
        return match_turns(self.turns, messages)

    def recognize(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages of a client, those of the turns that they begin with as the turns
        have them: with the ids and the thoughts of the answers, which a client leaves out or spells
        in its own way. Calls keep the client's ids."""
        found: list[Message] = []
        for turn in self.turns:
            said = [*turn.messages, turn.reply]
            given = messages[len(found) : len(found) + len(said)]
            if len(given) < len(said) or not all(map(_says_the_same, given, said)):
                break
            found += [_with_ids_of_calls(own, its) for own, its in zip(said, given, strict=True)]
        return [*found, *messages[len(found) :]]

    def prompt(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        tools: Iterable[Tool | Mapping[str, Any]] = (),
    ) -> Prompt:
        """Encode a conversation, with the sampled ids of every answer that it still has.

        Raises ValueError for messages or tools that cannot be read.
        """
        read, known_tools = read_messages(messages), read_tools(tools)
        encoded = self.format.encode_history(
            self.with_ids(read),
            known_tools,
            tokenizer=self.tokenizer,
            keep_thoughts=self.keep_thoughts,
        )
        known = self.ids()
        num_shared = num_common(known, encoded.ids)
        num_reread = max(0, encoded.num_history_ids - num_shared) if known else 0
        reason = None
        if num_reread:
            is_dropped = encoded.num_dropped and self.match(read)[0] == len(self.turns)
            reason = _DROPPED if is_dropped else _CHANGED
        return Prompt(tuple(encoded.ids), num_reread, reason, encoded.num_straddling)

    def with_ids(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages, each answer that a turn has with the ids of that turn.

        An answer belongs to the turn at its place, or after answers were left out or put in, to a
        later one of the same question. So a turn that was changed costs only itself.
        """
        found: list[Message] = []
        place = 0
        asked: list[Message] = []
        for message in messages:
            if message.role != "assistant":
                asked.append(message)
                found.append(message)
                continue
            at = self._turn_of(asked, message, place)
            if at is not None:
                message = replace(message, sampled=self.turns[at].reply.sampled)
            place = place + 1 if at is None else at + 1
            asked = []
            found.append(message)
        return found

    def _turn_of(self, asked: Sequence[Message], answer: Message, place: int) -> int | None:
        """Find the turn of an answer: the one at its place, else one with the same question."""
        if place < len(self.turns) and self.turns[place].reply == answer:
            return place
        for index, turn in enumerate(self.turns):
            if turn.reply == answer and list(turn.messages) == list(asked):
                return index
        return None

    def add(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        completion: Completion,
        tools: Sequence[Tool | Mapping[str, Any]] = (),
    ) -> Turn:
        """Add the answer to messages, which are the whole conversation before it.

        It becomes the turn after the last one that messages continue; turns after that go. Raises
        ValueError, and changes nothing, for a turn that cannot be written as JSON.
        """
        read = read_messages(messages)
        count, start = self.match(read)
        before = self.ids(count)
        num_prefix = len(completion.prefix_ids)
        known = [*completion.prefix_logprobs[:num_prefix]]
        logprobs: list[float | None] = [*known, *[None] * (num_prefix - len(known))]
        logprobs += [token.logprob for token in completion.tokens]
        ids = [*completion.prompt_ids, *completion.answer_ids]
        num_answer = len(completion.answer_ids)
        num_shared = min(num_common(before, ids), len(ids) - num_answer)
        turn = Turn(
            messages=tuple(read[start:]),
            reply=completion.message,
            tools=tuple(dict(tool.given or tool.function) for tool in read_tools(tools)),
            num_shared=num_shared,
            new_ids=tuple(ids[num_shared:]),
            num_answer_ids=num_answer,
            logprobs=tuple(
                value if value is not None and math.isfinite(value) else None for value in logprobs
            ),
            forced=(
                *range(len(known), num_prefix),
                *(num_prefix + i for i, token in enumerate(completion.tokens) if token.is_forced),
            ),
            num_thinking_tokens=completion.usage.num_thinking_tokens,
            finish_reason=completion.finish_reason,
            params=completion.params,
            format=self.format.name,
        )
        try:
            json.dumps(turn.record(), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"the turn cannot be written as JSON: {error}") from None
        del self.turns[count:]
        self.turns.append(turn)
        self.num_kept = None
        return turn

    def add_history(self, messages: Sequence[Message]) -> None:
        """Add a conversation that was held elsewhere, a turn for each answer. Nothing of it was
        sampled here, so these turns have no ids: the next prompt renders them.

        messages  the last one is an answer

        Raises ValueError if it is not.
        """
        if messages and messages[-1].role != "assistant":
            raise ValueError(
                f"the last message is of the role {messages[-1].role}, it must be the assistant's"
            )
        asked: list[Message] = []
        for message in messages:
            if message.role != "assistant":
                asked.append(message)
                continue
            self.turns.append(
                Turn(
                    messages=tuple(asked),
                    reply=replace(message, sampled=None),
                    num_shared=0,
                    new_ids=(),
                    num_answer_ids=0,
                    logprobs=(),
                    finish_reason="stop",
                    params=SamplingParams(),
                    format=self.format.name,
                )
            )
            asked = []

    def rewind(self, num_turns: int, *, num_kept: int | None = None) -> None:
        """Go back to the first num_turns, or into the answer of the last of them after num_kept of
        its ids."""
        del self.turns[num_turns:]
        self.num_kept = num_kept


def match_turns(turns: Sequence[Turn], messages: Sequence[Message]) -> tuple[int, int]:
    """Return how many of some turns messages begin with, and how many messages these are."""
    start = count = 0
    for turn in turns:
        said = [*turn.messages, turn.reply]
        if list(messages[start : start + len(said)]) != said:
            break
        count, start = count + 1, start + len(said)
    return count, start


def _says_the_same(given: Message, own: Message) -> bool:
    """Return whether a client's message is one of a turn."""
    if given.role == own.role == "assistant":
        return read_answer([given]).digest == read_answer([own]).digest
    return replace(given, parts=None) == replace(own, parts=None)


def _with_ids_of_calls(own: Message, given: Message) -> Message:
    if not own.tool_calls or len(own.tool_calls) != len(given.tool_calls):
        return own
    calls = zip(own.tool_calls, given.tool_calls, strict=True)
    return replace(own, tool_calls=tuple(replace(call, id=its.id) for call, its in calls))


def read_turn(
    record: Mapping[str, Any],
    *,
    num_shared: int,
    new_ids: tuple[int, ...],
    num_answer_ids: int,
    format: ChatFormat | None = None,
    tokenizer: Tokenizer | None = None,
) -> Turn:
    """Read what `Turn.record` wrote, in this version or in 0.1.0. Only with format and tokenizer
    does the answer's message have its ids.

    Raises ValueError for a record that is no turn of a conversation.
    """
    try:
        (reply,) = read_messages([record["reply"]])
        params: dict[str, Any] = {
            _RENAMED.get(name, name): tuple(value) if isinstance(value, list) else value
            for name, value in record["params"].items()
        }
        answer_ids = new_ids[len(new_ids) - num_answer_ids :]
        logprobs = tuple(_read_logprob(value) for value in record["logprobs"])
        if len(logprobs) != num_answer_ids:
            raise ValueError(f"{num_answer_ids} ids have {len(logprobs)} log-probabilities")
        sampling = SamplingParams(**params)
        finish_reason = record["finish_reason"]
        if finish_reason not in get_args(FinishReason):
            raise ValueError(f"finish_reason is {shown(finish_reason)}")
        sampled = None
        if format is not None and tokenizer is not None and answer_ids:
            has_end = finish_reason == "stop"
            sampled = sampled_ids(format, tokenizer, answer_ids, sampling, has_end=has_end)
        return Turn(
            messages=tuple(read_messages(record["messages"])),
            reply=replace(reply, sampled=sampled),
            tools=tuple(dict(tool) for tool in record["tools"]),
            num_shared=num_shared,
            new_ids=new_ids,
            num_answer_ids=num_answer_ids,
            logprobs=logprobs,
            forced=tuple(int(place) for place in record.get("forced", ())),
            num_thinking_tokens=int(record.get("num_thinking_tokens", 0)),
            finish_reason=finish_reason,
            params=sampling,
            format=str(record.get("format", "")),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"it is no turn of a conversation: {error}") from None


def _read_logprob(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, float | int) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{reprlib.repr(value)} is no log-probability")
    return float(value)


def sampled_ids(
    format: ChatFormat,
    tokenizer: Tokenizer,
    answer_ids: Sequence[int],
    params: SamplingParams,
    *,
    has_end: bool,
) -> SampledIds:
    """Return the spans of an answer of which only the ids are known.

    has_end  whether the answer ended by itself: then its last id may be the end of the turn
    """
    ids = list(answer_ids)
    ends = {
        *tokenizer.eos_token_ids,
        *params.stop_token_ids,
        tokenizer.token_id(format.end_of_turn),
    }
    if has_end and ids and ids[-1] in ends:
        ids.pop()
    detokenizer, stop = tokenizer.detokenizer(), StopTexts(params.stop)
    pieces, length = [], 0
    for token_id in ids:
        pieces.append(detokenizer.feed([token_id]))
        length += len(stop.feed(pieces[-1]))
    return find_spans(format, ids, pieces, length=length if stop.is_found else None)


def find_spans(
    format: ChatFormat,
    ids: Sequence[int],
    pieces: Sequence[str],
    *,
    length: int | None = None,
) -> SampledIds:
    """Find which ids of an answer are its thought, its content and its calls.

    ids     the answer without the id that ended the turn
    pieces  the text that each id settled; bytes of an unfinished character settle with its last id
    length  characters before a stop text, if one ended the answer
    """
    ends = list(accumulate(map(len, pieces)))
    text = "".join(pieces)
    tail = ""
    if length is not None and length < len(text):
        count = bisect_right(ends, length)
        tail = text[ends[count - 1] if count else 0 : length]
        ids, pieces, ends, text = ids[:count], pieces[:count], ends[:count], text[:length]
    places = format.find_thoughts(text)

    def first_at(position: int) -> int:
        """Return the id that holds the character at a position."""
        index = bisect_right(ends, position)
        while index and not pieces[index - 1] and ends[index - 1] == position:
            index -= 1  # bytes of the character
        return index

    spans: list[Span] = []

    def add(kind: Any, begin: int, end: int) -> None:
        start = max(first_at(begin), spans[-1].stop if spans else 0)
        stop = first_at(end)
        if stop < len(ids) and (ends[stop - 1] if stop else 0) < end:
            stop += 1  # it holds the end of the span and more
        if stop > start:
            spans.append(Span(kind, start, stop))

    for place, end in zip(
        places, [*(later.opening for later in places[1:]), len(text)], strict=True
    ):
        add("thinking", place.start, place.stop)
        block = text.find(format.calls.block, place.answer, end) if format.calls else -1
        add("content", place.answer, block if block >= 0 else end)
        if block >= 0:
            add("tool_calls", block, end)
    place = places[0]
    answer_start, lead = first_at(place.answer), ""
    if answer_start < len(ids):
        begin = ends[answer_start - 1] if answer_start else 0
        if begin < place.answer:
            lead = text[place.answer : ends[answer_start]]
            answer_start += 1
    return SampledIds(
        tuple(ids),
        tuple(spans),
        answer_start,
        lead,
        is_thinking_closed=places[-1].is_closed,
        tail=tail,
        has_later_thoughts=len(places) > 1,
    )


def num_common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many ids two sequences begin with in common."""
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)
