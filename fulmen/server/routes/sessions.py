"""Sessions over HTTP: list, show, fork, rewind, save, delete.

Answers are asked for where they always are: a request that names a session goes on with it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi import Query as QueryField
from pydantic import BaseModel, ConfigDict, Field

from fulmen.chat import Token, Tokenizer, read_history
from fulmen.sampling import shown
from fulmen.server.bodies import ListOf
from fulmen.server.errors import Refusal
from fulmen.server.openai_reply import logprob_fields
from fulmen.server.openapi import replying
from fulmen.server.replies import (
    DeletedSession,
    SessionDetail,
    SessionList,
    SessionObject,
    SessionToken,
    SessionTokens,
    SessionTurn,
)
from fulmen.server.routes.api import Api, json_response, new_router, scope_of
from fulmen.server.sessions import Held, Sessions, Status, no_session, refusing
from fulmen.server.streaming import unless_gone
from fulmen.sessions import SessionState, SessionStore, check_metadata, quoted, read_stored

_SEARCH_SECONDS: Final = 2.0
"""Time for one page of a search; the next page goes on from there"""


class ForkBody(BaseModel):
    """Body of a request for a second session with the same past."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(description="Name of the new session")
    turn: int | None = Field(None, ge=0, description="Turns that it has; all if omitted")
    metadata: dict[str, str] | None = Field(
        None, description="Its metadata; that of the other one if omitted"
    )


class CreateBody(BaseModel):
    """Body of a request for a new session."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(description="Name of the session")
    metadata: dict[str, str] = Field({}, description="Notes of whoever talks, such as a title")
    messages: ListOf[dict[str, Any]] = Field(
        [], description="Conversation that was held elsewhere, up to an answer"
    )


class NoteBody(BaseModel):
    """Body of a change of a session's metadata."""

    model_config = ConfigDict(extra="forbid", strict=True)

    metadata: dict[str, str] = Field(description="All of it: what is not here is gone")


class RewindBody(BaseModel):
    """Body of a request to go back."""

    model_config = ConfigDict(extra="forbid", strict=True)

    turn: int = Field(ge=0, description="Turns that stay")


