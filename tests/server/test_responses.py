"""OpenAI's Responses through its own SDK: streams, whole objects, conversations that are kept."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAI
from pydantic import BaseModel

from tests.examples import examples
from tests.server.helpers import answering, ask, scripted, served, served_checkpoint
from tests.server.test_openai_sdk import ANSWER, CALLS, CONTENT, THOUGHT, client_of

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
PATCH: Any = {"type": "custom", "name": "apply_patch", "description": "Change files"}
AGENTS: Any = {
    "type": "namespace",
    "name": "agents",
    "description": "Other agents",
    "tools": [{"type": "function", "name": "spawn", "parameters": {"type": "object"}}],
}


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    """A client of a model that always gives the same answer."""
    with (
        served(answering("m2", lambda _: ANSWER), model_name="m2") as url,
        client_of(url) as client,
    ):
        yield client


def test_a_response_has_the_thought_the_answer_and_its_tokens(client: OpenAI) -> None:
    response = client.responses.create(model="m2", input="What is 6 times 7?")
    assert response.output_text == CONTENT
    reasoning, message = response.output
    assert reasoning.type == "reasoning"
    assert [part.text for part in reasoning.content or ()] == [THOUGHT]
    assert reasoning.encrypted_content
    assert message.type == "message"
    assert response.status == "completed"
    usage = response.usage
    assert usage is not None
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert 0 < usage.output_tokens_details.reasoning_tokens < usage.output_tokens
    chat = client.chat.completions.create(
        model="m2", messages=[{"role": "user", "content": "What is 6 times 7?"}]
    )
    assert chat.usage is not None
    assert chat.usage.prompt_tokens == usage.input_tokens
    counted = client.responses.input_tokens.count(model="m2", input="What is 6 times 7?")
    assert counted.input_tokens == usage.input_tokens


def test_a_summary_is_given_where_one_is_asked_for(client: OpenAI) -> None:
    response = client.responses.create(model="m2", input="?", reasoning={"summary": "auto"})
    reasoning = response.output[0]
    assert reasoning.type == "reasoning"
    assert [part.text for part in reasoning.summary] == [THOUGHT]
    with client.responses.stream(model="m2", input="?", reasoning={"summary": "auto"}) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output[0].summary == reasoning.summary  # type: ignore[union-attr]
    assert kinds[:5] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
    ]


def test_a_stream_has_its_events_in_order_and_numbered(client: OpenAI) -> None:
    answer = ask(
        client.base_url.__str__().removesuffix("/v1/"),
        "/v1/responses",
        {"input": "Hello", "stream": True},
    )
    events = answer.events()
    read = [json.loads(data) for _, data in events]
    assert [name for name, _ in events] == [event["type"] for event in read]
    assert [event["sequence_number"] for event in read] == list(range(len(read)))
    kinds = [event["type"] for event in read if not event["type"].endswith(".delta")]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


class City(BaseModel):
    city: str


def test_structured_output_is_parsed_by_the_sdk() -> None:
    with served(scripted("m2", '</think>\n\n{"city": "Oslo"}')) as url, client_of(url) as client:
        parsed = client.responses.parse(model="m2", input="Where?", text_format=City)
        assert parsed.output_parsed == City(city="Oslo")


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), max_size=30)


@st.composite
def answers(draw: st.DrawFn) -> str:
    thought, content = draw(TEXTS), draw(TEXTS)
    calls = "".join(
        f'<invoke name="weather">\n<parameter name="city">{city}</parameter>\n</invoke>\n'
        for city in draw(st.lists(st.sampled_from(["Oslo", "Bergen"]), max_size=3))
    )
    text = f"{thought}</think>\n\n{content}"
    if calls:
        text += f"\n<minimax:tool_call>\n{calls}</minimax:tool_call>"
    return text if draw(st.booleans()) else text[: draw(st.integers(0, len(text)))]


@given(text=answers())
@settings(max_examples=examples(25), deadline=None, suppress_health_check=list(HealthCheck))
def test_a_stream_adds_up_to_the_whole_response(text: str) -> None:
    with served(scripted("m2", text, text)) as url, client_of(url) as client:
        given: Any = {"model": "m2", "input": "?", "tools": [WEATHER, PATCH]}
        whole = client.responses.create(**given)
        with client.responses.stream(**given) as stream:
            *_, last = stream
        assert last.type in ("response.completed", "response.incomplete")
        streamed = last.response

    def told(response: Any) -> Any:
        output = [
            item.model_dump(
                exclude={"id", "call_id", "encrypted_content", "parsed", "parsed_arguments"}
            )
            for item in response.output
        ]
        for item in output:
            for part in item.get("content") or ():
                part.pop("parsed", None)
        return output, response.status, response.usage.output_tokens

    assert told(whole) == told(streamed)


def test_a_conversation_goes_on_from_what_is_stored() -> None:
    model = scripted("m2", ANSWER, "Once more.</think>\n\nStill 42.", "Or.</think>\n\n43.")
    with served(model) as url, client_of(url) as client:
        first = client.responses.create(model="m2", input="What is 6 times 7?", instructions="Be")
        second = client.responses.create(
            model="m2", input="Sure?", previous_response_id=first.id, instructions="Be"
        )
        branch = client.responses.create(
            model="m2", input="Sure?", previous_response_id=first.id, instructions="Be"
        )
        assert (second.output_text, branch.output_text) == ("Still 42.", "43.")
        requests = model.requests
        prompts = [request.prompt.ids for request in requests if request.prompt is not None]
        assert prompts[1] == prompts[2]
        items = client.responses.input_items.list(second.id, order="asc").data
        assert [item.type for item in items] == ["message", "reasoning", "message", "message"]
        assert client.responses.retrieve(second.id).output_text == "Still 42."
        assert second.fulmen["turns"][0]["state"] in ("matched", "restored")  # type: ignore[attr-defined]
        client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError, match="which is not stored any more"):
            client.responses.create(model="m2", input="?", previous_response_id=second.id)
        with pytest.raises(openai.NotFoundError, match="no response with that id is stored"):
            client.responses.create(model="m2", input="?", previous_response_id="resp_none")
        with pytest.raises(openai.NotFoundError, match="is stored"):
            client.responses.retrieve(first.id)


def test_a_client_that_keeps_its_own_history_gets_the_same_prompt() -> None:
    """Items that come back, an id to go on from, and Chat's messages are one conversation."""
    texts = [CALLS, "So.</think>\n\nRain in both."]
    prompts = []
    for way in ("items", "id", "chat"):
        model = scripted("m2", *texts)
        with served(model) as url, client_of(url) as client:
            question: Any = {"role": "user", "content": "Weather?"}
            if way == "chat":
                tool = {
                    "type": "function",
                    "function": {k: v for k, v in WEATHER.items() if k != "type"},
                }
                messages: list[Any] = [question]
                reply = client.chat.completions.create(model="m2", messages=messages, tools=[tool])  # type: ignore[list-item]
                message = reply.choices[0].message
                messages.append(message.model_dump(exclude_none=True))
                messages += [
                    {"role": "tool", "tool_call_id": call.id, "content": "rain"}
                    for call in message.tool_calls or ()
                ]
                client.chat.completions.create(model="m2", messages=messages, tools=[tool])  # type: ignore[list-item]
            else:
                first = client.responses.create(model="m2", input=[question], tools=[WEATHER])
                results: list[Any] = [
                    {"type": "function_call_output", "call_id": item.call_id, "output": "rain"}
                    for item in first.output
                    if item.type == "function_call"
                ]
                assert len(results) == 2
                if way == "id":
                    given: dict[str, Any] = {"input": results, "previous_response_id": first.id}
                else:
                    kept = [item.model_dump(exclude_none=True) for item in first.output]
                    given = {"input": [question, *kept, *results]}
                client.responses.create(model="m2", tools=[WEATHER], **given)
            first_prompt, second_prompt = (r.prompt.ids for r in model.requests if r.prompt)
            assert second_prompt[: len(first_prompt)] == first_prompt
            prompts.append(second_prompt)
    assert prompts[0] == prompts[1] == prompts[2]


