"""Bodies of requests: JSON within bounds, read off the event loop where it takes long."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final, TypeVar

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from fulmen.chat import load_json
from fulmen.files import shorten
from fulmen.server.errors import Refusal
from fulmen.sessions import MAX_METADATA

T = TypeVar("T")
ListOf = Annotated[list[T], Field(fail_fast=True)]
"""List in a body. Reading it stops at the first wrong value: pydantic would keep a kilobyte for
each of millions."""


def _with_few_entries(given: object) -> object:
    if isinstance(given, dict) and len(given) > MAX_METADATA:
        raise PydanticCustomError("too_long", f"it may have {MAX_METADATA} entries")
    return given


Metadata = Annotated[
    dict[str, str], Field(max_length=MAX_METADATA), BeforeValidator(_with_few_entries)
]
"""Texts by name in a body. Too many are refused before they are looked at."""

_LONG_BODY_BYTES: Final = 2**18
"""Bodies longer than this are parsed outside the event loop."""
_MAX_CONTAINERS: Final = 1_000_000
"""Most lists and objects of a body: a bound on the memory they take"""


class _JsonRequest(Request):
    """A request whose body is JSON within bounds.

    Only what says that it is JSON is read: a web page can send other types to a server on this
    machine without asking.
    """

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            body = await self.body()
            is_long = len(body) > _LONG_BODY_BYTES
            self._json = await asyncio.to_thread(_parse, body) if is_long else _parse(body)
        return self._json


def _parse(body: bytes) -> Any:
    try:
        if body.count(b"[") + body.count(b"{") > _MAX_CONTAINERS:
            raise ValueError(f"it has more than {_MAX_CONTAINERS:,} lists and objects")
        return load_json(body.decode())
    except ValueError as error:
        # FastAPI passes on its own kind of error from here, and hides any other.
        raise HTTPException(400, f"the body cannot be read as JSON: {shorten(error)}") from None


class JsonRoute(APIRoute):
    """A route that reads its body as a `_JsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            kind = request.headers.get("content-type", "application/json").partition(";")[0]
            if request.method in ("POST", "PATCH") and kind.strip().lower() != "application/json":
                raise Refusal(
                    415, f"content-type is {shorten(kind, 80)}, it must be application/json"
                )
            response = await handle(_JsonRequest(request.scope, request.receive))
            response.headers.update(getattr(request.state, "reply_headers", {}))
            return response

        return handler