def sessions_router(api: Api, sessions: Sessions) -> APIRouter:
    """Return the routes of sessions."""
    router = new_router()

    @router.post(
        "/v1/sessions",
        summary="Begin a session, empty or with a conversation that was held elsewhere",
        responses=replying(SessionDetail, 404, 409),
    )
    async def create(request: Request, body: CreateBody) -> Response:
        scope, metadata = scope_of(request), _metadata(body.metadata)
        try:
            messages = read_history(body.messages).messages if body.messages else ()
        except ValueError as error:
            raise Refusal(400, str(error), param="messages") from None
        held = await sessions.take(body.name, scope)
        try:
            await held.run(lambda: held.create(messages, metadata))
            return await held.run(lambda: shown_idle(held))
        finally:
            held.release()

    @router.get(
        "/v1/sessions",
        summary="Sessions, the last used first",
        responses=replying(SessionList, 404),
    )
    async def list_sessions(
        request: Request,
        limit: int = QueryField(20, ge=1, le=100),
        after: str | None = QueryField(None, description="Session that the page comes after"),
        search: str | None = QueryField(
            None, max_length=200, description="Only those that say this, in metadata or messages"
        ),
    ) -> Response:
        sessions.checked_name("any")
        scope = scope_of(request)
        return json_response(
            await sessions.in_thread(lambda: _page(sessions, scope, limit, after, search or ""))
        )

    @router.get(
        "/v1/sessions/{name}",
        summary="A session with its messages",
        responses=replying(SessionDetail, 404),
    )
    async def show(request: Request, name: str) -> Response:
        scope = scope_of(request)
        name = await sessions.saved(name, scope)

        def work() -> Response:
            return refusing(name, lambda: json_response(_detail(sessions, name, scope)))

        return await sessions.in_thread(work)

    @router.get(
        "/v1/sessions/{name}/tokens",
        summary="Tokens of an answer, with the likeliest others at each place",
        responses=replying(SessionTokens, 404, 429),
    )
    async def tokens(
        request: Request,
        name: str,
        turn: int = QueryField(ge=1, description="Number of the turn"),
        top: int = QueryField(0, ge=0, le=20, description="Others at each place"),
    ) -> Response:
        """They are computed now, with the bits that they were sampled with."""
        scope = scope_of(request)
        name = await sessions.saved(name, scope)

        def work() -> _Answer:
            store = sessions.store(scope)
            _check_turn(store, name, turn)
            return refusing(name, lambda: _answer_of(sessions, store, name, turn))

        answer = await sessions.in_thread(work)
        scored = await unless_gone(
            request, api.service.score(answer.prompt_ids, answer.ids, top, scope)
        )
        data = _token_objects(scored, answer, api.tokenizer())
        return json_response({"object": "list", "data": data})

    @router.post(
        "/v1/sessions/{name}/fork",
        summary="Begin a second session with the same past",
        responses=replying(SessionDetail, 404, 409),
    )
    async def fork(request: Request, name: str, body: ForkBody) -> Response:
        scope = scope_of(request)
        name = await sessions.saved(name, scope)

        metadata = None if body.metadata is None else _metadata(body.metadata)

        def work(held: Held) -> Response:
            store = sessions.store(scope)
            _check_turn(store, name, body.turn)
            if store.has(held.name):
                raise Refusal(409, f"there is a session {quoted(held.name)} already", param="name")
            held.check_free_place()
            store.fork(name, held.name, num_turns=body.turn)
            if metadata is not None:
                store.note(held.name, metadata)
            return shown_idle(held)

        return await change(body.name, scope, work)

    @router.patch(
        "/v1/sessions/{name}",
        summary="Give a session other metadata",
        responses=replying(SessionDetail, 404, 409),
    )
    async def note(request: Request, name: str, body: NoteBody) -> Response:
        """Its turns stay as they are."""
        scope, metadata = scope_of(request), _metadata(body.metadata)

        def work(held: Held) -> Response:
            _state(sessions.store(scope), held.name)
            held.lock()
            sessions.store(scope).note(held.name, metadata)
            return shown_idle(held)

        return await change(name, scope, work)

    @router.post(
        "/v1/sessions/{name}/rewind",
        summary="Go back to the end of a turn",
        responses=replying(SessionDetail, 404, 409),
    )
    async def rewind(request: Request, name: str, body: RewindBody) -> Response:
        """Turns after it stay in other sessions that have them."""
        scope = scope_of(request)

        def work(held: Held) -> Response:
            store = sessions.store(scope)
            _check_turn(store, held.name, body.turn)
            held.lock()
            store.rewind(held.name, num_turns=body.turn)
            return shown_idle(held)

        return await change(name, scope, work)

    @router.post(
        "/v1/sessions/{name}/save",
        summary="Wait until a session is on disk",
        responses=replying(SessionDetail, 404, 409),
    )
    async def save(request: Request, name: str) -> Response:
        """Answers are saved without being asked. This returns once they are, and tries again where
        it failed."""
        scope = scope_of(request)
        held = await sessions.take(name, scope)
        try:
            await held.run(held.write)
            return await held.run(lambda: shown_idle(held))
        finally:
            held.release()

    @router.delete(
        "/v1/sessions/{name}",
        summary="Delete a session",
        responses=replying(DeletedSession, 404, 409),
    )
    async def delete(request: Request, name: str) -> Response:
        """Turns that other sessions share with it stay."""
        scope = scope_of(request)

        def work(held: Held) -> Response:
            store = sessions.store(scope)
            if not store.has(held.name):
                raise no_session(held.name)
            held.lock()
            store.remove(held.name)
            return json_response({"id": held.name, "object": "session", "deleted": True})

        return await change(name, scope, work)

    def shown_idle(held: Held) -> Response:
        """Show a session that is released at once."""
        scope, name = held.key
        return refusing(name, lambda: json_response(_detail(sessions, name, scope, status="idle")))

    async def change(name: str, scope: str, work: Callable[[Held], Response]) -> Response:
        """Change a session that nobody has meanwhile."""
        held = await sessions.take(name, scope)
        try:
            sessions.forget(held.key)
            return await held.run(lambda: refusing(held.name, lambda: work(held)))
        finally:
            held.release()

    return router


