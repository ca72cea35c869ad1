"""Needs that all routes share: the model's name, the start of an answer, and JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from fastapi import APIRouter, Request, Response

from fulmen.sampling import shown
from fulmen.server.answers import Answers
from fulmen.server.asking import Ask
from fulmen.server.bodies import JsonRoute
from fulmen.server.config import ServerConfig
from fulmen.server.errors import Refusal
from fulmen.server.service import Service
from fulmen.server.sse import to_json
from fulmen.server.streaming import unless_gone

SESSION_HEADER: Final = "fulmen-session"


class Api:
    """The service behind the routes, and the settings they follow."""

    def __init__(self, service: Service, config: ServerConfig) -> None:
        self.service = service
        self.config = config

    def name(self, asked: str) -> str:
        """Return the name that a reply has: the one asked for, or else the model's own.

        Raises a Refusal (404) for another name, where the server is strict about them.
        """
        config = self.config
        if config.strict_model_names and asked not in config.names:
            raise Refusal(
                404,
                f"the model {shown(asked)} is not served here, {', '.join(config.names)} is",
                param="model",
                code="model_not_found",
            )
        return asked or config.model_name

    def tokenizer(self) -> Any:
        """Return the model's tokenizer. Raises a Refusal (501) for a model that has none."""
        if self.service.tokenizer is None:
            raise Refusal(501, "this model does not tell its tokens")
        return self.service.tokenizer

    async def start(self, request: Request, ask: Ask, id: str) -> Answers:
        """Start the answers to a request, unless its client goes away first."""
        ask = replace(ask, session=session_of(request, ask.session))
        answers = await unless_gone(request, self.service.answer(ask, scope_of(request), id))
        request.state.answers = answers  # for the log's line
        if ask.session is not None:
            request.state.reply_headers = {SESSION_HEADER: quote(ask.session)}
        return answers

    async def end_thinking(self, request: Request, id: str) -> Response:
        """End the thought of a running answer, and tell whether one ran."""
        ended = await self.service.end_thinking(id, scope_of(request))
        return json_response({"id": id, "ended": ended})


def new_router() -> APIRouter:
    """Return a router that reads bodies within bounds."""
    return APIRouter(route_class=JsonRoute)


def scope_of(request: Request) -> str:
    """Return the scope of the key that a request was sent with."""
    return str(getattr(request.state, "scope", ""))


def session_of(request: Request, given: str | None) -> str | None:
    """Return the session that a request names, in its header or its body; None for none.

    given  the name in its body

    Raises a Refusal for two names. A header has a name in UTF-8, percent-encoded or as it is.
    """
    names = set() if given is None else {given}
    for value in request.headers.getlist(SESSION_HEADER):
        try:
            names.add(unquote_to_bytes(value.encode("latin-1")).decode())
        except UnicodeError:
            raise Refusal(
                400, f"{SESSION_HEADER} is {shown(value)}, it must be UTF-8, percent-encoded"
            ) from None
    if len(names) > 1:
        listed = " and ".join(shown(name) for name in sorted(names)[:2])
        raise Refusal(
            400, f"the request names {listed} as its session, it can have one", param="session"
        )
    return next(iter(names), None)


def place_after(ids: Sequence[str], after: str | None) -> int:
    """Return where a page of a list begins. Raises a Refusal for an id that is not in it."""
    if after is None:
        return 0
    if after not in ids:
        raise Refusal(400, f"after is {shown(after)}, it must be an id of the list", param="after")
    return ids.index(after) + 1


def page_of(page: Sequence[Mapping[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Return a page of a list as OpenAI has it."""
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": has_more,
    }


def json_response(value: object, *, status: int = 200) -> Response:
    """Return a value as JSON."""
    return Response(to_json(value), status_code=status, media_type="application/json")
