"""Values of MiniMax-M2's calls that hold the format's own tags: kept whole, or the call refused."""

import re
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fulmen.chat import Message, Reply, ToolCall
from tests.chat.helpers import M2, MANY, check_all_cuts, cut

B, E = "<minimax:tool_call>", "</minimax:tool_call>"
STRINGS = {"title": {"type": "string"}, "body": {"type": "string"}}
NOTE = [
    {
        "name": "save_note",
        "parameters": {"type": "object", "properties": STRINGS, "required": ["title", "body"]},
    }
]
OPTIONAL = [{"name": "save_note", "parameters": {"type": "object", "properties": STRINGS}}]


def written(*calls: dict[str, Any]) -> str:
    """Return the calls as the format writes them."""
    message = Message("assistant", tool_calls=tuple(ToolCall("save_note", one) for one in calls))
    text = M2.render([Message("user", "x"), message], add_generation_prompt=False)
    return text[text.index(B) : text.rindex("[e~[")]


FRAGMENTS = st.sampled_from(
    [
        "text",
        " ",
        "\n",
        "</parameter>",
        "</invoke>",
        B,
        E,
        '<parameter name="title">',
        '<parameter name="body">',
        '<parameter name="other">',
        "<parameter>",
        '<invoke name="save_note">',
        "<invoke name='x'>",
        "<",
        "</param",
    ]
)
ODD = st.lists(FRAGMENTS, max_size=7).map("".join)
WORDS = st.sampled_from(["text", " ", "\n", "<b>", "</b>", "a < b", "é🌍", '"', "</param"])


def element(tag: str, name: str, inner: str, space: str) -> str:
    closing = {"parameter": "</parameter>", "invoke": "</invoke>"}[tag]
    return f'<{tag} name="{name}">{space}{inner}{closing}{space}'


BALANCED = st.recursive(
    st.lists(WORDS, max_size=3).map("".join),
    lambda inner: (
        st.builds("{}{}".format, inner, inner)
        | st.builds(
            element,
            st.sampled_from(["parameter", "invoke"]),
            st.sampled_from(["title", "body", "other", "save_note"]),
            inner,
            st.sampled_from(["", "\n"]),
        )
        | inner.map(lambda text: f"{B}\n{text}{E}")
    ),
    max_leaves=6,
)
WHOLE_END = re.compile(
    r"</parameter>\s*</invoke>\s*</minimax:tool_call>|</(parameter|invoke)>\s*<invoke"
    r'|</parameter>\s*<parameter name="(title|body)">'
)
"""The end of a call, or the step to the next call or to a parameter that may come: in a value, no
reader can tell it from the real one"""


def check_harmless(text: str, calls: list[dict[str, Any]], reply: Reply) -> None:
    found = [call.arguments for call in reply.tool_calls]
    if found != calls:
        assert reply.problems
        assert all(call in calls for call in found), (text, found)


@settings(max_examples=MANY, deadline=None)
@given(st.data(), BALANCED, BALANCED, st.sampled_from([NOTE, OPTIONAL]), st.booleans())
def test_balanced_elements_in_values_are_kept(
    data: st.DataObject, title: str, body: str, tools: Any, is_twice: bool
) -> None:
    calls = [{"title": title, "body": body}] * (1 + is_twice)
    text = written(*calls)
    reply = check_all_cuts(M2, text, data.draw(cut(text)), tools, thinking_open=False)
    assert [call.arguments for call in reply.tool_calls] == calls
    assert reply.content == ""


@settings(max_examples=2000, deadline=None)
@given(st.data(), ODD, ODD)
def test_odd(data: st.DataObject, title: str, body: str) -> None:
    assume(not any(WHOLE_END.search(value) for value in (title, body)))
    calls = [{"title": title, "body": body}]
    text = written(*calls)
    reply = check_all_cuts(M2, text, data.draw(cut(text)), NOTE, thinking_open=False)
    check_harmless(text, calls, reply)
