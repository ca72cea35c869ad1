"""A log of answers, found again in whatever history a client sends.

    history -> runs of assistant messages -> the surest sign that finds a logged turn -> Found

A turn is used if its canonical answer (`canonical.py`) is what the client shows. Then the history
has the ids it was sampled as, and its thought. An answer that was edited is left as it is and
rendered; the turns after it still match. `turn_search.py` finds turns, `turn_rows.py` keeps their
rows, `turn_payload.py` writes and reads one.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from secrets import token_bytes
from typing import Literal

from fulmen.chat.canonical import Answer, read_answer, read_contexts
from fulmen.chat.canonical_calls import CallForms
from fulmen.chat.format import ChatFormat
from fulmen.chat.mending import whole_text
from fulmen.chat.messages import Message, Tool
from fulmen.chat.model import Completion
from fulmen.chat.tokenizer import Tokenizer
from fulmen.chat.turn_payload import LoggedTurn, pack_turn, unpack_turn
from fulmen.chat.turn_rows import Row, TurnRows
from fulmen.chat.turn_search import Keys, Match, Sign, TurnSearch
from fulmen.sampling import check_whole

State = Literal["matched", "restored", "rendered"]


@dataclass(frozen=True, slots=True)
class FoundTurn:
    """Outcome of the search for one assistant message of a history."""

    index: int
    """Index of the message in the history"""
    state: State
    """restored: a thought that the prompt shows was put back; rendered: edited, or not ours"""
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
        self._rows = TurnRows(file, max_bytes=max_bytes, max_age_seconds=max_age_seconds, now=now)

    def find(
        self,
        history: Sequence[Message],
        *,
        scope: str,
        format: ChatFormat,
        tools: Iterable[Tool] = (),
        keep_thoughts: bool = False,
    ) -> Found:
        """Return a history with the sampled ids and the thought of every answer that is logged.

        tools          those of the request: a call may have their defaults or not
        keep_thoughts  the prompt will show the thoughts that the template drops
        """
        forms = CallForms(tools)
        runs, _ = read_contexts(history, forms)
        matches = TurnSearch(self._rows, Keys(scope, self._vocabulary), runs).matches()
        payloads = self._rows.payloads([match.row.id for match in matches.values()])
        messages: list[Message] = []
        found: list[tuple[int, int, Match | None, bool]] = []
        index = 0
        while index < len(history):
            message, length, is_other = history[index], 1, False
            match = matches.get(index)
            if match is not None:
                turn = self._unpack(match.row, payloads)
                given = history[index : index + match.length]
                put_back = None if turn is None else _put_back(turn, match, given, format, forms)
                if turn is None or put_back is None:
                    match = None
                else:
                    message, length = put_back, match.length
                    is_other = not match.is_weak and _is_other_thought(turn, match.answer)
            if message.role == "assistant":
                found += [(index + i, len(messages), match, is_other) for i in range(length)]
            messages.append(message)
            index += length
        shows = format.shows_thoughts(messages, keep_thoughts=keep_thoughts)
        turns: list[FoundTurn] = []
        for at, place, match, is_other in found:
            if match is None:
                turns.append(FoundTurn(at, "rendered"))
            else:
                state: State = "restored" if is_other and shows[place] else "matched"
                turns.append(FoundTurn(at, state, match.by, match.row.turn_id))
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
        tools: Iterable[Tool] = (),
    ) -> None:
        """Log an answer.

        history     messages before the answer, as `find` returned them or as they were read
        shown       the answer as the client was sent it, with the ids of its calls
        signatures  signatures that the client was sent for its thought
        tools       those of the request

        Left out is what cannot come back: an answer that failed, one that was cut inside a call
        (its ids end there, and the client has no whole call), one without ids, and one that is
        larger than the log. An answer that was aborted is logged as far as it came, and one that
        the model itself ended inside a call as it is.
        Raises ValueError for a turn that cannot be written as JSON.
        """
        sampled = completion.sampled
        if sampled is None or completion.finish_reason == "error" or _is_cut_in_call(completion):
            return
        payload = pack_turn(completion, sampled)
        if payload is None or len(payload) > self._max_bytes:
            return
        keys = Keys(scope, self._vocabulary)
        forms = CallForms(tools)
        runs, context = read_contexts(history, forms)
        answer = read_answer([shown], forms)
        call_ids = [call.id for call in shown.tool_calls]
        body = blake2b(repr(sampled.ids).encode(), digest_size=16)
        body.update((completion.message.thinking or "").encode("utf-8", "surrogatepass"))
        self._rows.add(
            list(keys.of_turn(answer, context, call_ids, signatures)),
            payload,
            owner=keys.owner,
            answer=answer.digest,
            conversation=TurnSearch(self._rows, keys, runs).conversation() or token_bytes(8),
            body=body.digest(),
            turn_id=whole_text(turn_id),
        )

    def read(self, turn_id: str, *, scope: str) -> LoggedTurn | None:
        """Return a logged turn by its id, or None."""
        owner = Keys(scope, self._vocabulary).owner
        row = self._rows.by_turn_id(whole_text(turn_id), owner)
        return None if row is None else self._unpack(row, self._rows.payloads([row.id]))

    def close(self) -> None:
        """Close the file."""
        self._rows.close()

    def _unpack(self, row: Row, payloads: Mapping[int, bytes]) -> LoggedTurn | None:
        """Return a turn; None if it has just gone."""
        if row.id not in payloads:
            return None
        try:
            return unpack_turn(row.turn_id, payloads[row.id])
        except ValueError as error:
            raise ValueError(f"{self._rows.name} has a broken turn, remove it: {error}") from None


def _is_cut_in_call(completion: Completion) -> bool:
    """Return whether an answer ended inside a call, and not because the model ended its turn."""
    is_ended = completion.finish_reason == "stop" and completion.stop_text is None
    return completion.reply.is_call_open and not is_ended


def _put_back(
    turn: LoggedTurn,
    match: Match,
    messages: Sequence[Message],
    format: ChatFormat,
    forms: CallForms,
) -> Message | None:
    """Return a client's answer with its ids and its thought; None where they cannot stand."""
    logged = turn.message
    given = tuple(call for one in messages for call in one.tool_calls)
    calls = tuple(
        replace(own, id=call.id) for own, call in zip(logged.tool_calls, given, strict=False)
    )
    own = read_answer([replace(logged, thinking=None)], forms)
    if own.digest != match.answer.digest:  # the client was shown another text than was parsed
        logged, calls = replace(logged, content=match.answer.content), given
    logged = replace(logged, tool_calls=calls)
    if not match.is_weak:
        return logged
    # The thought is the client's own: none may come in the ids.
    sampled = logged.sampled
    if sampled is None or sampled.has_later_thoughts or own.thinking:
        return None
    if format.thinking is None:
        return logged
    thinking = match.answer.thinking or None
    return replace(logged, thinking=thinking, sampled=sampled.without_thought())


def _is_other_thought(turn: LoggedTurn, answer: Answer) -> bool:
    """Return whether the client showed another thought than the one that was logged."""
    logged = whole_text(turn.message.thinking or "").strip()
    return bool(logged) and whole_text(answer.thinking).strip() != logged
