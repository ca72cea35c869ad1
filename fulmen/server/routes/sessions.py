"""Sessions over HTTP: begin, list, show, fork, rewind, note, save, delete.

Answers are asked for where they always are: a request that names a session goes on with it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi import Query as QueryField
from pydantic import BaseModel, ConfigDict, Field

from fulmen.chat import Message
from fulmen.server.bodies import ListOf, Metadata
from fulmen.server.errors import Refusal
from fulmen.server.openapi import replying
from fulmen.server.replies import DeletedSession, SessionDetail, SessionList, SessionTokens
from fulmen.server.routes.api import Api, json_response, new_router, scope_of
from fulmen.server.service import Service
from fulmen.server.sessions import Held, Sessions, no_session, refusing
from fulmen.server.sessions_reply import (
    StoredAnswer,
    answer_of,
    check_turn,
    detail_of,
    page_of,
    state_of,
    token_objects,
)
from fulmen.server.streaming import unless_gone
from fulmen.sessions import check_metadata, quoted

_MAX_MESSAGES: Final = 5000
"""Most messages that a session is begun with"""


class ForkBody(BaseModel):
    """Body of a request for a second session with the same past."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(description="Name of the new session")
    turn: int | None = Field(None, ge=0, description="Turns that it has; all if omitted")
    metadata: Metadata | None = Field(
        None, description="Its metadata; that of the other one if omitted"
    )


class CreateBody(BaseModel):
    """Body of a request for a new session."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(description="Name of the session")
    metadata: Metadata = Field({}, description="Notes of whoever talks, such as a title")
    model: str = Field("", description="Model that it belongs to, the first one if omitted")
    messages: ListOf[dict[str, Any]] = Field(
        [],
        max_length=_MAX_MESSAGES,
        description="Conversation that was held elsewhere, up to an answer",
    )


class NoteBody(BaseModel):
    """Body of a change of a session's metadata."""

    model_config = ConfigDict(extra="forbid", strict=True)

    metadata: Metadata = Field(description="All of it: what is not here is gone")


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
        service = api.choose(request, body) if body.model else api.services[0]
        given = body.messages
        messages = await sessions.in_thread(lambda: _history(service, given) if given else ())

        def work(held: Held) -> Response:
            held.create(messages, metadata)
            return shown_idle(held)

        return await change(body.name, scope, work, service.name)

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
            await sessions.in_thread(
                lambda: page_of(sessions, scope, limit=limit, after=after, search=search)
            )
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
            return refusing(name, lambda: json_response(detail_of(sessions, name, scope)))

        return await sessions.in_thread(work)

    @router.get(
        "/v1/sessions/{name}/tokens",
        summary="Tokens of an answer, with the likeliest others at each place",
        responses=replying(SessionTokens, 404, 409, 429),
    )
    async def tokens(
        request: Request,
        name: str,
        turn: int = QueryField(ge=1, description="Number of the turn"),
        top: int = QueryField(0, ge=0, le=20, description="Others at each place"),
    ) -> Response:
        """Each has the log-probability that it was drawn with. The likeliest others are computed
        now: the answer is read as a prompt is."""
        scope = scope_of(request)
        name = await sessions.saved(name, scope)

        def work() -> tuple[StoredAnswer, str]:
            store = sessions.store(scope)
            check_turn(store, name, turn)
            owner = sessions.owner(store.state(name))
            return answer_of(sessions.llm(owner), store, name, turn), owner

        answer, owner = await sessions.in_thread(lambda: refusing(name, work))
        service, known = api.service(request, owner), answer.known_tokens()
        if known is None or (top and answer.ids):
            score = service.score(answer.prompt_ids, answer.ids, top, scope)
            known = await unless_gone(request, score)
        objects = partial(token_objects, known, answer, service.needed_tokenizer())
        return await sessions.in_thread(
            lambda: json_response({"object": "list", "data": objects()})
        )

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
            check_turn(store, name, body.turn)
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
        responses=replying(SessionDetail, 404),
    )
    async def note(request: Request, name: str, body: NoteBody) -> Response:
        """Its turns stay as they are, and an answer that runs in it goes on."""
        scope, metadata = scope_of(request), _metadata(body.metadata)
        name = sessions.checked_name(name)

        def work() -> Response:
            store = sessions.store(scope)
            state_of(store, name)
            store.note(name, metadata)
            return json_response(detail_of(sessions, name, scope))

        return await sessions.in_thread(lambda: refusing(name, work))

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
            check_turn(store, held.name, body.turn)
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
        return json_response(
            refusing(name, lambda: detail_of(sessions, name, scope, is_released=True))
        )

    async def change(
        name: str, scope: str, work: Callable[[Held], Response], model_name: str | None = None
    ) -> Response:
        """Change a session that nobody has meanwhile.

        model_name  model that it is begun with, if it is
        """
        held = await sessions.take(name, scope, model_name)
        try:
            answer = await held.run(lambda: refusing(held.name, lambda: work(held)), saves=True)
            sessions.forget(held.key)
            return answer
        finally:
            held.release()

    return router


def _history(service: Service, given: list[dict[str, Any]]) -> tuple[Message, ...]:
    """Read a conversation that was held elsewhere, or refuse it."""
    try:
        messages = service.read_history(given).messages
    except ValueError as error:
        raise Refusal(400, str(error), param="messages") from None
    if messages[-1].role != "assistant":
        raise Refusal(
            400,
            f"the last message is of the role {messages[-1].role}, a conversation that was held "
            "ends with the assistant's",
            param="messages",
        )
    return messages


def _metadata(given: dict[str, str]) -> dict[str, str]:
    """Return metadata that a client sent, or refuse it."""
    try:
        return check_metadata(given)
    except ValueError as error:
        raise Refusal(400, str(error), param="metadata") from None
