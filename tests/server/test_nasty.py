"""Answers that models should not give and do: both SDKs get what the parser makes of them.

The pieces of a stream add up to the whole answer.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import pytest
from anthropic import Anthropic
from openai import LengthFinishReasonError, OpenAI

from fulmen.chat import Event, ToolCallEnd, ToolCallStart, get_format, read_tools, sum_events
from tests.chat.helpers import read_cases
from tests.server.helpers import FORMATS, answering, served

TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "A tool",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "number": {"type": "integer"},
                "any": {"type": "object"},
            },
        },
    },
}


class Case(NamedTuple):
    """A text of the model, and the tools that it was given."""

    text: str
    tools: Sequence[Any]


def m2_call(value: str, name: str = "city") -> str:
    """Return an M2 call of f with one argument."""
    return f'<invoke name="f">\n<parameter name="{name}">{value}</parameter>\n</invoke>'


def m2_block(*calls: str) -> str:
    return "<minimax:tool_call>\n" + "\n".join(calls) + "\n</minimax:tool_call>"


def m1_block(*calls: str) -> str:
    return "<tool_calls>\n" + "\n".join(calls) + "\n</tool_calls>"


def m1_call(arguments: str, name: str = "f") -> str:
    return f'{{"name": "{name}", "arguments": {arguments}}}'


LONG = "Zeile mit ü, 漢字 und 🦩.\n" * 60
OWN = {
    "m2": {
        "never closed": "Thinking and thinking, with no end",
        "nothing": "",
        "nothing said": "</think>",
        "empty thought": "</think>\n\nHello",
        "blank thought": "  \n </think>\n\nHello",
        "blank answer": "I think.</think>\n\n  \n\t ",
        "only white space": "</think>\n\n \n  ",
        "second thought": "a</think>\n\nb<think>c</think>d",
        "thought in thought": "a <think>b</think>c</think>\n\nd",
        "thought alone": "I think.</think>",
        "call without name": "a</think>\n\n" + m2_block("<invoke nme=f>"),
        "call without end": "a</think>\n\nX" + m2_block(m2_call("Oslo")).split("</param")[0],
        "second call without end": "a</think>\n\n"
        + m2_block(m2_call("Oslo"), m2_call("Bergen")).rpartition("</param")[0],
        "call that is open at its name": "a</think>\n\nX<minimax:tool_call>\n<invoke name=",
        "tags in a value": "a</think>\n\n"
        + m2_block(m2_call("</parameter></invoke></minimax:tool_call></think> b")),
        "calls with text between": "a</think>\n\nOne"
        + m2_block(m2_call("x"))
        + "two"
        + m2_block(m2_call("y"), m2_call("3", "number"))
        + "three",
        "call in the thought": f"a{m2_block(m2_call('Oslo'))}b</think>\n\nc",
        "number that is none": "</think>\n\n" + m2_block(m2_call("many", "number")),
        "object that is none": "</think>\n\n" + m2_block(m2_call('{"a": ', "any")),
        "tool that is none": "</think>\n\n" + m2_block('<invoke name="g h.i-j">\n</invoke>'),
        "call without arguments": "</think>\n\n" + m2_block('<invoke name="f">\n</invoke>'),
        "ten thousand characters": "</think>\n\n" + m2_block(m2_call("0123456789" * 1000)),
        "long argument": "</think>\n\n" + m2_block(m2_call(LONG)),
        "long answer": "a</think>\n\n" + LONG,
        "long thought": LONG + "</think>\n\nb",
        "emoji": "🤔" * 20 + "</think>\n\n" + "👩‍👩‍👧‍👦🇳🇴🦩" * 30,
        "control characters": "a\u0000b\u2028c</think>\n\nd\u0000\u0085\u2029e\r\nf\x1b[0m",
        "server-sent lines": "</think>\n\ndata: [DONE]\n\nevent: error\ndata: {}\n\n",
        "markup of pages": "</think>\n\n<script>alert('</script>')</script> &amp; \\u0041",
        "tags of the template": "</think>\n\n<think>",
    },
    "m1": {
        "no thought": "Hello",
        "nothing": "",
        "never closed": "<think>\nThinking, with no end",
        "empty thought": "<think>\n\n</think>\n\nHello",
        "blank": "  \n ",
        "blank after a thought": "<think>\na\n</think>\n\n  \n ",
        "second thought": "<think>\na\n</think>\n\nb<think>\nc\n</think>\n\nd",
        "half a surrogate pair": m1_block(m1_call('{"city": "a\\ud83d"}')),
        "surrogate pair": m1_block(m1_call('{"city": "\\ud83d\\ude00"}')),
        "half a pair as a key": m1_block(m1_call('{"\\udc00": 1}')),
        "call that is no JSON": "<think>\na\n</think>\n\n" + m1_block('{"name": "f", "argu'),
        "broken call before a whole one": "a"
        + m1_block(m1_call('{"city": "x" bad}'), m1_call('{"city": "y"}'))
        + "b",
        "number without end": m1_block(m1_call('{"city": "x", "number": 1e400}')),
        "call that is cut": "<think>\na\n</think>\n\nX<tool_calls>\n" + '{"name": "f", "argu',
        "call cut in its arguments": '<tool_calls>\n{"name": "f", "arguments": {"city": "Os',
        "call that is a list": m1_block("[1, 2]"),
        "arguments that are text": m1_block(m1_call('"{\\"city\\": \\"Oslo\\"}"')),
        "no arguments": m1_block('{"name": "f"}'),
        "several calls with text between": "One"
        + m1_block(m1_call('{"city": "x"}'), m1_call('{"number": 1.0}'))
        + "two"
        + m1_block(m1_call('{"any": {"1": [null, 1e3]}}'))
        + "three",
        "tags in a value": m1_block(m1_call('{"city": "</tool_calls></think>"}')),
        "long argument": m1_block(m1_call(json.dumps({"city": LONG}))),
        "large numbers": m1_block(m1_call('{"number": 123456789012345678901234567890}')),
        "emoji": "<think>\n🤔\n</think>\n\n" + "👩‍👩‍👧‍👦🇳🇴🦩" * 30,
    },
}


@cache
def cases(kind: str) -> dict[str, Case]:
    """Return the texts of a kind of model by their names: our own, and the recorded ones."""
    found = {name: Case(text, [TOOL]) for name, text in OWN[kind].items()}
    files = ["m2_tool_calls", "m2_reports"] if kind == "m2" else ["m1_tool_calls"]
    for file in files:
        for case in read_cases(f"{file}.jsonl"):
            one = Case(case["text"], case["tools"] or [])
            if one not in found.values():
                found[f"{file}: {case['id']}"] = one
    return found


@dataclass
class Seen:
    """An answer as a client saw it; arguments of calls as JSON."""

    thinking: str = ""
    content: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    is_cut: bool = False
    problems: tuple[str, ...] = ()


def expected(kind: str, case: Case, *, has_tools: bool = True) -> Seen:
    """Return what the parser makes of a text, as a server shows it."""
    tools = read_tools(case.tools) if has_tools else []
    parser = get_format(FORMATS[kind]).parser(tools)
    events: list[Event] = [*parser.feed(case.text), *parser.finish_events()]
    reply = sum_events(events)
    assert reply == get_format(FORMATS[kind]).parse(case.text, tools)
    starts = sum(isinstance(event, ToolCallStart) for event in events)
    ends = sum(isinstance(event, ToolCallEnd) for event in events)
    content = reply.content
    if not content.strip() and not starts and reply.problems:
        content = "\n".join(reply.problems)
    calls = [(call.name, json.loads(without_halves(call.arguments))) for call in reply.tool_calls]
    return Seen(reply.thinking, content, calls, starts > ends, reply.problems)


def without_halves(arguments: Any) -> str:
    """Return JSON in which U+FFFD stands for half of a surrogate pair, which no client could send
    back."""
    text = json.dumps(arguments, ensure_ascii=False)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def are_among(some: Sequence[Any], all_of_them: Sequence[Any]) -> bool:
    """Return whether these come in a list in this order, with others between them."""
    rest = iter(all_of_them)
    return all(one in rest for one in some)


ALL = [pytest.param(kind, name, id=f"{kind}: {name}") for kind in OWN for name in cases(kind)]
WRITTEN = [pytest.param(kind, name, id=f"{kind}: {name}") for kind in OWN for name in OWN[kind]]
RECORDED = [
    pytest.param(*one.values, id=one.id, marks=pytest.mark.slow)
    for one in ALL
    if one not in WRITTEN
]
"""Recorded texts, which are many, for a second dialect"""


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    m1 = answering("m1", lambda name: cases("m1")[name].text)
    m2 = answering("m2", lambda name: cases("m2")[name].text)
    with served(m1) as m1_url, served(m2) as m2_url:
        yield {"m1": m1_url, "m2": m2_url}


@pytest.fixture(scope="module")
def openais(urls: dict[str, str]) -> Iterator[dict[str, OpenAI]]:
    clients = {
        kind: OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        for kind, url in urls.items()
    }
    yield clients
    for client in clients.values():
        client.close()


@pytest.fixture(scope="module")
def anthropics(urls: dict[str, str]) -> Iterator[dict[str, Anthropic]]:
    clients = {
        kind: Anthropic(base_url=url, api_key="any", max_retries=0) for kind, url in urls.items()
    }
    yield clients
    for client in clients.values():
        client.close()


# ---- OpenAI's SDK


def whole_chat(client: OpenAI, request: dict[str, Any]) -> Seen:
    reply = client.chat.completions.create(**request)
    (choice,) = reply.choices
    message = choice.message
    calls = message.tool_calls or []
    assert choice.finish_reason in ("stop", "length", "tool_calls")
    if choice.finish_reason == "tool_calls":
        assert calls
    return Seen(
        getattr(message, "reasoning_content", ""),
        message.content or "",
        [(call.function.name, json.loads(call.function.arguments)) for call in calls],
        choice.finish_reason == "length",
        tuple(reply.fulmen.get("problems", ())),
    )


def streamed_chat(client: OpenAI, request: dict[str, Any]) -> Seen:
    """Add up a stream by hand, and hold it to the rules that clients rely on."""
    seen, names, ids = Seen(), dict[int, str](), dict[int, str]()
    arguments, reasons, num_roles = dict[int, str](), list[str](), 0
    heads = set()
    request = {**request, "stream": True, "stream_options": {"include_usage": True}}
    chunks: Any = client.chat.completions.create(**request)
    with chunks as stream:
        for chunk in stream:
            heads.add((chunk.id, chunk.created, chunk.object))
            assert not reasons or not chunk.choices, "nothing comes after the end"
            for choice in chunk.choices:
                delta = choice.delta
                thought = getattr(delta, "reasoning_content", None)
                assert not (delta.content and thought)
                num_roles += delta.role is not None
                seen.thinking += thought or ""
                seen.content += delta.content or ""
                for call in delta.tool_calls or ():
                    assert call.function is not None
                    if call.index in names:
                        assert (call.id, call.type, call.function.name) == (None, None, None)
                    else:
                        assert call.index == len(names)
                        assert call.type == "function"
                        assert call.id
                        names[call.index] = call.function.name or ""
                        ids[call.index] = call.id
                    arguments.setdefault(call.index, "")
                    arguments[call.index] += call.function.arguments or ""
                if choice.finish_reason is not None:
                    reasons.append(choice.finish_reason)
            assert (chunk.usage is not None) == (not chunk.choices)
            if chunk.usage is not None:
                seen.problems = tuple(chunk.fulmen.get("problems", ()))
    assert num_roles == len(heads) == len(reasons) == 1
    assert len(set(ids.values())) == len(ids)
    seen.is_cut = reasons == ["length"]
    for index, name in names.items():
        try:
            seen.calls.append((name, json.loads(arguments[index] or "{}")))
        except ValueError:
            assert seen.is_cut
    return seen


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_openai_shows_what_the_parser_found(
    openais: dict[str, OpenAI], kind: str, name: str
) -> None:
    case = cases(kind)[name]
    request: dict[str, Any] = {
        "model": "any",
        "messages": [{"role": "user", "content": name}],
        "max_tokens": 100_000,
    }
    if case.tools:
        request["tools"] = case.tools
    wanted = expected(kind, case)
    assert whole_chat(openais[kind], request) == wanted
    streamed = streamed_chat(openais[kind], request)
    if wanted.is_cut:  # the beginning of a call has been sent before it was known that it is cut
        assert are_among(wanted.calls, streamed.calls)
        streamed.calls = wanted.calls
    assert streamed == wanted


@pytest.mark.parametrize(("kind", "name"), WRITTEN)
def test_openais_helper_adds_a_stream_up(openais: dict[str, OpenAI], kind: str, name: str) -> None:
    wanted = expected(kind, cases(kind)[name], has_tools=False)
    with openais[kind].chat.completions.stream(
        model="any", messages=[{"role": "user", "content": name}], max_tokens=100_000
    ) as stream:
        for _ in stream:
            pass
        try:
            final: Any = stream.get_final_completion()
        except LengthFinishReasonError as error:
            assert wanted.is_cut
            final = error.completion
    (choice,) = final.choices
    message = choice.message
    calls = []
    for call in message.tool_calls or ():
        with suppress(ValueError) if wanted.is_cut else nullcontext():
            calls.append((call.function.name, json.loads(call.function.arguments or "{}")))
    assert message.role == "assistant"
    assert (message.content or "") == wanted.content
    assert (getattr(message, "reasoning_content", None) or "") == wanted.thinking
    assert are_among(wanted.calls, calls) if wanted.is_cut else calls == wanted.calls
    assert (choice.finish_reason == "length") == wanted.is_cut


# ---- Anthropic's SDK


def anthropic_tool(tool: Any) -> dict[str, Any]:
    """Return a tool as Anthropic writes it."""
    (read,) = read_tools([tool])
    given = dict(read.function)
    schema = given.pop("parameters", None) or {"type": "object", "properties": {}}
    return {**given, "input_schema": schema}


def seen_blocks(message: Any) -> Seen:
    seen = Seen(is_cut=message.stop_reason == "max_tokens")
    for block in message.content:
        match block.type:
            case "thinking":
                assert block.signature
                seen.thinking += block.thinking
            case "text":
                seen.content += block.text
            case "tool_use":
                seen.calls.append((block.name, block.input))
    if message.stop_reason == "tool_use":
        assert seen.calls
    return seen


@pytest.mark.parametrize(("kind", "name"), [*WRITTEN, *RECORDED])
def test_anthropic_shows_what_the_parser_found(
    anthropics: dict[str, Anthropic], kind: str, name: str
) -> None:
    case, client = cases(kind)[name], anthropics[kind]
    request: dict[str, Any] = {
        "model": "any",
        "messages": [{"role": "user", "content": name}],
        "max_tokens": 20_000,
        "timeout": 60,
    }
    if case.tools:
        request["tools"] = [anthropic_tool(tool) for tool in case.tools]
    wanted = expected(kind, case)
    wanted.content = wanted.content.rstrip()  # a block of white space could not be sent back
    whole = client.messages.create(**request)
    assert whole.fulmen.get("problems", []) == list(wanted.problems)
    wanted.problems = ()
    seen = seen_blocks(whole)
    seen.content = seen.content.rstrip()
    assert seen == wanted
    with client.messages.stream(**request) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_message()
    seen = seen_blocks(streamed)
    seen.content = seen.content.rstrip()
    if wanted.is_cut:
        assert are_among(wanted.calls, seen.calls)
        seen.calls = wanted.calls
    assert seen == wanted
    assert streamed.stop_reason == whole.stop_reason
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    if not wanted.is_cut:
        assert blocks(streamed) == blocks(whole)
    assert all(text.strip() for kind, text in blocks(whole)[1:] if kind == "text")


def blocks(message: Any) -> list[tuple[str, str]]:
    """Return the types of a message's blocks, in order, with the text of those that have one."""
    return [(one.type, getattr(one, "text", getattr(one, "name", ""))) for one in message.content]


