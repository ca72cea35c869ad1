"""OpenAI's Completions over HTTP."""

import secrets

from fastapi import APIRouter, Request, Response

from fulmen.server.completions_reply import CompletionsWriter
from fulmen.server.openai_completions import CompletionsBody, read_completions
from fulmen.server.openapi import replying
from fulmen.server.replies import CompletionsEvent, CompletionsReply
from fulmen.server.routes.api import Api, json_response, new_router
from fulmen.server.streaming import read_ends, stream_response


def completions_router(api: Api) -> APIRouter:
    """Return the route of Completions."""
    router = new_router()

    @router.post(
        "/v1/completions",
        summary="OpenAI's Completions: text continued as it stands",
        responses=replying(
            CompletionsReply, 404, 429, 501, events=CompletionsEvent, ends_with_done=True
        ),
    )
    async def completions(request: Request, body: CompletionsBody) -> Response:
        service = api.choose(request, body)
        call = read_completions(body, service.defaults)
        has_ids = any(not isinstance(text, str) for text in call.ask.texts)
        if call.has_token_ids or call.has_logprobs or has_ids:
            service.needed_tokenizer()
        answers = await api.start(request, service, call.ask, f"cmpl-{secrets.token_hex(12)}")
        writer = CompletionsWriter(call, answers, service.tokenizer)
        if call.is_streamed:
            return stream_response(request, answers, writer, api.config, finish=writer.finish)
        return json_response(writer.whole(await read_ends(request, answers)))

    return router
