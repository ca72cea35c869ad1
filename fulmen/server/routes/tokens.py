"""Tokens over HTTP, as vLLM and SGLang tell them: text to ids and back, and the tokenizer."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi import Query as QueryField
from pydantic import BaseModel, ConfigDict, Field

from fulmen.server.asking import Ask
from fulmen.server.bodies import ListOf
from fulmen.server.errors import Refusal
from fulmen.server.openai_chat import ChatBody, read_chat
from fulmen.server.openapi import replying
from fulmen.server.requests import ChatMessageIn, ChatToolIn, Shape, TemplateIn
from fulmen.server.routes.api import Api, json_response, new_router, scope_of
from fulmen.server.streaming import unless_gone


class TokenizeBody(BaseModel):
    """Body of a request for the tokens of a text or of a conversation."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(
        "", description="Name of a model; any other is the first one's, unless the server is strict"
    )
    prompt: str | None = Field(None, description="A text, as it stands")
    messages: ListOf[Annotated[dict[str, Any], Shape(ChatMessageIn)]] | None = Field(
        None, description="A conversation, in place of a text: tokens of its prompt"
    )
    tools: ListOf[Annotated[dict[str, Any], Shape(ChatToolIn)]] | None = None
    add_special_tokens: bool | None = Field(
        None,
        description="false: do not add what the tokenizer puts around a text, such as a BOS token. "
        "A conversation has all that its format writes, and nothing is added to it",
    )
    add_generation_prompt: bool | None = Field(
        None, description="false: leave out the beginning of the answer"
    )
    continue_final_message: bool | None = Field(
        None, description="The last message is the beginning of the answer"
    )
    chat_template_kwargs: Annotated[dict[str, Any], Shape(TemplateIn)] | None = Field(
        None, description="keep_thoughts"
    )
    return_token_strs: bool | None = Field(
        None, description="Add each token as the vocabulary spells it"
    )


class TokenizeReply(BaseModel):
    """Tokens of a text."""

    count: int
    max_model_len: int | None = Field(description="Tokens that prompt and answer may have")
    tokens: list[int]
    token_strs: list[str | None] | None


class DetokenizeBody(BaseModel):
    """Body of a request for the text of tokens."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(
        "", description="Name of a model; any other is the first one's, unless the server is strict"
    )
    tokens: ListOf[int] = Field(description="Ids of tokens")


class DetokenizeReply(BaseModel):
    """Text of tokens, special tokens included."""

    prompt: str


class TokenizerInfo(BaseModel):
    """The tokenizer, as its tokenizer_config.json would tell it."""

    model_config = ConfigDict(extra="allow")

    tokenizer_class: str
    chat_template: str | None = Field(description="The checkpoint's own jinja template, if known")
    model_max_length: int | None
    vocab_size: int
    bos_token: str | None
    eos_token: str | None


def tokens_router(api: Api) -> APIRouter:
    """Return the routes of tokens. They stand at the root, where vLLM has them."""
    router = new_router()

    @router.post("/v1/tokenize", include_in_schema=False)  # SGLang's
    @router.post(
        "/tokenize",
        summary="Tokens of a text or a conversation",
        responses=replying(TokenizeReply, 404, 501),
    )
    async def tokenize(request: Request, body: TokenizeBody) -> Response:
        service = api.choose(request, body)
        tokenizer = service.needed_tokenizer()
        if body.messages is not None:
            ask = _conversation(body, service.defaults)
            ids: Sequence[int] = await unless_gone(
                request, service.prompt_ids(ask, scope_of(request))
            )
        else:
            ids = await asyncio.to_thread(_encode, body, tokenizer)
        return await asyncio.to_thread(_tokens, ids, body, tokenizer, service.max_model_len)

    @router.post("/v1/detokenize", include_in_schema=False)
    @router.post(
        "/detokenize", summary="Text of tokens", responses=replying(DetokenizeReply, 404, 501)
    )
    async def detokenize(request: Request, body: DetokenizeBody) -> Response:
        service = api.choose(request, body)
        tokenizer = service.needed_tokenizer()
        ids = service.checked_ids(body.tokens, "tokens")
        return json_response({"prompt": await asyncio.to_thread(tokenizer.decode, ids)})

    @router.get(
        "/tokenizer_info",
        summary="The tokenizer: its special tokens and the chat template",
        responses=replying(TokenizerInfo, 404, 501),
    )
    async def tokenizer_info(
        request: Request,
        model: str = QueryField("", description="Name of the model, the first one if omitted"),
    ) -> Response:
        service = api.find(model) if model else api.services[0]
        tokenizer, format = service.needed_tokenizer(), service.model.format
        ends = [tokenizer.token(id) for id in tokenizer.eos_token_ids]
        info = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": format.template,
            "model_max_length": service.max_model_len,
            "vocab_size": tokenizer.vocab_size,
            "bos_token": None,
            "eos_token": next((end for end in ends if end), format.end_of_turn or None),
        }
        return json_response(info | tokenizer.special_tokens)

    return router


def _conversation(body: TokenizeBody, defaults: Any) -> Ask:
    """Return what Chat Completions would answer, as a request that is only looked at."""
    if body.prompt is not None:
        raise Refusal(400, "prompt and messages are given, only one of them can be")
    names = {"model", "messages", "tools", "continue_final_message", "chat_template_kwargs"}
    chat = ChatBody.model_validate(body.model_dump(include=names))
    ask = read_chat(chat, defaults).ask
    if body.add_generation_prompt is False and not body.continue_final_message:
        return replace(ask, adds_generation_prompt=False)
    return ask


def _encode(body: TokenizeBody, tokenizer: Any) -> tuple[int, ...]:
    if body.prompt is None:
        raise Refusal(400, "the request has neither prompt nor messages, it must have one of them")
    for name in ("tools", "chat_template_kwargs"):
        if getattr(body, name):
            raise Refusal(400, f"{name} are given with prompt, but only messages can have them")
    adds = body.add_special_tokens is not False
    return tuple(tokenizer.encode(body.prompt, add_special_tokens=adds))


def _tokens(
    ids: Sequence[int], body: TokenizeBody, tokenizer: Any, max_model_len: int | None
) -> Response:
    return json_response(
        {
            "count": len(ids),
            "max_model_len": max_model_len,
            "tokens": list(ids),
            "token_strs": [tokenizer.token(id) for id in ids] if body.return_token_strs else None,
        }
    )
