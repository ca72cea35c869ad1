"""The application: routes, and the life of a request.

    socket -> limits (size, time, key) -> route -> dialect reads -> Service.answer
           -> updates -> dialect writes -> socket

A request that cannot be answered is refused with a status as long as nothing was sent, and with an
error event in the dialect's words after that. A client that goes away ends its answers within a
step of the engine.
"""

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from fulmen import __version__
from fulmen.chat import ChatModel
from fulmen.files import shorten
from fulmen.sampling import shown
from fulmen.server.answers import Answers
from fulmen.server.anthropic_messages import MessagesBody, read_messages_call
from fulmen.server.anthropic_reply import MessagesWriter
from fulmen.server.asking import Ask
from fulmen.server.bodies import JsonRoute
from fulmen.server.config import ServerConfig
from fulmen.server.errors import Refusal, dialect_of, refusal_of
from fulmen.server.keys import Keys
from fulmen.server.limits import Places, with_limits
from fulmen.server.logs import RequestLog
from fulmen.server.metrics import Metrics
from fulmen.server.models import model_object
from fulmen.server.openai_chat import ChatBody, read_chat
from fulmen.server.openai_reply import ChatWriter
from fulmen.server.service import Service
from fulmen.server.sse import to_json
from fulmen.server.streaming import (
    ClientGoneError,
    read_ends,
    request_id,
    stream_response,
    unless_gone,
)


class ControlBody(BaseModel):
    """Body of a request about a running answer (llama.cpp's)."""

    id: str = Field(description="Id of a running answer, as its first chunk has it")
    action: Literal["reasoning_end"]