def test_a_thought_comes_back_by_its_signature_alone() -> None:
    model = scripted("m2", CALLS, "So.</think>\n\nRain.")
    with served(model) as url, client_of(url) as client:
        first = client.responses.create(
            model="m2",
            input="Weather?",
            tools=[WEATHER],
            store=False,
            include=["reasoning.encrypted_content"],
        )
        kept: list[Any] = []
        for item in first.output:
            one = item.model_dump(exclude_none=True)
            if item.type == "reasoning":
                one["content"] = None
            kept.append(one)
            if item.type == "function_call":
                kept.append(
                    {"type": "function_call_output", "call_id": item.call_id, "output": "x"}
                )
        kept.sort(key=lambda item: item["type"] == "function_call_output")
        second = client.responses.create(
            model="m2", tools=[WEATHER], input=[{"role": "user", "content": "Weather?"}, *kept]
        )
        assert second.fulmen["turns"][0]["state"] == "restored"  # type: ignore[attr-defined]
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first.id)


def test_custom_tools_take_text_and_namespaces_are_told_apart() -> None:
    calls = (
        "</think>\n\n<minimax:tool_call>\n"
        '<invoke name="apply_patch">\n<parameter name="input">*** Begin</parameter>\n</invoke>\n'
        '<invoke name="agents__spawn">\n</invoke>\n</minimax:tool_call>'
    )
    model = scripted("m2", calls, calls, "</think>\n\nDone.")
    with served(model) as url, client_of(url) as client:
        tools = [PATCH, AGENTS, {"type": "web_search"}]
        response = client.responses.create(model="m2", input="Go", tools=tools)
        patch, spawn = (item for item in response.output if item.type != "reasoning")
        assert patch.type == "custom_tool_call"
        assert (patch.name, patch.input) == ("apply_patch", "*** Begin")
        assert spawn.type == "function_call"
        assert (spawn.name, spawn.namespace) == ("spawn", "agents")
        assert response.fulmen["ignored"] == ["tool web_search"]  # type: ignore[attr-defined]
        with client.responses.stream(model="m2", input="Go", tools=tools) as stream:
            inputs = [e.input for e in stream if e.type == "response.custom_tool_call_input.done"]
        assert inputs == ["*** Begin"]
        done: list[Any] = [
            {"type": "custom_tool_call_output", "call_id": patch.call_id, "output": "ok"},
            {"type": "function_call_output", "call_id": spawn.call_id, "output": "ok"},
        ]
        last = client.responses.create(
            model="m2", input=done, tools=tools, previous_response_id=response.id
        )
        assert last.output_text == "Done."
        assert last.fulmen["turns"][0]["state"] == "matched"  # type: ignore[attr-defined]


