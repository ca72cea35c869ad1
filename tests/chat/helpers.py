"""Reference templates, cut texts and random conversations for the tests of this room."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from fulmen.chat import (
    ChatFormat,
    ContentDelta,
    Event,
    ProblemFound,
    Reply,
    ThinkingDelta,
    Tokenizer,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    get_format,
    sum_events,
)
from fulmen.chat.rendering import render_template
from tests.examples import examples

HERE = Path(__file__).parent
REAL = HERE.parents[1].parent / "shared" / "tokenizer"
"""MiniMax's tokenizer, where it lies beside this repository"""
M1 = get_format("minimax_m1")
M2 = get_format("minimax_m2")
MANY = examples(400)
"""Examples of each property: a few seconds together."""
MARKERS = ("<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>")


def real_tokenizer() -> Tokenizer:
    """MiniMax's own; skips the test without it."""
    if not (REAL / "tokenizer.json").is_file():
        pytest.skip("MiniMax's tokenizer.json is not beside this repository")
    return Tokenizer.from_folder(REAL)


def read_cases(file: str) -> list[dict[str, Any]]:
    lines = (HERE / "cases" / file).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def template(name: str) -> str:
    return (HERE / "templates" / name).read_text(encoding="utf-8")


def raw_render(
    name: str, messages: Sequence[Any], tools: Any = None, add_generation_prompt: bool = True
) -> str:
    """Render with the checkpoint's own template."""
    return render_template(
        template(name),
        messages=messages,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
    )


def stream(
    format_: ChatFormat, pieces: Iterable[str], tools: Any = None, thinking_open: bool = True
) -> tuple[list[Event], Reply]:
    """Return all events and the Reply of a text that comes in pieces."""
    parser = format_.parser(tools, thinking_open)
    events = [event for piece in pieces for event in parser.feed(piece)]
    events += parser.finish_events()
    return events, parser.finish()


def content_with_thinking(reply: Reply) -> str:
    """Return the thought in tags before the content, as clients send it that keep only content."""
    end = "</think>" if reply.is_thinking_closed else ""
    return f"<think>{reply.thinking}{end}{reply.content}"


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[str]:
    """The text in random pieces, some of them empty."""
    places = draw(st.lists(st.integers(0, len(text)), max_size=12).map(sorted))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


def m1_block(*lines: str) -> str:
    return "<tool_calls>\n" + "\n".join(lines) + "\n</tool_calls>"


def m2_call(body: str, name: str = "f") -> str:
    return f'<minimax:tool_call>\n<invoke name="{name}">\n{body}</invoke>\n</minimax:tool_call>'


def check_all_cuts(
    format_: ChatFormat,
    text: str,
    pieces: list[str] | None = None,
    tools: Any = None,
    thinking_open: bool = True,
) -> Reply:
    """Return the reply, after a check that the text whole, in pieces and in characters gives it."""
    middle = len(text) // 2
    pieces = pieces or [text[:middle], text[middle:]]
    whole = format_.parse(text, tools, thinking_open)
    for cut_text in ([text], pieces, list(text)):
        events, reply = stream(format_, cut_text, tools, thinking_open)
        assert reply == whole
        assert sum_events(events) == whole
        check_order(events)
    return whole


def check_order(events: list[Any]) -> None:
    """Check that a call's events come in order, join to its object, and have dense indices."""
    open_index, next_index, fragments = None, 0, ""
    for event in events:
        if isinstance(event, ToolCallStart):
            assert event.index == next_index
            open_index, next_index, fragments = event.index, next_index + 1, ""
        elif isinstance(event, ToolCallDelta):
            assert event.index == open_index
            fragments += event.arguments
        elif isinstance(event, ToolCallEnd):
            assert event.index == open_index
            assert isinstance(json.loads(fragments), dict)
            open_index = None
        elif isinstance(event, ThinkingDelta | ContentDelta | ProblemFound):
            assert event.text


NAMES = st.sampled_from(["get_weather", "search", "f", "write_file"])
KEYS = st.sampled_from(["city", "query", "a", "b", "content", "größe"])
WORDS = st.sampled_from(
    [
        "Oslo",
        " ",
        "\n",
        "\n\n",
        "x",
        "é",
        "你好",
        "🌍",
        "<b>",
        "</b>",
        "&lt;",
        '"',
        "\\",
        "{",
        "}",
        "'",
    ]
)
TEXT = st.lists(WORDS, max_size=8).map("".join)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'Weather <now> & "later" é',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "unit": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    "tags": {"type": "array"},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {"strict": True, "name": "search", "parameters": {"type": "object"}},
    },
]