def create_app(model: ChatModel, config: ServerConfig | None = None) -> FastAPI:
    """Return the application that serves a model.

    A `ServedModel` such as `LocalModel` can do all of it; what another `ChatModel` cannot do (count
    tokens, say) is answered with 501. The model stays open when the application ends.

    Raises ValueError for a log file that cannot be used.
    """
    config = config or ServerConfig()
    metrics = Metrics(model, config.model_name)
    places = Places(model, config)
    service = Service(model, config, metrics, places)
    requests = RequestLog(config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.is_ready = False
        service.close()

    app = FastAPI(
        title="Fulmen",
        version=__version__,
        description="OpenAI's Chat Completions and Anthropic's Messages.",
        lifespan=lifespan,
        strict_content_type=False,
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
        responses={"4XX": {"description": "A refusal, in the dialect's own shape"}},
    )
    app.router.route_class = JsonRoute
    app.state.is_ready = True
    app.state.service = service
    app.state.metrics = metrics
    with_limits(app, config, Keys(config.api_keys), metrics, requests)

    # ---- the two dialects

    @app.post("/v1/chat/completions", summary="OpenAI's Chat Completions")
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        body.model = _checked_name(body.model, config)
        call = read_chat(body, service.defaults)
        _check_ids(call.has_token_ids or call.has_logprobs or call.ask.prompt_ids, service)
        answers = await _start(request, service, call.ask, f"chatcmpl-{secrets.token_hex(12)}")
        writer = ChatWriter(call, answers, service.tokenizer)
        if call.is_streamed:
            return stream_response(request, answers, writer, config, finish=writer.finish)
        return _json(writer.whole(await read_ends(request, answers)))

    @app.post("/v1/chat/completions/control", summary="End the thought of a running answer")
    async def control(request: Request, body: ControlBody) -> Response:
        """The thought ends softly, as one whose budget is used up, and the answer begins."""
        return await _end_thinking(request, service, body.id)

    @app.post("/v1/messages", summary="Anthropic's Messages")
    async def messages(request: Request, body: MessagesBody) -> Response:
        body.model = _checked_name(body.model, config)
        call = read_messages_call(body, service.defaults)
        answers = await _start(request, service, call.ask, f"msg_{secrets.token_hex(12)}")
        writer = MessagesWriter(call, answers)
        if call.is_streamed:
            return stream_response(request, answers, writer, config)
        (end,) = await read_ends(request, answers)
        return _json(writer.whole(end))

    @app.post("/v1/messages/count_tokens", summary="Tokens of a Messages request")
    async def count_tokens(request: Request, body: MessagesBody) -> Response:
        body.model = _checked_name(body.model, config)
        call = read_messages_call(body, service.defaults)
        count = await unless_gone(request, service.count(call.ask, _scope(request)))
        return _json({"input_tokens": count})

    @app.post("/v1/messages/{id}/end_thinking", summary="End the thought of a running answer")
    async def end_thinking(request: Request, id: str) -> Response:
        """The thought ends softly, as one whose budget is used up, and the answer begins."""
        return await _end_thinking(request, service, id)

    # ---- models, health

    started = int(time.time())

    @app.get("/v1/models", summary="Models, in a form that both SDKs read")
    async def models() -> Response:
        data = [model_object(name, service, started) for name in config.names]
        return _json(
            {
                "object": "list",
                "data": data,
                "has_more": False,
                "first_id": data[0]["id"],
                "last_id": data[-1]["id"],
            }
        )

    @app.get("/v1/models/{name:path}", summary="One model")
    async def one_model(name: str) -> Response:
        if config.strict_model_names:
            _checked_name(name, config)
        return _json(model_object(name, service, started))

    @app.get("/health", summary="The process lives")
    async def health() -> Response:
        return _json({"status": "ok"})

    @app.get("/ready", summary="Requests are answered")
    async def ready() -> Response:
        if not app.state.is_ready:
            raise Refusal(503, "the server is starting or stopping", retry_after=1)
        return _json({"status": "ready"})

    @app.get("/metrics", summary="Counters for Prometheus")
    async def read_metrics() -> Response:
        text, content_type = metrics.text()
        return Response(text, media_type=content_type)

    @app.get("/version", summary="Version of the server")
    async def version() -> Response:
        return _json({"version": __version__})

    @app.get("/", include_in_schema=False)
    @app.get("/api/hello", include_in_schema=False)
    async def hello() -> Response:
        return _json({"name": "fulmen", "version": __version__, "models": list(config.names)})

    _answer_errors(app, metrics)
    return app


# ---- refusals -----------------------------------------------------------------------------------


def _answer_errors(app: FastAPI, metrics: Metrics) -> None:
    """Make every failure a refusal in the dialect of its path."""

    def refused(request: Request, refusal: Refusal) -> Response:
        metrics.rejected(refusal.status)
        return _refused(request, refusal)

    async def refuse(request: Request, error: Exception) -> Response:
        return refused(request, refusal_of(error))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return refused(request, _invalid(error))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        sentences = {
            404: f"no route {shorten(request.url.path, 80)}",
            405: f"{request.method} is not allowed here",
        }
        sentence = sentences.get(error.status_code, shorten(error.detail))
        answer = refused(request, Refusal(error.status_code, sentence))
        answer.headers.update(error.headers or {})
        return answer

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(Refusal, refuse)
    app.add_exception_handler(ValueError, refuse)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(StarletteHTTPException, http)
    app.add_exception_handler(ClientGoneError, gone)
    app.add_exception_handler(Exception, refuse)


def _refused(request: Request, refusal: Refusal) -> Response:
    dialect = dialect_of(request.url.path, request.headers)
    return Response(
        to_json(refusal.body(dialect, request_id(request))),
        status_code=refusal.status,
        headers=refusal.headers,
        media_type="application/json",
    )


def _invalid(error: RequestValidationError) -> Refusal:
    """Return the first thing that pydantic found, as one sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:] if not isinstance(part, int))
    index = next((part for part in first["loc"] if isinstance(part, int)), None)
    if index is not None and len(first["loc"]) > 2:
        place = f"{first['loc'][1]}[{index}]"
    if first["type"] == "missing" and not place:
        return Refusal(400, "the request has no body, it must be a JSON object")
    message = str(first["msg"]).replace("Input should be", "it must be")
    return Refusal(
        400,
        f"{shorten(place, 80) or 'the body'} is {shown(first.get('input'))}, {message[:200]}",
        param=str(first["loc"][1]) if len(first["loc"]) > 1 else None,
    )


def _checked_name(name: str, config: ServerConfig) -> str:
    """Return the name that the reply has: the one asked for, or else the model's own."""
    if config.strict_model_names and name not in config.names:
        raise Refusal(
            404,
            f"the model {shown(name)} is not served here, {', '.join(config.names)} is",
            param="model",
            code="model_not_found",
        )
    return name or config.model_name


def _check_ids(wanted: object, service: Service) -> None:
    if wanted and service.tokenizer is None:
        raise Refusal(501, "this model does not tell its tokens")


# ---- answers ------------------------------------------------------------------------------------


def _scope(request: Request) -> str:
    return str(getattr(request.state, "scope", ""))


async def _start(request: Request, service: Service, ask: Ask, id: str) -> Answers:
    answers = await unless_gone(request, service.answer(ask, _scope(request), id))
    request.state.answers = answers  # for the log's line
    return answers


async def _end_thinking(request: Request, service: Service, id: str) -> Response:
    return _json({"id": id, "ended": await service.end_thinking(id, _scope(request))})


def _json(value: object) -> Response:
    return Response(to_json(value), media_type="application/json")