def _page(
    sessions: Sessions, scope: str, limit: int, after: str | None, search: str
) -> SessionList:
    store = sessions.store(scope)
    names = store.names()
    if after is not None and after not in names:
        raise Refusal(400, f"after is {shown(after)}, no session has that name", param="after")
    first = 0 if after is None else names.index(after) + 1
    data: list[SessionObject] = []
    ends_at = time.monotonic() + _SEARCH_SECONDS
    has_more, last = False, after
    for name in names[first:]:
        has_more = len(data) == limit or bool(search and time.monotonic() > ends_at)
        if has_more:
            break
        last = name
        try:
            state = store.state(name)
            if not search or _says(store, state, search.casefold()):
                data.append(_head(sessions, state, scope))
        except ValueError:
            if not search:
                data.append(_unreadable(name))
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": last,  # of a search the last one that was looked at
        "has_more": has_more,
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
        "created_at": int(state.created),
        "last_used_at": int(state.used or state.created),
        "metadata": dict(state.metadata),
    }


def _detail(
    sessions: Sessions, name: str, scope: str, status: Status | None = None
) -> SessionDetail:
    """Return a session with its messages; status, if it is known."""
    store = sessions.store(scope)
    state, turns, messages = _state(store, name), list[SessionTurn](), list[dict[str, Any]]()
    for number, turn in enumerate(store.turns(state), 1):
        read = read_stored(turn)
        messages += [message.to_dict() for message in (*read.messages, read.reply)]
        turns.append(
            {
                "id": turn.hash,
                "parent": turn.parent,
                "number": number,
                "num_messages": len(read.messages) + 1,
                "tokens": turn.num_tokens,
                "answer_tokens": turn.num_answer,
                "stored_tokens": turn.num_known,
                "finish_reason": read.finish_reason,
            }
        )
    head = _head(sessions, state, scope)
    running = None if status == "idle" else sessions.running(name, scope)
    return {
        **head,
        "status": status or head["status"],
        "response_id": None if running is None else running.id,
        "asked": [] if running is None else [message.to_dict() for message in running.asked],
        "tokens": len(store.ids_of(state)),
        "state_bytes": store.chunk_bytes(state),
        "turns": turns,
        "messages": messages,
    }


@dataclass(frozen=True, slots=True)
class _Answer:
    """A stored answer, as ids."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    forced: frozenset[int]
    """Places of ids that were given, not drawn"""
    kinds: tuple[str, ...]
    """Kind of text that each id is part of"""


def _answer_of(sessions: Sessions, store: SessionStore, name: str, number: int) -> _Answer:
    stored = store.turns(store.state(name))[number - 1]
    turn = read_stored(stored, sessions.llm)
    ids = store.ids(stored)
    kinds = ["other"] * turn.num_answer_ids
    for span in turn.reply.sampled.spans if turn.reply.sampled is not None else ():
        for place in range(span.start, min(span.stop, len(kinds))):
            kinds[place] = span.kind
    prompt_ids = tuple(ids[: len(ids) - turn.num_answer_ids])
    return _Answer(prompt_ids, turn.answer_ids, frozenset(turn.forced), tuple(kinds))


def _token_objects(
    scored: Sequence[Token], answer: _Answer, tokenizer: Tokenizer
) -> list[SessionToken]:
    texts = logprob_fields(scored, tokenizer)
    return [
        {
            "id": token.token_id,
            "text": fields["token"],
            "logprob": fields["logprob"],
            "kind": answer.kinds[place],
            "is_forced": place in answer.forced,
            "top": [
                {"id": token_id, "text": other["token"], "logprob": other["logprob"]}
                for (token_id, _), other in zip(
                    token.top_logprobs, fields["top_logprobs"], strict=True
                )
            ],
        }
        for place, (token, fields) in enumerate(zip(scored, texts, strict=True))
    ]


def _metadata(given: dict[str, str]) -> dict[str, str]:
    """Return metadata that a client sent, or refuse it."""
    try:
        return check_metadata(given)
    except ValueError as error:
        raise Refusal(400, str(error), param="metadata") from None


def _state(store: SessionStore, name: str) -> SessionState:
    if not store.has(name):
        raise no_session(name)
    return store.state(name)


def _check_turn(store: SessionStore, name: str, turn: int | None) -> None:
    """Refuse a turn that a session does not have, and a session that is not there."""
    count = len(store.turns(_state(store, name)))
    if turn is not None and turn > count:
        raise Refusal(
            400,
            f"turn is {turn}, session {quoted(name)} has {count} turns",
            param="turn",
        )
