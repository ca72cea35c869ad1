"""OpenAI's Responses over HTTP."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi import Query as QueryField

from fulmen.server.asking import End
from fulmen.server.background import Background
from fulmen.server.errors import Refusal
from fulmen.server.lists import page_of, place_after
from fulmen.server.openai_responses import ResponsesBody, ResponsesCall, read_responses_call
from fulmen.server.openapi import replying
from fulmen.server.replies import (
    DeletedResponse,
    InputItems,
    ResponseInputTokens,
    ResponseReply,
    ResponsesEvent,
)
from fulmen.server.responses_reply import ResponsesWriter
from fulmen.server.responses_store import ResponseStore
from fulmen.server.routes.api import Api, json_response, new_router, scope_of
from fulmen.server.service import Service
from fulmen.server.sse import frame
from fulmen.server.streaming import EventStream, read_ends, stream_response, unless_gone

_log = logging.getLogger(__name__)

_MOST_ITEMS: Final = 100
"""Items of an input that one page may have"""


def responses_router(api: Api, store: ResponseStore, background: Background) -> APIRouter:
    """Return the routes of Responses."""
    router = new_router()

    async def read(request: Request, service: Service, body: ResponsesBody) -> ResponsesCall:
        scope = scope_of(request)
        if not isinstance(body.input, str) and any(map(_is_reference, body.input)):
            body.input = await asyncio.to_thread(_resolved, body.input, store, scope)
        earlier: list[dict[str, Any]] = []
        if body.previous_response_id is not None:
            earlier = await asyncio.to_thread(store.history, body.previous_response_id, scope=scope)
        return read_responses_call(body, service.defaults, earlier)

    async def put(call: ResponsesCall, response: Mapping[str, Any], scope: str) -> bool:
        """Store a response; return whether it could be."""
        previous = call.body.previous_response_id
        try:
            await asyncio.to_thread(store.put, response, call.items, scope=scope, previous=previous)
        except OSError as error:
            _log.warning("response %s is not stored: %s", response["id"], error)
            return False
        return True

    @router.post(
        "/v1/responses",
        summary="OpenAI's Responses",
        responses=replying(ResponseReply, 404, 409, 429, 501, events=ResponsesEvent),
    )
    async def responses(request: Request, body: ResponsesBody) -> Response:
        service = api.choose(request, body)
        call = await read(request, service, body)
        if call.has_logprobs:
            service.needed_tokenizer()
        scope = scope_of(request)
        answers = await api.start(request, service, call.ask, f"resp_{secrets.token_hex(12)}")
        writer = ResponsesWriter(call, answers, service.tokenizer)
        if call.is_background:

            async def keep(response: Mapping[str, Any]) -> None:
                if not await put(call, response, scope):
                    raise Refusal(500, "the response cannot be stored, the server's log says why")

            response = await background.start(answers, writer, scope, keep)
            log = background.log(answers.id, scope)
            if call.is_streamed and log is not None:
                return EventStream(log.read(-1, ping_seconds=api.config.ping_seconds))
            return json_response(response)

        async def note(end: End) -> None:
            if call.is_stored:
                writer.is_stored = await put(call, writer.whole(end), scope)

        if call.is_streamed:
            return stream_response(request, answers, writer, api.config, note=note)
        (end,) = await read_ends(request, answers)
        await note(end)
        return json_response(writer.whole(end))

    @router.get(
        "/v1/responses/{id}",
        summary="A stored response",
        responses=replying(ResponseReply, 404, events=ResponsesEvent),
    )
    async def retrieve(
        request: Request,
        id: str,
        stream: bool = QueryField(False, description="Its events, from a background response on"),
        starting_after: int | None = QueryField(
            None, ge=0, description="Number of the last event that the client has; needs stream"
        ),
    ) -> Response:
        scope, is_running = scope_of(request), id in background.running
        stored = await asyncio.to_thread(store.get, id, scope=scope)
        response = _as_it_is(stored.response, is_running)
        if not stream:
            if starting_after is not None:
                raise Refusal(
                    400, "starting_after is given, it needs stream=true", param="starting_after"
                )
            return json_response(response)
        after = -1 if starting_after is None else starting_after
        log = background.log(id, scope)
        if log is None:  # of one that ended long ago only the end is known
            return EventStream(_last_event(response, after + 1))
        return EventStream(log.read(after, ping_seconds=api.config.ping_seconds))

    @router.delete(
        "/v1/responses/{id}",
        summary="Delete a stored response",
        responses=replying(DeletedResponse, 404),
    )
    async def delete(request: Request, id: str) -> Response:
        scope = scope_of(request)
        await background.stop(id, scope)
        background.forget(id, scope)
        await asyncio.to_thread(store.delete, id, scope=scope)
        return json_response({"id": id, "object": "response", "deleted": True})

    @router.post(
        "/v1/responses/{id}/cancel",
        summary="End a response that runs in the background",
        responses=replying(ResponseReply, 404),
    )
    async def cancel(request: Request, id: str) -> Response:
        scope = scope_of(request)
        stored = await asyncio.to_thread(store.get, id, scope=scope)
        if not stored.response.get("background"):
            raise Refusal(400, "only a response that runs in the background can be cancelled")
        await background.stop(id, scope)
        stored = await asyncio.to_thread(store.get, id, scope=scope)
        return json_response(_as_it_is(stored.response, is_running=False))

    @router.get(
        "/v1/responses/{id}/input_items",
        summary="Items that a response answered",
        responses=replying(InputItems, 404),
    )
    async def input_items(
        request: Request,
        id: str,
        limit: int = QueryField(20, ge=1, le=_MOST_ITEMS),
        order: str = QueryField("desc", pattern="^(asc|desc)$"),
        after: str | None = None,
    ) -> Response:
        stored = await asyncio.to_thread(store.get, id, scope=scope_of(request))
        earlier: list[dict[str, Any]] = []
        if stored.previous is not None:
            earlier = await asyncio.to_thread(
                store.history, stored.previous, scope=scope_of(request)
            )
        items = [_with_id(item, id, i) for i, item in enumerate([*earlier, *stored.items])]
        if order == "desc":
            items.reverse()
        first = place_after([item["id"] for item in items], after)
        page = items[first : first + limit]
        return json_response(page_of(page, has_more=first + limit < len(items)))

    @router.post(
        "/v1/responses/input_tokens",
        summary="Tokens of a Responses request",
        responses=replying(ResponseInputTokens, 404, 501),
    )
    async def input_tokens(request: Request, body: ResponsesBody) -> Response:
        service = api.choose(request, body)
        call = await read(request, service, body)
        count = await unless_gone(request, service.count(call.ask, scope_of(request)))
        return json_response({"object": "response.input_tokens", "input_tokens": count})

    return router


def _is_reference(item: Mapping[str, Any]) -> bool:
    return item.get("type") == "item_reference"


def _resolved(
    items: Sequence[Mapping[str, Any]], store: ResponseStore, scope: str
) -> list[dict[str, Any]]:
    """Return items with those in place that are named by their id."""
    return [
        store.item(str(item.get("id")), scope=scope) if _is_reference(item) else dict(item)
        for item in items
    ]


def _as_it_is(response: dict[str, Any], is_running: bool) -> dict[str, Any]:
    """Return a stored response; one that nobody worked on when it was read has failed."""
    if not is_running and response.get("status") in ("queued", "in_progress"):
        error = {"code": "server_error", "message": "the server stopped while the response ran"}
        return {**response, "status": "failed", "error": error}
    return response


async def _last_event(response: Mapping[str, Any], number: int) -> AsyncIterator[bytes]:
    """Yield the end of a response whose other events are not known any more."""
    status = response["status"]
    kind = f"response.{status if status in ('completed', 'failed') else 'incomplete'}"
    yield frame({"type": kind, "response": response, "sequence_number": number}, event=kind)


def _with_id(item: Mapping[str, Any], response_id: str, place: int) -> dict[str, Any]:
    kind = item.get("type", "message")
    own = {"id": f"{kind[:3]}_{response_id.rpartition('_')[2]}i{place:04d}", "type": kind, **item}
    if kind == "message" and isinstance(own.get("content"), str):
        is_output = own.get("role") == "assistant"
        own["content"] = [
            {"type": "output_text", "text": own["content"], "annotations": []}
            if is_output
            else {"type": "input_text", "text": own["content"]}
        ]
    return own
