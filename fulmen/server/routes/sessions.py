"""Sessions over HTTP: list, show, fork, rewind, save, delete.

Answers are asked for where they always are: a request that names a session goes on with it.
"""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi import Query as QueryField
from pydantic import BaseModel, ConfigDict, Field

from fulmen.server.errors import Refusal
from fulmen.server.openapi import replying
from fulmen.server.replies import (
    DeletedSession,
    SessionDetail,
    SessionList,
    SessionObject,
    SessionTurn,
)
from fulmen.server.routes.api import (
    json_response,
    new_router,
    page_of,
    place_after,
    scope_of,
)
from fulmen.server.sessions import Held, Sessions, Status, no_session, refusing
from fulmen.sessions import SessionState, SessionStore, export, quoted, read_stored


class ForkBody(BaseModel):
    """Body of a request for a second session with the same past."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(description="Name of the new session")
    turn: int | None = Field(None, ge=0, description="Turns that it has; all if omitted")


class RewindBody(BaseModel):
    """Body of a request to go back."""

    model_config = ConfigDict(extra="forbid", strict=True)

    turn: int = Field(ge=0, description="Turns that stay")


def sessions_router(sessions: Sessions) -> APIRouter:
    """Return the routes of sessions."""
    router = new_router()

    @router.get(
        "/v1/sessions",
        summary="Sessions, the last used first",
        responses=replying(SessionList, 404),
    )
    async def list_sessions(
        request: Request,
        limit: int = QueryField(20, ge=1, le=100),
        after: str | None = QueryField(None, description="Session that the page comes after"),
    ) -> Response:
        sessions.checked_name("any")
        scope = scope_of(request)
        return json_response(await sessions.in_thread(lambda: _page(sessions, scope, limit, after)))

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

    @router.post(
        "/v1/sessions/{name}/fork",
        summary="Begin a second session with the same past",
        responses=replying(SessionDetail, 404, 409),
    )
    async def fork(request: Request, name: str, body: ForkBody) -> Response:
        scope = scope_of(request)
        name = await sessions.saved(name, scope)

        def work(held: Held) -> Response:
            store = sessions.store(scope)
            _check_turn(store, name, body.turn)
            if store.has(held.name):
                raise Refusal(409, f"there is a session {quoted(held.name)} already", param="name")
            held.check_free_place()
            store.fork(name, held.name, num_turns=body.turn)
            return shown_idle(held)

        return await change(body.name, scope, work)

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
            await held.run(held.write, saves=True)
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
            answer = await held.run(lambda: refusing(held.name, lambda: work(held)), saves=True)
            sessions.forget(held.key)
            return answer
        finally:
            held.release()

    return router


def _page(sessions: Sessions, scope: str, limit: int, after: str | None) -> dict[str, Any]:
    store = sessions.store(scope)
    names = store.names()
    first = place_after(names, after)
    data: list[SessionObject] = []
    for name in names[first : first + limit]:
        try:
            data.append(_head(sessions, store.state(name), scope))
        except ValueError:
            data.append(
                {
                    "id": name,
                    "object": "session",
                    "status": "unreadable",
                    "model": None,
                    "created_at": None,
                    "last_used_at": None,
                }
            )
    return page_of(data, has_more=first + limit < len(names))


def _head(sessions: Sessions, state: SessionState, scope: str) -> SessionObject:
    return {
        "id": state.name,
        "object": "session",
        "status": sessions.status(state.name, scope),
        "model": state.model,
        "created_at": int(state.created),
        "last_used_at": int(state.used or state.created),
    }


def _detail(
    sessions: Sessions, name: str, scope: str, status: Status | None = None
) -> SessionDetail:
    """Return a session with its messages; status, if it is known."""
    store = sessions.store(scope)
    state, turns = _state(store, name), list[SessionTurn]()
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
                "stored_tokens": turn.num_known,
                "finish_reason": read.finish_reason,
            }
        )
    head = _head(sessions, state, scope)
    return {
        **head,
        "status": status or head["status"],
        "tokens": len(store.ids_of(state)),
        "state_bytes": store.chunk_bytes(state),
        "turns": turns,
        "messages": export(store, name),
    }


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
