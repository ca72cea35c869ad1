"""Usage of the server by the key that asks."""

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from fulmen.server.openapi import replying
from fulmen.server.routes.api import Api, json_response, new_router, scope_of


class UsageCounts(BaseModel):
    """Use within the last minute."""

    requests: int
    tokens: int


class UsageLimits(BaseModel):
    """Limits of a key; null where there is none."""

    max_running: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None


class UsageReply(BaseModel):
    """Use of the server by a key since the server's start."""

    object: str
    key: str
    since: int
    requests: int
    refused_requests: int
    running: int
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    thinking_tokens: int
    last_minute: UsageCounts
    limits: UsageLimits


def usage_router(api: Api) -> APIRouter:
    """Return the route of usage."""
    router, usages = new_router(), api.usages

    @router.get(
        "/v1/usage",
        summary="Use of the server by the key that asks, since the start",
        responses=replying(UsageReply),
    )
    async def usage(request: Request) -> Response:
        return json_response({"since": usages.since, **usages.of(scope_of(request)).to_dict()})

    return router