def test_an_answer_that_was_cut_is_incomplete() -> None:
    with served(scripted("m2", ANSWER)) as url, client_of(url) as client:
        response = client.responses.create(model="m2", input="?", max_output_tokens=5)
        assert response.status == "incomplete"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"


def test_a_background_response_is_polled_and_cancelled() -> None:
    with served_checkpoint("m2", lambda _: "</think>\n\nDone.") as url, client_of(url) as client:
        response = client.responses.create(model="m2", input="?", background=True)
        assert response.status == "in_progress"
        deadline = time.monotonic() + 60
        while response.status == "in_progress" and time.monotonic() < deadline:
            time.sleep(0.05)
            response = client.responses.retrieve(response.id)
        assert (response.status, response.output_text) == ("completed", "Done.")
        assert client.responses.cancel(response.id).status == "completed"
        plain = client.responses.create(model="m2", input="?")
        with pytest.raises(openai.BadRequestError, match="runs in the background"):
            client.responses.cancel(plain.id)
    with served_checkpoint("m2") as url, client_of(url) as client:
        response = client.responses.create(
            model="m2",
            input="?",
            background=True,
            max_output_tokens=100_000,
            extra_body={"ignore_eos": True},
        )
        assert client.responses.cancel(response.id).status == "cancelled"
        assert client.responses.retrieve(response.id).status == "cancelled"