# ---- and back


@pytest.mark.parametrize(("kind", "name"), WRITTEN)
def test_openais_reply_can_be_sent_back(openais: dict[str, OpenAI], kind: str, name: str) -> None:
    case, client = cases(kind)[name], openais[kind]
    request: dict[str, Any] = {"model": "any", "max_tokens": 100_000}
    if case.tools:
        request["tools"] = case.tools
    messages: list[Any] = [{"role": "user", "content": name}]
    first: Any = client.chat.completions.create(messages=messages, **request)
    message = first.choices[0].message
    messages.append(message)
    for call in message.tool_calls or ():
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "done"})
    messages.append({"role": "user", "content": "emoji"})
    second: Any = client.chat.completions.create(messages=messages, **request)
    assert second.choices[0].message.content == expected(kind, cases(kind)["emoji"]).content
    (turn,) = second.fulmen["turns"]
    if not expected(kind, case).is_cut:
        assert (turn["state"], turn.get("id")) == ("matched", first.id)


@pytest.mark.parametrize(("kind", "name"), WRITTEN)
def test_anthropics_reply_can_be_sent_back(
    anthropics: dict[str, Anthropic], kind: str, name: str
) -> None:
    case, client = cases(kind)[name], anthropics[kind]
    request: dict[str, Any] = {"model": "any", "max_tokens": 20_000, "timeout": 60}
    if case.tools:
        request["tools"] = [anthropic_tool(tool) for tool in case.tools]
    messages: list[Any] = [{"role": "user", "content": name}]
    with client.messages.stream(messages=messages, **request) as stream:
        first: Any = stream.get_final_message()
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "done"}
        for block in first.content
        if block.type == "tool_use"
    ]
    question = {"type": "text", "text": "emoji"}
    messages += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [*results, question]},
    ]
    second: Any = client.messages.create(messages=messages, **request)
    assert seen_blocks(second).content == expected(kind, cases(kind)["emoji"]).content
    (turn,) = second.fulmen["turns"]
    if not expected(kind, case).is_cut:
        assert turn["state"] in ("matched", "restored")  # two thoughts come back as one text
        assert turn["id"] == first.id
