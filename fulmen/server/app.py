"""The application: routes, and the life of a request.

    socket -> limits (size, time, key) -> route -> dialect reads -> Service.answer
           -> updates -> dialect writes -> socket

A request that cannot be answered is refused with a status as long as nothing was sent, and with an
error event in the dialect's words after that. A client that goes away ends its answers within a
step of the engine.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from fulmen import __version__
from fulmen.chat import ChatModel
from fulmen.files import shorten
from fulmen.sampling import shown
from fulmen.server.background import Background
from fulmen.server.config import ServerConfig
from fulmen.server.drain import Drain
from fulmen.server.errors import Refusal, dialect_of, refusal_of
from fulmen.server.keys import Keys
from fulmen.server.limits import with_limits
from fulmen.server.logs import RequestLog
from fulmen.server.metrics import Metrics
from fulmen.server.openapi import describe
from fulmen.server.places import Places
from fulmen.server.responses_store import ResponseStore
from fulmen.server.routes import (
    Api,
    absent_router,
    chat_router,
    completions_router,
    health_router,
    messages_router,
    models_router,
    page_router,
    responses_router,
    sessions_router,
    tokens_router,
    usage_router,
)
from fulmen.server.service import Service
from fulmen.server.sessions import Sessions
from fulmen.server.sse import to_json
from fulmen.server.streaming import ClientGoneError, request_id
from fulmen.server.traces import Traces, open_traces
from fulmen.server.usage import Usages

_MEMORY_BYTES: Final = 64 * 2**20
"""Most memory for the responses of one API key, where no file keeps them"""


def create_app(
    model: ChatModel | Mapping[str, ChatModel],
    config: ServerConfig | None = None,
    *,
    traces: Traces | None = None,
) -> FastAPI:
    """Return the application that serves a model, or several.

    A `ServedModel` such as `LocalModel` can do all of it; what another `ChatModel` cannot do (count
    tokens, say) is answered with 501. The models stay open when the application ends.

    model   one, which is listed under the settings' model_name; or several by their names, of which
            the first answers to names that none has
    traces  those of `open_traces`; else those that the settings ask for

    Raises ValueError for a log file that cannot be used, and for aliases that fit no model.
    """
    config = config or ServerConfig()
    models = model if isinstance(model, Mapping) else {config.model_name: model}
    if not models:
        raise ValueError("no model is given, a server needs one or more")
    configs = config.of_models(tuple(models))
    traces = traces or open_traces(config)
    metrics = Metrics(models)
    keys = Keys(config.api_keys, config.keys)
    usages = Usages(keys, models)
    metrics.add(usages)
    sessions = Sessions(models, config)
    services = [
        Service(served, own, metrics.of(name), Places(served, own), usages, sessions)
        for (name, served), own in zip(models.items(), configs, strict=True)
    ]
    requests = RequestLog(config)
    in_memory = config.transcripts is None
    responses = ResponseStore(
        config.transcripts and config.transcripts.with_name("responses.sqlite3"),
        max_bytes=min(config.transcript_bytes, _MEMORY_BYTES if in_memory else 2**62),
        max_age_seconds=config.transcript_days * 86400,
    )
    drain = Drain()
    background = Background(drain, timeout_seconds=config.request_timeout_seconds)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.is_ready = False
        await background.close()
        await sessions.close()
        responses.close()
        for service in services:
            service.close()
        if traces is not None:
            await traces.close()

    app = FastAPI(
        title="Fulmen",
        version=__version__,
        description="OpenAI's Chat Completions and Responses, and Anthropic's Messages.",
        lifespan=lifespan,
        strict_content_type=False,
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.is_ready = True
    app.state.metrics = metrics
    with_limits(app, config, keys, metrics, requests, drain, traces)

    api = Api(services, usages, config)
    app.include_router(chat_router(api))
    app.include_router(completions_router(api))
    app.include_router(responses_router(api, responses, background))
    app.include_router(messages_router(api))
    app.include_router(models_router(api))
    app.include_router(health_router(api, metrics))
    app.include_router(tokens_router(api))
    app.include_router(usage_router(api))
    app.include_router(sessions_router(api, sessions))
    app.include_router(page_router(api))
    app.include_router(absent_router())

    describe(app, has_keys=bool(keys))
    _answer_errors(app, metrics)
    return app


# ---- refusals -----------------------------------------------------------------------------------


def _answer_errors(app: FastAPI, metrics: Metrics) -> None:
    """Make every failure a refusal in the dialect of its path."""

    def refused(request: Request, refusal: Refusal) -> Response:
        metrics.rejected(refusal.status, getattr(request.state, "model_name", None))
        return _refused(request, refusal)

    async def refuse(request: Request, error: Exception) -> Response:
        return refused(request, refusal_of(error))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return refused(request, _invalid(error))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        is_no_route = error.status_code == 404
        sentence = f"no route {shorten(request.url.path, 80)}" if is_no_route else error.detail
        answer = refused(request, Refusal(error.status_code, shorten(sentence)))
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
    if first["type"] == "missing":
        return Refusal(400, f"{shorten(place, 80)} is missing", param=str(first["loc"][1]))
    message = str(first["msg"]).replace("Input should be", "it must be")
    return Refusal(
        400,
        f"{shorten(place, 80) or 'the body'} is {shown(first.get('input'))}, {message[:200]}",
        param=str(first["loc"][1]) if len(first["loc"]) > 1 else None,
    )
