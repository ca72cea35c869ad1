"""OpenAI's Chat Completions over HTTP."""

import secrets
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from fulmen.server.openai_chat import ChatBody, read_chat
from fulmen.server.openai_reply import ChatWriter
from fulmen.server.openapi import replying
from fulmen.server.replies import ChatEvent, ChatReply, EndedThinking
from fulmen.server.routes.api import Api, json_response, new_router
from fulmen.server.streaming import read_ends, stream_response


class ControlBody(BaseModel):
    """Body of a request about a running answer (llama.cpp's)."""

    id: str = Field(description="Id of a running answer, as its first chunk has it")
    action: Literal["reasoning_end"]


def chat_router(api: Api) -> APIRouter:
    """Return the routes of Chat Completions."""
    router = new_router()

    @router.post(
        "/v1/chat/completions",
        summary="OpenAI's Chat Completions",
        responses=replying(ChatReply, 404, 409, 429, 501, events=ChatEvent, ends_with_done=True),
    )
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        service = api.choose(request, body)
        call = read_chat(body, service.defaults)
        if call.has_token_ids or call.has_logprobs or call.ask.prompt_ids:
            service.needed_tokenizer()
        answers = await api.start(request, service, call.ask, f"chatcmpl-{secrets.token_hex(12)}")
        writer = ChatWriter(call, answers, service.tokenizer)
        if call.is_streamed:
            return stream_response(request, answers, writer, api.config, finish=writer.finish)
        return json_response(writer.whole(await read_ends(request, answers)))

    @router.post(
        "/v1/chat/completions/control",
        summary="End the thought of a running answer",
        responses=replying(EndedThinking, 404, 501),
    )
    async def control(request: Request, body: ControlBody) -> Response:
        """The thought ends softly, as one whose budget is used up, and the answer begins."""
        return await api.end_thinking(request, body.id)

    return router
