"""The models and their names, health, counters and version over HTTP."""

import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from fulmen import __version__
from fulmen.server.errors import Refusal
from fulmen.server.metrics import Metrics
from fulmen.server.models import card_of, model_object
from fulmen.server.openapi import replying
from fulmen.server.replies import Health, ModelList, ModelObject, Readiness, Version
from fulmen.server.routes.api import Api, json_response, new_router
from fulmen.server.service import Service


def models_router(api: Api) -> APIRouter:
    """Return the routes that tell which models are served, under which names."""
    router, started = new_router(), int(time.time())
    cards = {service.name: card_of(service) for service in api.services}

    def described(name: str, service: Service) -> dict[str, Any]:
        return model_object(name, service, started=started, card=cards[service.name])

    @router.get(
        "/v1/models",
        summary="Models, in a form that both SDKs read",
        responses=replying(ModelList),
    )
    async def models() -> Response:
        data = [
            described(name, service) for service in api.services for name in service.config.names
        ]
        return json_response(
            {
                "object": "list",
                "data": data,
                "has_more": False,
                "first_id": data[0]["id"],
                "last_id": data[-1]["id"],
            }
        )

    @router.get("/v1/models/{name:path}", summary="One model", responses=replying(ModelObject, 404))
    async def one_model(name: str) -> Response:
        return json_response(described(name, api.find(name)))

    return router


def health_router(api: Api, metrics: Metrics) -> APIRouter:
    """Return the routes that tell how the server is. `app.state.is_ready` says if it answers."""
    router = new_router()

    @router.get("/health", summary="The process lives", responses=replying(Health))
    async def health() -> Response:
        return json_response({"status": "ok"})

    @router.get("/ready", summary="Requests are answered", responses=replying(Readiness))
    async def ready(request: Request) -> Response:
        if not request.app.state.is_ready:
            raise Refusal(503, "the server is starting or stopping", retry_after=1)
        return json_response({"status": "ready"})

    @router.get("/metrics", summary="Counters for Prometheus", response_class=PlainTextResponse)
    async def read_metrics() -> Response:
        text, content_type = metrics.text()
        return Response(text, media_type=content_type)

    @router.get("/version", summary="Version of the server", responses=replying(Version))
    async def version() -> Response:
        return json_response({"version": __version__})

    return router
