"""Every key that a handler reads is in the published description, and the other way round.

Bodies' own fields are pydantic's, so they are described by themselves. What stands inside them is
read by hand: here the source that reads it is compared with what the description shows.
"""

import ast
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from fulmen.server import create_app
from fulmen.server.fields import HARMLESS, REFUSED
from tests.server.helpers import scripted
from tests.test_docs import ROOT

READERS = (
    "server/openai_chat.py",
    "server/openai_completions.py",
    "server/openai_responses.py",
    "server/anthropic_messages.py",
    "server/thinking.py",
    "chat/reading.py",
    "chat/blocks.py",
    "chat/history.py",
)
"""Files that read bodies"""
LOOPED = {
    "id",
    "tool_call_id",
    "current_date",
    "current_location",
    "reasoning_content",
    "reasoning",
    "signature",
    "data",
}
"""Keys that are read by a name that stands elsewhere: in a loop, or as an argument"""
WORDS = {"default", "tool_result"}
"""Texts in the place of a key that are none"""
OPEN = {"eager_input_streaming", "allowed_callers", "cache_control", "name", "data", "signature"}
"""Keys that are described, and only passed on or left out"""


def literal(node: ast.AST) -> str | None:
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return str(node.value) if is_text and isinstance(node, ast.Constant) else None


def keys_read(source: str) -> Iterator[str]:
    """Yield the keys that a source looks up: x.get("k"), x["k"], "k" in x."""
    for node in ast.walk(ast.parse(source)):
        found = None
        match node:
            case ast.Call(func=ast.Attribute(attr="get"), args=[first, *_]):
                found = literal(first)
            case ast.Subscript(slice=key, ctx=ast.Load()):
                found = literal(key)
            case ast.Compare(left=left, ops=[ast.In() | ast.NotIn()], comparators=[ast.Name()]):
                found = literal(left)
        if found is not None:
            yield found


def properties(schema: Any) -> Iterator[str]:
    """Yield the names of the properties that schemas have, at any depth."""
    if isinstance(schema, Mapping):
        if isinstance(schema.get("properties"), Mapping):
            yield from schema["properties"]
        for value in schema.values():
            yield from properties(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from properties(value)


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    """Schemas of bodies, and of all that they refer to."""
    description = create_app(scripted("m2")).openapi()
    schemas = description["components"]["schemas"]
    bodies: dict[str, Any] = {}

    def add(schema: Any) -> None:
        if isinstance(schema, Mapping):
            name = str(schema.get("$ref", "")).rpartition("/")[2]
            if name and name not in bodies:
                bodies[name] = schemas[name]
                add(schemas[name])
            for value in schema.values():
                add(value)
        elif isinstance(schema, list):
            for value in schema:
                add(value)

    for operations in description["paths"].values():
        for operation in operations.values():
            add(operation.get("requestBody"))
    return bodies


def test_every_key_that_is_read_is_described_and_every_key_described_is_read(
    described: dict[str, Any],
) -> None:
    read = {
        key
        for file in READERS
        for key in keys_read((ROOT / "fulmen" / file).read_text(encoding="utf-8"))
    }
    shown = set(properties(described))
    assert len(read) > 60
    assert read - WORDS <= shown
    by_pydantic = ("Body", "StreamOptions")
    inner = {name: schema for name, schema in described.items() if not name.endswith(by_pydantic)}
    assert set(properties(inner)) - read <= LOOPED | OPEN


def test_the_description_names_what_has_no_effect_and_what_is_refused(
    described: dict[str, Any],
) -> None:
    for name in ("ChatBody", "CompletionsBody", "MessagesBody", "ResponsesBody"):
        fields = described[name]["properties"]
        assert {*HARMLESS, *REFUSED} <= set(fields)
    assert described["ChatBody"]["properties"]["frequency_penalty"]["enum"] == [0, None]
