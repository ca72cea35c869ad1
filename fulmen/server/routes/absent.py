"""Routes of other servers that this one has not: it continues text, and says so in one sentence."""

from collections.abc import Callable
from typing import Final

from fastapi import APIRouter, Response

from fulmen.server.errors import Refusal

ABSENT: Final = {
    "/v1/embeddings": "makes no embeddings",
    "/v1/rerank": "ranks no documents",
    "/v1/score": "scores no pairs of texts",
    "/v1/classify": "classifies no texts",
    "/v1/moderations": "judges no texts",
    "/v1/audio/{path:path}": "neither hears nor speaks",
    "/v1/images/{path:path}": "makes no pictures",
}
"""Paths, and what would be asked of a model there"""
NO_BATCHES: Final = ("/v1/batches", "/v1/messages/batches", "/v1/files")
"""Paths of batches, which are looked at with GET too"""


def absent_router() -> APIRouter:
    """Return routes that answer 501: a client learns that trying again is of no use."""
    router = APIRouter()
    for path, lacks in ABSENT.items():
        router.post(path, include_in_schema=False)(_refuse(lacks))
    for path in NO_BATCHES:
        refuse = _refuse("takes no batches, `fulmen batch` answers a file of requests")
        router.get(path, include_in_schema=False)(refuse)
        router.post(path, include_in_schema=False)(refuse)
    return router


def _refuse(lacks: str) -> Callable[[], Response]:
    def refuse() -> Response:
        raise Refusal(501, f"this server generates text and {lacks}")

    return refuse
