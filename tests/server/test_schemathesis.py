"""Schemathesis against the published description: whatever it allows or forbids, each route answers
as it says, soon, and never with a failure of the server."""

import asyncio
import atexit
import shutil
from functools import cache
from itertools import cycle
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from fulmen.chat import get_format
from fulmen.engine import EngineConfig
from fulmen.llm import LLM, LocalModel, ScriptedModel
from fulmen.server import ServerConfig, create_app
from tests.examples import examples
from tests.server.helpers import byte_tokenizer
from tests.tiny import write_checkpoint

SECONDS = 10.0
"""Longest time that a request may take"""
SCRIPT = (
    "Hm.</think>\n\nFine.",
    '</think>\n\n<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">1</parameter>\n'
    "</invoke>\n</minimax:tool_call>",
    "A thought without an end",
    "Ümläute 🦋</think>\n\n{}",
)


@cache
def application() -> FastAPI:
    model = ScriptedModel(
        get_format("minimax_m2"), cycle(SCRIPT), tokenizer=byte_tokenizer("m2"), piece_chars=3
    )
    return create_app(model, ServerConfig(model_name="m2", allowed_hosts=("testserver",)))


@cache
def engine_application() -> FastAPI:
    """An application with a tiny model and its engine, which keeps sessions."""
    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_checkpoint(folder / "model", "m2")
    llm = LLM.load(str(folder / "model"), engine_config=EngineConfig(max_model_len=256))
    hosts = ("testserver",)
    config = ServerConfig(model_name="m2", sessions=folder / "kept", allowed_hosts=hosts)
    return create_app(LocalModel(llm), config)


async def within_time(app: FastAPI, scope: Any, receive: Any, send: Any) -> None:
    """Answer one request before its time is over."""
    assert scope["type"] == "http"  # its lifespan does not end with the first test
    async with asyncio.timeout(SECONDS):
        await app(scope, receive, send)


async def scripted_server(scope: Any, receive: Any, send: Any) -> None:
    await within_time(application(), scope, receive, send)


async def engine_server(scope: Any, receive: Any, send: Any) -> None:
    await within_time(engine_application(), scope, receive, send)


description = schemathesis.openapi.from_asgi("/openapi.json", scripted_server)
description.config.output.sanitization.update(enabled=False)  # a failure shows what was sent


def check(case: schemathesis.Case[Any], **options: Any) -> None:
    """Ask, and hold the answer to all that the description says. What is allowed by its shape may
    be refused for what it means, such as a call of a tool that there is not."""
    case.call_and_validate(excluded_checks=[positive_data_acceptance], **options)


@description.parametrize()
@settings(max_examples=examples(10), deadline=None, suppress_health_check=list(HealthCheck))
def test_every_route_answers_as_described(case: schemathesis.Case[Any]) -> None:
    check(case)


@pytest.mark.slow
@description.parametrize()
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_route_answers_200_requests_as_described(
    case: schemathesis.Case[Any],
) -> None:
    check(case)


@pytest.mark.slow
@description.include(path_regex="^/v1/(chat|completions|messages|responses|sessions)").parametrize()
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_an_engine_answers_200_requests_as_described(case: schemathesis.Case[Any]) -> None:
    check(case, app=engine_server)
