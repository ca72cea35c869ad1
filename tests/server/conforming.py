"""Holds every reply of a server to its published description.

application -> Conforming -> client
               status, headers and each event against /openapi.json
"""

import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from fastapi import FastAPI
from jsonschema_rs import Draft202012Validator

from fulmen.chat import get_format
from fulmen.llm import ScriptedModel
from fulmen.server import create_app

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Event]], Callable[[Event], Awaitable[None]]], Any]


@dataclass
class Described:
    """Failures of replies to be as a published description says."""

    whole: Mapping[str, Any]
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._paths = [
            (re.compile(re.sub(r"\\{(\w+)\\}", _part, re.escape(path))), path)
            for path in sorted(self.whole["paths"], key=lambda path: (path.count("{"), -len(path)))
        ]
        self.validator = cache(self._validator)

    def check(self, method: str, path: str, status: int, kind: str, body: bytes) -> None:
        """Note all that a reply has, or lacks, against the description."""
        operation = self._operation(method, path)
        if operation is None:
            return
        where = f"{method} {path} {status}"
        answers = operation["responses"]
        if str(status) not in answers:
            self.failures.append(f"{where}: the status is not described")
            return
        media = kind.partition(";")[0]
        answer = self._resolved(answers[str(status)])
        if media not in answer["content"]:
            self.failures.append(f"{where}: {kind!r} is not described")
            return
        shape = answer["content"][media]
        if media == "application/json":
            self._compare(where, shape["schema"], json.loads(body))
        elif media == "text/event-stream":
            for data in _data(body):
                data_shape = shape["itemSchema"]["properties"]["data"]
                ends = [end["const"] for end in data_shape.get("anyOf", ()) if "const" in end]
                if data not in ends:
                    json_shape = data_shape["anyOf"][-1] if ends else data_shape
                    self._compare(where, json_shape["contentSchema"], json.loads(data))

    def _operation(self, method: str, path: str) -> Mapping[str, Any] | None:
        for pattern, template in self._paths:
            if pattern.fullmatch(path):
                operations: Mapping[str, Mapping[str, Any]] = self.whole["paths"][template]
                return operations.get(method.lower())
        return None

    def _resolved(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        name = answer.get("$ref", "").rpartition("/")[2]
        found: Mapping[str, Any] = self.whole["components"]["responses"][name] if name else answer
        return found

    def _compare(self, where: str, schema: Mapping[str, Any], value: object) -> None:
        for error in self.validator(json.dumps(schema)).iter_errors(value):
            place = ".".join(map(str, error.instance_path))
            self.failures.append(f"{where}: {place}: {error.message[:400]} in {str(value)[:400]}")
            return

    def _validator(self, schema: str) -> Draft202012Validator:
        return Draft202012Validator({**json.loads(schema), "components": self.whole["components"]})


class Conforming:
    """Middleware that notes replies which are not as they are described."""

    def __init__(self, app: App, described: Described) -> None:
        self._app = app
        self._described = described

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, kind, parts = 0, "", list[bytes]()

        async def noting(event: Event) -> None:
            nonlocal status, kind
            if event["type"] == "http.response.start":
                status = event["status"]
                headers = {name.lower(): value.decode() for name, value in event["headers"]}
                kind = headers.get(b"content-type", "")
            elif event["type"] == "http.response.body":
                parts.append(event.get("body", b""))
            await send(event)

        try:
            await self._app(scope, receive, noting)
        finally:
            if status and status != 499:  # nobody is there to read that one
                self._described.check(scope["method"], scope["path"], status, kind, b"".join(parts))


@cache
def published() -> Mapping[str, Any]:
    """Return the description of an application. It is that of all of them, but for API keys."""
    app = create_app(ScriptedModel(get_format("minimax_m2"), []))
    description: Mapping[str, Any] = json.loads(json.dumps(app.openapi()))
    return description


def conforming(app: FastAPI) -> Described:
    """Let an application note its replies that are not as they are described."""
    described = Described(published())
    app.add_middleware(Conforming, described=described)
    return described


def _part(found: re.Match[str]) -> str:
    return ".+" if found[1] == "name" else "[^/]+"


def _data(stream: bytes) -> Iterator[str]:
    """Yield the data of the events that a stream has as a whole."""
    for block in stream.decode().split("\n\n")[:-1]:
        for line in block.split("\n"):
            if line.startswith("data: "):
                yield line.removeprefix("data: ")
