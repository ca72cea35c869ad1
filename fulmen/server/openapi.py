"""The published description, `/openapi.json`: how each route may answer.

    shapes in replies/ -> `replying` at each route -> `describe` adds what holds for all of them

A route names the statuses of its own. What the limits around the routes refuse, `describe` puts at
every route, each in the shape of the path's dialect.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from fastapi import FastAPI
from pydantic import TypeAdapter

from fulmen.server.errors import dialect_of
from fulmen.server.limits import OPEN_PATHS
from fulmen.server.replies import AnthropicError, OpenAIError

Responses = dict[int | str, dict[str, Any]]

_SCHEMAS: Final = "#/components/schemas/{model}"
_REASONS: Final = {
    400: "The request is wrong in the way that the message tells",
    401: "No API key was sent, or one that is not known here",
    403: "A web page that may not ask here",
    404: "Nothing has that name or id",
    408: "The body did not arrive in time",
    409: "The session is in use, belongs to another model, or would be one too many",
    413: "The body is too large",
    415: "The body is not JSON, or in an encoding that is not read here",
    429: "All places are taken, `retry-after` tells in how many seconds to try again",
    500: "The server failed, its log tells how",
    501: "This model cannot do that",
    503: "The server is starting or stopping, or too many bodies arrive at once",
    504: "The request took longer than is allowed here",
}
_EVERYWHERE: Final = (400, 401, 403, 408, 413, 415, 500, 503, 504)
"""Statuses of the limits around all routes"""
_METHODS: Final = ("get", "put", "post", "delete", "patch")
_KEYS: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_SHAPES: Final[dict[str, Any]] = {"openai": OpenAIError, "anthropic": AnthropicError}


def replying(
    reply: Any, *refusals: int, events: Any = None, ends_with_done: bool = False
) -> Responses:
    """Return how a route may answer, for its `responses`.

    reply           shape of what it answers with
    refusals        statuses of its own, beside those that every route has
    events          shape of the data of an event, where the reply may be a stream
    ends_with_done  the last event's data is [DONE]
    """
    content: dict[str, Any] = {"application/json": {"schema": _schema(reply)}}
    if events is not None:
        data: dict[str, Any] = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": _schema(events),
        }
        if ends_with_done:
            data = {"anyOf": [{"const": "[DONE]"}, data]}
        event = {
            "type": "object",
            "properties": {"event": {"type": "string"}, "data": data},
            "required": ["data"],
        }
        content["text/event-stream"] = {"itemSchema": event}
    return {
        200: {"content": content},
        **{status: {"description": _REASONS[status]} for status in refusals},
    }


@cache
def _schema(shape: Any) -> Mapping[str, Any]:
    """Return the JSON schema of what is sent in a shape."""
    return TypeAdapter(shape).json_schema(mode="serialization", ref_template=_SCHEMAS)


def describe(app: FastAPI, *, has_keys: bool) -> None:
    """Let an application publish a description that has all that `replying` and the limits say.

    has_keys  it is answered only with an API key
    """
    made_by_fastapi = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(made_by_fastapi(), has_keys=has_keys)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(description: dict[str, Any], *, has_keys: bool) -> None:
    """Add what holds for all routes to a description, in place."""
    components = description.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's 422 is our 400
        schemas.pop(name, None)
    for shape in _SHAPES.values():
        schemas[shape.__name__] = _hoisted(_schema(shape), schemas)
    refusals = components.setdefault("responses", {})
    for path, operations in description["paths"].items():
        for method in _METHODS:
            if method in operations:
                _complete_operation(path, operations[method], schemas, refusals)
                if has_keys and path not in OPEN_PATHS:
                    operations[method]["security"] = [{name: []} for name in _KEYS]
    if has_keys:
        components["securitySchemes"] = _KEYS


def _complete_operation(
    path: str, operation: dict[str, Any], schemas: dict[str, Any], refusals: dict[str, Any]
) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    for media in responses.get("200", {}).get("content", {}).values():
        media.update(_hoisted(media, schemas))
        shape = media.get("schema", {})
        if "properties" in shape:  # so that clients made from the description name it so too
            schemas[shape["title"]] = shape
            media["schema"] = {"$ref": _SCHEMAS.format(model=shape["title"])}
    statuses = {int(status) for status in responses if status != "200"} | set(_EVERYWHERE)
    dialects = _dialects(path)
    for status in sorted(statuses):
        name = "-".join(["refusal", *dialects, str(status)])
        refusals[name] = _refusal(status, dialects)
        responses[str(status)] = {"$ref": f"#/components/responses/{name}"}


def _dialects(path: str) -> tuple[str, ...]:
    """Return the dialects that refusals of a path may be in; both SDKs ask for models."""
    return ("openai", "anthropic") if path.startswith("/v1/models") else (dialect_of(path),)


def _refusal(status: int, dialects: tuple[str, ...]) -> dict[str, Any]:
    shapes = [{"$ref": _SCHEMAS.format(model=_SHAPES[each].__name__)} for each in dialects]
    schema = shapes[0] if len(shapes) == 1 else {"anyOf": shapes}
    refusal: dict[str, Any] = {
        "description": _REASONS[status],
        "content": {"application/json": {"schema": schema}},
    }
    if status == 429:
        seconds = {"type": "integer", "minimum": 1}
        refusal["headers"] = {"retry-after": {"required": True, "schema": seconds}}
    return refusal


def _hoisted(schema: Any, schemas: dict[str, Any]) -> Any:
    """Return a schema without definitions inside; they go where all of them are."""
    if isinstance(schema, dict):
        schemas.update(schema.get("$defs", {}))
        return {key: _hoisted(value, schemas) for key, value in schema.items() if key != "$defs"}
    if isinstance(schema, list):
        return [_hoisted(value, schemas) for value in schema]
    return schema
