"""Stored sessions as the JSON objects that their routes answer with.

    store -> state, turns -> page_of, detail_of -> SessionList, SessionDetail
                          -> answer_of -> scored -> token_objects -> SessionToken

All of it reads files, but for `token_objects`: it runs in a thread.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from fulmen.chat import Token, Tokenizer
from fulmen.llm import LLM
from fulmen.server.errors import Refusal
from fulmen.server.lists import place_after
from fulmen.server.openai_reply import logprob_fields
from fulmen.server.replies import (
    SessionDetail,
    SessionList,
    SessionObject,
    SessionToken,
    SessionTurn,
)
from fulmen.server.sessions import Sessions, no_session
from fulmen.sessions import SessionState, SessionStore, export, quoted, read_stored

Kind = Literal["thinking", "content", "tool_calls", "other"]
_SEARCH_SECONDS: Final = 2.0
"""Time for one page of a search; the next page goes on from there"""


def state_of(store: SessionStore, name: str) -> SessionState:
    """Read where a session stands. Raises a Refusal (404) if there is none."""
    if not store.has(name):
        raise no_session(name)
    return store.state(name)


def check_turn(store: SessionStore, name: str, turn: int | None) -> None:
    """Refuse a turn that a session does not have, and a session that is not there."""
    count = len(store.turns(state_of(store, name)))
    if turn is not None and turn > count:
        raise Refusal(
            400, f"turn is {turn}, session {quoted(name)} has {count} turns", param="turn"
        )


# ---- lists --------------------------------------------------------------------------------------


def page_of(
    sessions: Sessions, scope: str, *, limit: int, after: str | None, search: str | None
) -> SessionList:
    """Return a page of sessions, the last used first; of a search those that say a text.

    A search that takes long ends its page before the limit.
    """
    store = sessions.store(scope)
    names = store.names()
    first = place_after(names, after)
    wanted = (search or "").casefold()
    ends_at = time.monotonic() + _SEARCH_SECONDS
    data: list[SessionObject] = []
    last = None
    for name in names[first:]:
        if len(data) == limit or (wanted and last and time.monotonic() > ends_at):
            break
        last = name
        try:
            state = store.state(name)
            if not wanted or _says(store, state, wanted):
                data.append(_head(sessions, state, scope))
        except ValueError:
            if not wanted:
                data.append(_unreadable(name))
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": last,
        "has_more": last is not None and last != names[-1],
    }


def _says(store: SessionStore, state: SessionState, wanted: str) -> bool:
    """Return whether a session's metadata or a message of it has a text in it."""
    if any(wanted in value.casefold() for value in state.metadata.values()):
        return True
    return any(
        wanted in (message.content or "").casefold()
        for turn in map(read_stored, store.turns(state))
        for message in (*turn.messages, turn.reply)
    )


def _unreadable(name: str) -> SessionObject:
    return {
        "id": name,
        "object": "session",
        "status": "unreadable",
        "model": None,
        "served_as": None,
        "created_at": None,
        "last_used_at": None,
        "metadata": {},
    }


def _head(sessions: Sessions, state: SessionState, scope: str) -> SessionObject:
    return {
        "id": state.name,
        "object": "session",
        "status": sessions.status(state.name, scope),
        "model": state.model,
        "served_as": sessions.served_as(state),
        "created_at": int(state.created),
        "last_used_at": int(state.used or state.created),
        "metadata": dict(state.metadata),
    }


# ---- one session --------------------------------------------------------------------------------


def detail_of(
    sessions: Sessions, name: str, scope: str, *, is_released: bool = False
) -> SessionDetail:
    """Return a session with its messages. Raises a Refusal (404) if there is none.

    is_released  it is idle once this is sent, though it is held now
    """
    store = sessions.store(scope)
    state, turns = state_of(store, name), list[SessionTurn]()
    stored = store.turns(state)
    for number, turn in enumerate(stored, 1):
        read = read_stored(turn)
        num_kept = state.num_kept if number == len(stored) else None
        turns.append(
            {
                "id": turn.hash,
                "parent": turn.parent,
                "number": number,
                "num_messages": len(read.messages) + (num_kept is None),
                "tokens": turn.num_tokens,
                "answer_tokens": turn.num_answer if num_kept is None else num_kept,
                "thinking_tokens": read.num_thinking_tokens,
                "stored_tokens": turn.num_known,
                "finish_reason": read.finish_reason,
            }
        )
    head = _head(sessions, state, scope)
    running = None if is_released else sessions.running(name, scope)
    return {
        **head,
        "status": "idle" if is_released else head["status"],
        "response_id": None if running is None else running.id,
        "asked": [] if running is None else [message.to_dict() for message in running.asked],
        "tokens": len(store.ids_of(state)),
        "state_bytes": store.chunk_bytes(state),
        "turns": turns,
        "messages": export(store, name),
    }


# ---- tokens -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """The answer of a stored turn, as ids."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    """Log-probability that each id was drawn with; None where it is not known"""
    forced: frozenset[int]
    """Places of ids that were given, not drawn"""
    kinds: tuple[Kind, ...]
    """Kind of text that each id is part of"""

    def known_tokens(self) -> tuple[Token, ...] | None:
        """Return the ids with their log-probabilities, if all are known."""
        pairs = zip(self.ids, self.logprobs, strict=True)
        known = [Token(token_id, value) for token_id, value in pairs if value is not None]
        return tuple(known) if len(known) == len(self.ids) else None


def answer_of(llm: LLM, store: SessionStore, name: str, number: int) -> StoredAnswer:
    """Read the answer of a turn of a session with a model; number is 1 for the first."""
    stored = store.turns(store.state(name))[number - 1]
    turn = read_stored(stored, llm)
    ids = store.ids(stored)
    kinds: list[Kind] = ["other"] * turn.num_answer_ids
    for span in turn.reply.sampled.spans if turn.reply.sampled is not None else ():
        for place in range(span.start, min(span.stop, len(kinds))):
            kinds[place] = span.kind
    return StoredAnswer(
        prompt_ids=tuple(ids[: len(ids) - turn.num_answer_ids]),
        ids=turn.answer_ids,
        logprobs=turn.logprobs,
        forced=frozenset(turn.forced),
        kinds=tuple(kinds),
    )


def token_objects(
    scored: Sequence[Token], answer: StoredAnswer, tokenizer: Tokenizer
) -> list[SessionToken]:
    """Return the tokens of an answer with their texts, each with the log-probability that it was
    drawn with, where that is known."""
    texts = logprob_fields(scored, tokenizer)
    return [
        {
            "id": token.token_id,
            "text": fields["token"],
            "logprob": fields["logprob"] if drawn_at is None else drawn_at,
            "kind": answer.kinds[place],
            "is_forced": place in answer.forced,
            "top": [
                {"id": token_id, "text": other["token"], "logprob": other["logprob"]}
                for (token_id, _), other in zip(
                    token.top_logprobs, fields["top_logprobs"], strict=True
                )
            ],
        }
        for place, (token, fields, drawn_at) in enumerate(
            zip(scored, texts, answer.logprobs, strict=True)
        )
    ]
