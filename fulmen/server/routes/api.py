"""Needs that all routes share: the model of a name, the start of an answer, and JSON."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol
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
from fulmen.server.usage import Usages

SESSION_HEADER: Final = "fulmen-session"


class NamesModel(Protocol):
    """A request's body that names a model."""

    model: str


class Api:
    """The models behind the routes, and the settings they follow."""

    def __init__(self, services: Sequence[Service], usages: Usages, config: ServerConfig) -> None:
        """services: one for each model; the first answers to names that none has"""
        self.services = services
        self.usages = usages
        self.config = config
        self._of_name = {
            name: service for service in reversed(services) for name in service.config.names
        }

    @property
    def names(self) -> tuple[str, ...]:
        """All names that models are listed under, those of the first model first."""
        return tuple(name for service in self.services for name in service.config.names)

    def find(self, asked: str) -> Service:
        """Return the model of a name, or else the first one.

        Raises a Refusal (404) for a name that none has, where the server is strict about them.
        """
        service = self._of_name.get(asked)
        if service is None and self.config.strict_model_names:
            verb = "is" if len(self.services) == 1 else "are"
            raise Refusal(
                404,
                f"the model {shown(asked)} is not served here, {', '.join(self.names)} {verb}",
                param="model",
                code="model_not_found",
            )
        return service or self.services[0]

    def service(self, request: Request, asked: str) -> Service:
        """Return the model that a request names, and count the request as one for it. Raises a
        Refusal as `find`."""
        service = self.find(asked)
        request.state.model_name = service.name  # for the counters
        return service

    def choose(self, request: Request, body: NamesModel) -> Service:
        """Return the model that a body names; one that names none gets the name of the first, which
        a reply has then. Raises a Refusal as `find`."""
        service = self.service(request, body.model)
        body.model = body.model or service.name
        return service

    async def start(self, request: Request, service: Service, ask: Ask, id: str) -> Answers:
        """Start the answers to a request, unless its client goes away first."""
        ask = replace(ask, session=session_of(request, ask.session))
        answers = await unless_gone(request, service.answer(ask, scope_of(request), id))
        request.state.answers = answers  # for the log's line
        if ask.session is not None:
            request.state.reply_headers = {SESSION_HEADER: quote(ask.session)}
        return answers

    async def end_thinking(self, request: Request, id: str) -> Response:
        """End the thoughts of a running answer softly, and tell whether one ran. Raises a Refusal
        for an answer that this caller does not have running."""
        found = (service.running(id, scope_of(request)) for service in self.services)
        answers = next(filter(None, found), None)
        if answers is None:
            raise Refusal(404, f"no answer with the id {id[:80]!r} is running")
        return json_response({"id": id, "ended": await answers.end_thinking()})


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


def json_response(value: object, *, status: int = 200) -> Response:
    """Return a value as JSON."""
    return Response(to_json(value), status_code=status, media_type="application/json")