def test_a_background_stream_is_read_from_any_event_on() -> None:
    text = "</think>\n\n" + " ".join(f"word {number}" for number in range(60))
    with served_checkpoint("m2", lambda _: text) as url, client_of(url) as client:
        stream = client.responses.create(model="m2", input="?", background=True, stream=True)
        first = [event for event, _ in zip(stream, range(6), strict=False)]
        stream.close()  # the answer goes on
        id = first[0].response.id  # type: ignore[union-attr]
        rest = list(client.responses.retrieve(id, stream=True, starting_after=5))
        assert [event.sequence_number for event in [*first, *rest]] == list(range(6 + len(rest)))
        last = rest[-1]
        assert last.type == "response.completed"
        assert last.response == client.responses.retrieve(id)
        assert list(client.responses.retrieve(id, stream=True)) == [*first, *rest]
        said = "".join(
            event.delta for event in [*first, *rest] if event.type == "response.output_text.delta"
        )
        assert said == last.response.output_text
        client.responses.delete(id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(id, stream=True)


def test_readers_of_a_background_response_see_its_end(tmp_path: Path) -> None:
    with served_checkpoint("m2", transcripts=tmp_path / "t") as url, client_of(url) as client:
        response = client.responses.create(
            model="m2",
            input="?",
            background=True,
            max_output_tokens=100_000,
            extra_body={"ignore_eos": True},
        )
        events: list[Any] = []
        reader = threading.Thread(
            target=lambda: events.extend(client.responses.retrieve(response.id, stream=True))
        )
        reader.start()
        while reader.is_alive() and not events:
            time.sleep(0.01)
        client.responses.cancel(response.id)
        reader.join(30)
        assert not reader.is_alive()
        assert (events[-1].type, events[-1].response.status) == ("response.incomplete", "cancelled")
    with served_checkpoint("m2", transcripts=tmp_path / "t") as url, client_of(url) as client:
        (event,) = client.responses.retrieve(response.id, stream=True, starting_after=7)
        assert event.sequence_number == 8
        assert event.response.status == "cancelled"  # type: ignore[union-attr]
        with pytest.raises(openai.BadRequestError, match="starting_after is given, it needs"):
            client.responses.retrieve(response.id, extra_query={"starting_after": 7})


def test_items_may_be_named_by_their_ids(client: OpenAI) -> None:
    first = client.responses.create(model="m2", input="What is 6 times 7?")
    named: Any = [{"type": "item_reference", "id": item.id} for item in first.output]
    given: Any = [item.model_dump(exclude_none=True) for item in first.output]
    asked: Any = [{"role": "user", "content": "What is 6 times 7?"}]
    more: Any = [{"role": "user", "content": "And 7 times 8?"}]
    whole, by_id = (
        client.responses.create(model="m2", input=[*asked, *items, *more])
        for items in (given, named)
    )
    assert by_id.usage is not None
    assert whole.usage is not None
    assert by_id.usage.input_tokens == whole.usage.input_tokens > 40
    stored = client.responses.input_items.list(by_id.id, order="asc")
    assert [item.type for item in stored] == ["message", "reasoning", "message", "message"]


def test_responses_outlive_the_server_and_belong_to_their_key(tmp_path: Path) -> None:
    keys = ("key-number-one", "key-number-two")
    given: Any = {"transcripts": tmp_path / "t.sqlite3", "api_keys": keys}
    with served(scripted("m2", ANSWER), **given) as url:
        first = client_of(url, api_key=keys[0]).responses.create(model="m2", input="6 times 7?")
    with served(scripted("m2", "</think>\n\nYes."), **given) as url:
        other = client_of(url, api_key=keys[1])
        with pytest.raises(openai.NotFoundError):
            other.responses.retrieve(first.id)
        with pytest.raises(openai.NotFoundError):
            other.responses.delete(first.id)
        own = client_of(url, api_key=keys[0])
        assert own.responses.retrieve(first.id) == first
        response = own.responses.create(model="m2", input="?", previous_response_id=first.id)
        assert response.output_text == "Yes."


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"input": []}, 400, "input is empty, at least one message is needed"),
        ({"input": [{"role": "robot", "content": "?"}]}, 400, r"input\[0\]: role is 'robot'"),
        (
            {
                "input": [
                    {"role": "user", "content": "?"},
                    {"type": "function_call_output", "call_id": "x", "output": ""},
                ]
            },
            400,
            r"input\[1\]: ",
        ),
        ({"input": [{"type": "function_call", "call_id": "x"}]}, 400, r"input\[0\].name is"),
        ({"text": {"format": {"type": "xml"}}}, 400, "text.format.type is 'xml'"),
        ({"text": {"format": {"type": "json_schema"}}}, 400, "text.format.schema is missing"),
        ({"text": {"format": "json_schema"}}, 400, "text.format is 'json_schema', it must be"),
        ({"conversation": "conv_1"}, 400, "conversation is"),
        ({"prompt": {"id": "p"}}, 400, "prompt is"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, 404, "no item with the id"),
        ({"background": True, "store": False}, 400, "background is true and store false"),
        ({"truncation": "maybe"}, 400, "truncation is 'maybe', it must be auto or disabled"),
        ({"tool_choice": "required"}, 400, "tool_choice is required, the request has no tools"),
        ({"tools": [WEATHER, WEATHER]}, 400, "two tools have the name 'weather'"),
        ({"reasoning": {"effort": "huge"}}, 400, "reasoning.effort is 'huge'"),
        ({"reasoning": {"context": "x"}}, 400, "reasoning.context is 'x'"),
        ({"top_logprobs": 3}, 400, "top_logprobs is given, it needs message.output_text.logprobs"),
        ({"previous_response_id": "../x"}, 404, "no response with that id is stored"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(
    client: OpenAI, change: dict[str, Any], status: int, sentence: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=sentence) as caught:
        client.responses.create(model="m2", **({"input": "?"} | change))
    assert caught.value.status_code == status


def test_logprobs_are_those_of_the_text_alone(client: OpenAI) -> None:
    response = client.responses.create(
        model="m2", input="?", include=["message.output_text.logprobs"]
    )
    message = response.output[-1]
    assert message.type == "message"
    part = message.content[0]
    assert part.type == "output_text"
    assert part.logprobs
    text = b"".join(bytes(one.bytes) for one in part.logprobs)
    assert text.decode(errors="ignore").strip() == CONTENT
