"""The checker of replies finds what is not as it is described."""

import json

import pytest

from fulmen.server import ServerConfig, create_app
from tests.server.conforming import Described, published
from tests.server.helpers import scripted

CHAT = "/v1/chat/completions"
ERROR = {"message": "no", "type": "api_error", "param": None, "code": None}


@pytest.fixture(scope="module")
def described() -> Described:
    return Described(published())


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "body", "sentence"),
    [
        ("GET", "/health", 200, "application/json", {"status": "ok"}, None),
        ("GET", "/health", 200, "application/json", {"status": "bad"}, '"ok" was expected'),
        ("GET", "/health", 200, "application/json", {}, "required"),
        ("GET", "/version", 200, "application/json", {"version": "1", "a": 1}, "'a' was unexp"),
        ("GET", "/health", 200, "text/html", {}, "'text/html' is not described"),
        ("GET", "/health", 418, "application/json", {}, "status is not described"),
        ("PUT", "/health", 405, "application/json", {}, None),
        ("GET", "/elsewhere", 200, "text/html", {}, None),
        ("POST", CHAT, 400, "application/json", {"error": ERROR}, None),
        ("POST", CHAT, 400, "application/json", {"type": "error", "error": ERROR}, "unexpected"),
        ("POST", "/v1/messages", 400, "application/json", {"error": ERROR}, "required"),
        ("GET", "/v1/models", 401, "application/json", {"error": ERROR}, None),
        ("POST", "/v1/messages", 200, "text/event-stream", {"type": "message_stop"}, None),
        ("POST", "/v1/messages", 200, "text/event-stream", {"type": "message_end"}, "not valid"),
    ],
)
def test_a_reply_is_compared_with_its_description(
    described: Described,
    method: str,
    path: str,
    status: int,
    kind: str,
    body: object,
    sentence: str | None,
) -> None:
    described.failures.clear()
    text = json.dumps(body)
    if kind == "text/event-stream":
        text = f"event: a\ndata: {text}\n\ndata: {{"  # the last event is cut
    described.check(method, path, status, kind, text.encode())
    if sentence is None:
        assert not described.failures
    else:
        (failure,) = described.failures
        assert sentence in failure


def test_the_description_is_that_of_every_application_but_for_api_keys() -> None:
    config = ServerConfig(api_keys=("k" * 16,), strict_model_names=True)
    other = create_app(scripted("m1"), config).openapi()
    for operations in other["paths"].values():
        for operation in operations.values():
            operation.pop("security", None)
    del other["components"]["securitySchemes"]
    assert other == published()
