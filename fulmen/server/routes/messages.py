"""Anthropic's Messages over HTTP."""

import secrets

from fastapi import APIRouter, Request, Response

from fulmen.server.anthropic_messages import MessagesBody, read_messages_call
from fulmen.server.anthropic_reply import MessagesWriter
from fulmen.server.openapi import replying
from fulmen.server.replies import EndedThinking, InputTokens, MessagesEvent, MessagesReply
from fulmen.server.routes.api import Api, json_response, new_router, scope_of
from fulmen.server.streaming import read_ends, stream_response, unless_gone


def messages_router(api: Api) -> APIRouter:
    """Return the routes of Messages."""
    router = new_router()

    @router.post(
        "/v1/messages",
        summary="Anthropic's Messages",
        responses=replying(MessagesReply, 404, 409, 429, events=MessagesEvent),
    )
    async def messages(request: Request, body: MessagesBody) -> Response:
        service = api.choose(request, body)
        call = read_messages_call(body, service.defaults)
        answers = await api.start(request, service, call.ask, f"msg_{secrets.token_hex(12)}")
        writer = MessagesWriter(call, answers)
        if call.is_streamed:
            return stream_response(request, answers, writer, api.config)
        (end,) = await read_ends(request, answers)
        return json_response(writer.whole(end))

    @router.post(
        "/v1/messages/count_tokens",
        summary="Tokens of a Messages request",
        responses=replying(InputTokens, 404, 501),
    )
    async def count_tokens(request: Request, body: MessagesBody) -> Response:
        service = api.choose(request, body)
        call = read_messages_call(body, service.defaults)
        count = await unless_gone(request, service.count(call.ask, scope_of(request)))
        return json_response({"input_tokens": count})

    @router.post(
        "/v1/messages/{id}/end_thinking",
        summary="End the thought of a running answer",
        responses=replying(EndedThinking, 404, 501),
    )
    async def end_thinking(request: Request, id: str) -> Response:
        """The thought ends softly, as one whose budget is used up, and the answer begins."""
        return await api.end_thinking(request, id)

    return router
