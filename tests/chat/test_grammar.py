"""Constrained output: what is said follows its grammar, and nothing else changes."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.chat import (
    Completion,
    Grammar,
    Message,
    Prompt,
    Reply,
    TemplateFormat,
    Tokenizer,
    Tool,
    ToolCall,
    Vocabulary,
    get_format,
    make_grammar,
)
from fulmen.engine import EngineConfig
from fulmen.llm import LLM
from fulmen.sampling import SamplingParams
from tests.chat.helpers import real_tokenizer
from tests.examples import examples
from tests.models.helpers import packed_model, tiny_m1, tiny_m2
from tests.tiny import write_checkpoint

MESSAGES = [{"role": "user", "content": "Hello"}]
FREE = SamplingParams(seed=3, max_tokens=400, temperature=1.0, top_k=None, top_p=1.0, logprobs=2)
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "tags": {"type": "array", "items": {"enum": ["a", "<b>", 7]}, "maxItems": 3},
        },
        "required": ["name", "tags"],
        "additionalProperties": False,
    }
)
TOOLS = [
    Tool(
        "look up",
        parameters={
            "type": "object",
            "properties": {
                "query": {"type": "string", "maxLength": 8},
                "kind": {"enum": ["web", "file"]},
                "limit": {"type": "integer", "minimum": 0, "maximum": 99},
                "where": {"$ref": "#/$defs/place"},
            },
            "required": ["query", "limit"],
            "$defs": {
                "place": {
                    "type": "object",
                    "properties": {"a": {"type": "string", "maxLength": 4}},
                    "required": ["a"],
                    "additionalProperties": False,
                }
            },
        },
    ),
    Tool("stop"),
]


def is_valid(value: Any, schema: Any, root: Any = None) -> bool:
    """The part of JSON Schema that these tests write."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        return is_valid(value, root["$defs"][schema["$ref"].split("/")[-1]], root)
    if "enum" in schema:
        return any(type(value) is type(option) and value == option for option in schema["enum"])
    kinds = {"string": str, "array": list, "object": dict, "boolean": bool, "integer": int}
    kind = schema.get("type")
    if kind == "null":
        return value is None
    if kind in kinds and type(value) is not kinds[kind]:
        return False
    if isinstance(value, str):
        return int(schema.get("minLength", 0)) <= len(value) <= int(schema.get("maxLength", 99))
    if isinstance(value, int) and kind == "integer":
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    if isinstance(value, list):
        is_long = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**6)
        return is_long and all(is_valid(item, schema["items"], root) for item in value)
    if isinstance(value, dict):
        declared = schema.get("properties", {})
        if len(value) > schema.get("maxProperties", len(value)):
            return False
        if any(name not in value for name in schema.get("required", ())):
            return False
        if schema.get("additionalProperties") is False and not set(value) <= set(declared):
            return False
        return all(is_valid(item, declared.get(key, True), root) for key, item in value.items())
    return True


def said(completion: Completion) -> list[tuple[object, ...]]:
    return [(out.token_id, out.logprob, out.top_logprobs) for out in completion.tokens]


def objects(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Schemas of objects whose values follow one of the parts."""
    return st.dictionaries(st.sampled_from("abcd"), parts, max_size=3).flatmap(
        lambda properties: st.sets(st.sampled_from("abcd")).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": sorted(required & set(properties)),
                "additionalProperties": False,
            }
        )
    )


SCHEMAS = st.recursive(
    st.one_of(
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"enum": ["x", "</th", 3]}]),
        st.integers(0, 5).map(lambda n: {"type": "string", "minLength": n // 2, "maxLength": n}),
        st.integers(-50, 50).map(lambda n: {"type": "integer", "minimum": n, "maximum": n + 70}),
    ),
    lambda parts: st.one_of(
        objects(parts),
        st.tuples(parts, st.integers(0, 3)).map(
            lambda pair: {"type": "array", "items": pair[0], "maxItems": pair[1]}
        ),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module", params=["m1", "m2"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = write_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    tokenizer, format = Tokenizer.from_folder(folder), get_format(f"minimax_{request.param}")
    sizes = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 4096}
    model = packed_model(tiny_m1(**sizes) if request.param == "m1" else tiny_m2(**sizes))
    return LLM(model, tokenizer, format, engine_config=EngineConfig(max_num_seqs=4))


def thoughtful(llm: LLM, params: SamplingParams, tools: Sequence[Tool] = ()) -> Completion:
    """An answer after a thought, which M1 is made to open."""
    opening = "" if llm.format.thinking_open_in_prompt else "<think>\n"
    forced_ids = llm.tokenizer.encode(opening)
    return llm.chat(MESSAGES, tools=tools, params=params, forced_ids=forced_ids)


def assert_follows(reply: Reply, schema: Any) -> None:
    assert is_valid(json.loads(reply.content), schema), reply
    assert not reply.tool_calls


@given(SCHEMAS, st.integers(0, 12), st.integers(0, 999), st.sampled_from([None, 5, 40]))
@settings(max_examples=examples(40), deadline=None)
def test_an_answer_follows_its_schema_whatever_the_thought(
    llm: LLM, schema: Any, budget: int, seed: int, top_k: int | None
) -> None:
    params = replace(
        FREE, json_schema=json.dumps(schema), thinking_budget=budget, seed=seed, top_k=top_k
    )
    completion = thoughtful(llm, params)
    if completion.finish_reason == "stop":
        assert_follows(completion.reply, schema)
        assert completion.reply.is_thinking_closed
    else:
        assert completion.finish_reason == "length"


BEFORE = ("", "Well.\n", "thinking </think>\n\nSo ")
"""Texts before a tool block: in M2, the first two are thoughts that it ends."""


def test_strict_calls_name_declared_tools_and_fit_their_types(llm: LLM) -> None:
    schemas = {tool.name: tool.parameters for tool in TOOLS}
    assert llm.format.calls is not None
    opening = llm.format.calls.block
    num_calls = 0
    for seed in range(12):
        before = BEFORE[seed % 3]
        if not llm.format.thinking_open_in_prompt:
            before = before.replace("thinking", "<think>thinking")
        # Ends with the block: the text after it is free.
        params = replace(
            FREE, seed=seed, strict_tools=True, max_tokens=900, stop=(opening.replace("<", "</"),)
        )
        forced_ids = llm.tokenizer.encode(before + opening)
        completion = llm.chat(MESSAGES, tools=TOOLS, params=params, forced_ids=forced_ids)
        reply = completion.reply
        if completion.finish_reason == "length":
            continue
        assert reply.tool_calls
        num_calls += len(reply.tool_calls)
        for call in reply.tool_calls:
            assert is_valid(call.arguments, schemas[call.name] or {"maxProperties": 0}), call
        (problem,) = reply.problems
        assert problem.startswith("the tool block has no </")  # it is the stop text
    assert num_calls > 8


def test_a_choice_is_made_exactly(llm: LLM) -> None:
    choice = ("yes", "no", "it depends", "<maybe>", '"quoted" \\')
    found = set()
    for seed in range(30):
        params = replace(FREE, choice=choice, seed=seed, thinking_budget=seed % 7)
        completion = llm.chat(MESSAGES, params=params)
        assert completion.finish_reason == "stop"
        assert completion.reply.content in choice
        found.add(completion.reply.content)
    assert len(found) > 2


@pytest.mark.parametrize(
    "regex", [r"[0-9]{2,5}", r"(ab|c)+d?x", r"<[a-z]{1,3}>\.", r"[^<]{3}é+", r"([0-9]-){2}$"]
)
def test_the_whole_answer_matches_the_expression(llm: LLM, regex: str) -> None:
    params = replace(FREE, regex=regex, thinking_budget=3)
    for seed in range(5):
        completion = thoughtful(llm, replace(params, seed=seed))
        if completion.finish_reason == "stop":
            assert re.fullmatch(regex, completion.reply.content), completion.reply
        plain = llm.generate("Hello", params=replace(params, seed=seed))
        assert plain.finish_reason == "length" or re.fullmatch(regex, plain.reply.content)


def test_a_thought_is_what_it_is_without_a_grammar(llm: LLM) -> None:
    for seed in range(2, 6):  # whose thoughts hold no tag
        params = replace(FREE, seed=seed, max_tokens=60, thinking_budget=20)
        free = thoughtful(llm, params, TOOLS)
        for one in (replace(params, json_schema=SCHEMA), replace(params, strict_tools=True)):
            held = thoughtful(llm, one, TOOLS)
            end = free.usage.num_thinking_tokens
            assert end == 20
            assert said(held)[:end] == said(free)[:end]
            assert held.reply.thinking == free.reply.thinking


@pytest.mark.parametrize("drafts", [0, 7])
def test_answers_side_by_side_and_with_guesses_equal_answers_alone(llm: LLM, drafts: int) -> None:
    params = [
        replace(FREE, seed=1, json_schema=SCHEMA, thinking_budget=5),
        replace(FREE, seed=2, max_tokens=80, top_k=5, temperature=0.5),
        replace(FREE, seed=3, choice=("abcabcabcabcabc", "no"), thinking_budget=0),
        replace(FREE, seed=4, regex="(lalala){5,9}", thinking_budget=9, temperature=0),
    ]
    alone = [llm.chat(MESSAGES, params=one) for one in params]
    config = EngineConfig(max_num_seqs=4, num_draft_tokens=drafts)
    other = LLM(llm.engine.model, llm.tokenizer, llm.format, engine_config=config)
    streams = [other.stream(MESSAGES, params=one) for one in params]
    for stream in streams:
        list(stream)
    together = [stream.finish() for stream in streams]
    assert [said(one) for one in together] == [said(one) for one in alone]
    assert [one.reply for one in together] == [one.reply for one in alone]
    if drafts:
        assert other.engine.stats.num_accepted_tokens > 0


@pytest.mark.parametrize("cut", [1, 12, 25, 60])
def test_an_answer_taken_up_again_goes_on_in_its_grammar(llm: LLM, cut: int) -> None:
    params = replace(FREE, seed=9, json_schema=SCHEMA, thinking_budget=20)
    whole = llm.chat(MESSAGES, params=params)
    assert whole.finish_reason == "stop"
    again = llm.chat(MESSAGES, params=params, prefix_ids=whole.answer_ids[:cut])
    assert again.answer_ids == whole.answer_ids
    assert_follows(again.reply, json.loads(SCHEMA))


def test_a_thought_that_owes_an_answer_does_not_end_the_turn(llm: LLM) -> None:
    params = replace(FREE, choice=("yes", "no"), thinking_budget=250)
    num_ends = 0
    for seed in range(5, 10):
        free = thoughtful(llm, replace(params, seed=seed, choice=()))
        held = thoughtful(llm, replace(params, seed=seed))
        assert held.reply.content in params.choice
        if not free.reply.is_thinking_closed and free.finish_reason == "stop":
            end = len(free.tokens) - 1
            assert said(held)[:end] == said(free)[:end]
            num_ends += 1
    assert num_ends > 0


def test_m1_may_think_first_or_answer_at_once(llm: LLM) -> None:
    if llm.format.thinking_open_in_prompt:
        return
    params = replace(FREE, json_schema=SCHEMA, thinking_budget=4, max_tokens=900)
    kinds = set()
    for seed in range(12):
        completion = llm.chat(MESSAGES, params=replace(params, seed=seed))
        assert completion.finish_reason == "stop"
        assert_follows(completion.reply, json.loads(SCHEMA))
        kinds.add(bool(completion.usage.num_thinking_tokens))
    assert kinds == {True, False}


def test_a_tool_block_in_a_thought_leads_to_the_answer_where_no_call_may_be(llm: LLM) -> None:
    assert llm.format.calls is not None
    opening = llm.format.calls.block
    params = replace(FREE, json_schema=SCHEMA, max_tokens=900)
    start = "" if llm.format.thinking_open_in_prompt else "<think>"
    end = "" if llm.format.calls.ends_thought else "</think>"
    for seed in range(4):
        forced_ids = llm.tokenizer.encode(f"{start}Let me {opening}{end}")
        completion = llm.chat(MESSAGES, params=replace(params, seed=seed), forced_ids=forced_ids)
        assert completion.finish_reason == "stop"
        assert completion.reply.thinking.startswith("Let me ")
        assert is_valid(json.loads(completion.reply.content), json.loads(SCHEMA))
        assert not completion.reply.tool_calls


def test_with_strict_tools_a_constrained_answer_may_be_calls_instead(llm: LLM) -> None:
    assert llm.format.calls is not None
    opening = llm.format.calls.block
    params = replace(FREE, choice=("yes", "no"), strict_tools=True, max_tokens=900)
    start = "" if llm.format.thinking_open_in_prompt else "<think>"
    kinds = set()
    for seed in range(8):
        forced_ids = llm.tokenizer.encode(f"{start}Hm\n</think>\n\n" + opening * (seed % 2))
        completion = llm.chat(
            MESSAGES, tools=TOOLS, params=replace(params, seed=seed), forced_ids=forced_ids
        )
        reply = completion.reply
        if completion.finish_reason == "stop":
            assert not reply.problems
            assert (reply.content in params.choice) != bool(reply.tool_calls)
            kinds.add(bool(reply.tool_calls))
    assert kinds == {True, False}


def test_a_choice_that_spells_the_end_of_the_turn_is_made_whole(llm: LLM) -> None:
    choice = (f"yes{llm.format.end_of_turn}no", llm.format.end_of_turn)
    for seed in range(4):
        params = replace(FREE, choice=choice, seed=seed, thinking_budget=2)
        assert llm.chat(MESSAGES, params=params).reply.content in choice


def test_an_answer_that_is_cut_says_so(llm: LLM) -> None:
    params = replace(FREE, json_schema=SCHEMA, thinking_budget=0, max_tokens=20)
    completion = thoughtful(llm, params)
    assert completion.finish_reason == "length"
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(completion.reply.content)


def test_what_is_forced_against_the_grammar_lifts_it(
    llm: LLM, caplog: pytest.LogCaptureFixture
) -> None:
    params = replace(FREE, choice=("yes",), max_tokens=8)
    completion = llm.generate("Hello", params=params, forced_ids=llm.tokenizer.encode("no"))
    assert completion.reply.content.startswith("no")
    assert len(completion.tokens) == 8
    assert "a forced token breaks the grammar" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"json_schema": "{"}, "json_schema is not JSON: Expecting"),
        ({"json_schema": "[]"}, "json_schema is \\[\\], it must be a JSON Schema: an object"),
        (
            {"json_schema": '{"type": "objekt"}'},
            "json_schema cannot be followed: the schema has the type",
        ),
        (
            {"json_schema": '{"contains": {}}'},
            "json_schema cannot be followed: the schema has contains,",
        ),
        (
            {"json_schema": '{"x-guidance": 5}'},
            "json_schema .*x-guidance is 5, it must be an object",
        ),
        ({"json_schema": '{"$ref": "#"}'}, ".* has \\$ref '#', which only refers to itself"),
        (
            {"json_schema": '{"required": ["a"], "properties": {"a": {"$ref": "#"}}}'},
            "json_schema cannot be followed: the schema allows no value that has an end",
        ),
        (
            {"json_schema": '{"minimum": 5, "maximum": 4}'},
            "json_schema cannot be followed: .*no val",
        ),
        ({"json_schema": f'{{"minimum": 1{"0" * 400}}}'}, ".* has minimum 1000.* of 64 bits"),
        (
            {"json_schema": f'{{"minimum": 1{"0" * 5000}}}'},
            "json_schema is not JSON: it has a numb",
        ),
        ({"json_schema": '{"maxLength": 1e400}'}, ".* maxLength inf, it must be a whole number"),
        ({"json_schema": '{"enum": ["\\ud800"]}'}, "json_schema has half a surrogate pair in it"),
        ({"json_schema": '{"items":' * 3000 + "{}" + "}" * 3000}, "json_schema .* nested too deep"),
        ({"regex": "(?:a?){3000}a{3000}"}, "regex cannot be followed: it is too large for the m"),
        ({"regex": r"[^\x00-\x{10FFFF}]"}, "regex cannot be followed: no text fits it"),
        ({"regex": r"\n+yes"}, "regex begins with a newline, no answer of minimax_m. can"),
        ({"regex": "\ud800"}, "regex has half a surrogate pair in it"),
        (
            {"choice": ("yes", "\nno")},
            r"choice has '\\nno' in it, no answer of minimax_m. can begin",
        ),
        ({"choice": ("\udfff",)}, "choice has half a surrogate pair in it"),
        ({"json_schema": '{"const": "<think>"}'}, "json_schema has <think> in it, no answer of"),
        ({"regex": "[a"}, "regex cannot be followed: .* unclosed character class"),
        ({"regex": "a", "choice": ("a",)}, "regex and choice are given, an answer can follow"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos goes on past the end that regex leads to"),
        ({"choice": ("",)}, "choice is \\('',\\), it must have no empty text"),
        ({"choice": ("a</think>",)}, "choice has </think> in it, no answer of minimax_m. can hold"),
        ({"choice": "yes"}, "choice is 'yes', it must be a tuple of str"),
        ({"regex": 3}, "regex is 3, it must be text or none"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_sentence(
    llm: LLM, wrong: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}") as error:
        llm.stream(MESSAGES, params=replace(FREE, **wrong))
    assert "\n" not in str(error.value)
    assert not llm.engine.has_unfinished


def test_a_tag_in_a_description_is_no_tag_in_the_answer(llm: LLM) -> None:
    schema = json.dumps({"const": "x", "description": "after </think>", "examples": ["<think>"]})
    params = replace(FREE, json_schema=schema, thinking_budget=3)
    assert thoughtful(llm, params).reply.content == '"x"'


def test_a_tool_that_cannot_be_followed_is_refused(llm: LLM) -> None:
    tool = Tool("f", parameters={"properties": {"a": {"type": "array", "contains": {}}}})
    with pytest.raises(
        ValueError, match=r"^strict_tools: the schema of tool f cannot be followed: a has"
    ):
        llm.stream(MESSAGES, tools=[tool], params=replace(FREE, strict_tools=True))


@pytest.mark.parametrize("key", ["properties", "anyOf", "$defs"])
def test_a_tool_nested_too_deeply_is_refused_in_one_sentence(llm: LLM, key: str) -> None:
    schema: Any = {"type": "string"}
    for _ in range(100_000):
        schema = [schema] if key == "anyOf" else {key: schema}
    tool = Tool("f", parameters={"type": "object", "properties": {"x": {key: schema}}})
    for prompt in (None, Prompt((1, 2, 3))):
        with pytest.raises(ValueError, match=r"nested deeper than 100 levels$") as error:
            llm.chat(MESSAGES, tools=[tool], params=replace(FREE, strict_tools=True), prompt=prompt)
        assert "\n" not in str(error.value)


def test_tools_of_a_template_cannot_be_strict(llm: LLM) -> None:
    template = TemplateFormat("{{ messages }}", {"eos_token": llm.format.end_of_turn})
    other = LLM(llm.engine.model, llm.tokenizer, template)
    with pytest.raises(ValueError, match=r"^strict_tools is on, the format template does not tell"):
        other.stream(MESSAGES, tools=TOOLS, params=replace(FREE, strict_tools=True))
    completion = other.chat(MESSAGES, params=replace(FREE, choice=("<think>",)))
    assert completion.reply.content == "<think>"


# With the real vocabulary: tags of one id and of many, ids that close a tag and go on.


@pytest.fixture(scope="module")
def real() -> Vocabulary:
    return Vocabulary(real_tokenizer(), vocab_size=200_064, eos_token_ids=[200_020])


def feed(guide: Grammar, vocabulary: Vocabulary, text: str) -> None:
    """Takes a text, each id of which must be allowed; looking ahead says the same."""
    ids = vocabulary.tokenizer.encode(text)
    ahead = guide.masks(ids)
    assert len(ahead) == len(ids) + 1
    for place, token_id in enumerate(ids):
        (mask,) = guide.masks([])
        before = ahead[place]
        assert (mask is None) == (before is None)
        if mask is not None and before is not None:
            assert mask.allowed[token_id], (text, vocabulary.tokenizer.decode(ids[: place + 1]))
            assert mask.redraw_only == before.redraw_only
            assert (mask.allowed == before.allowed).all()
        guide.accept(token_id)


def allowed(guide: Grammar, vocabulary: Vocabulary) -> set[str] | None:
    (mask,) = guide.masks([])
    if mask is None:
        return None
    return {vocabulary.tokenizer.decode([int(token_id)]) for token_id in mask.allowed.nonzero()[0]}


def guide_of(real: Vocabulary, format: str, tools: Sequence[Tool] = (), **options: Any) -> Grammar:
    params = SamplingParams(**options)
    guide = make_grammar(real, params, format=get_format(format), tools=tuple(tools))
    assert guide is not None
    return guide


def test_real_m2_closes_its_thought_with_one_id(real: Vocabulary) -> None:
    guide = guide_of(real, "minimax_m2", json_schema='{"type": "object"}')
    for text in ("So <b>2</b> </thinking", "> and </th", "ink"):
        feed(guide, real, text)
        assert allowed(guide, real) is None or len(allowed(guide, real) or ()) > 100_000
    guide.accept(200_051)
    assert allowed(guide, real) == {"{", '{"', "{}", "{\n", "\n", "\n\n"}
    feed(guide, real, '\n\n{"a": [1, "</b> </thin')
    assert "king" in (allowed(guide, real) or ())
    feed(guide, real, 'g"]}')
    assert allowed(guide, real) == {"[e~["}


def test_real_m1_closes_its_thought_with_what_may_follow(real: Vocabulary) -> None:
    guide = guide_of(real, "minimax_m1", json_schema='{"type": "object"}')
    plain = {*real.tokenizer.encode_plain("<think>"), *real.tokenizer.encode_plain("</think>")}
    assert len(plain) > 3
    assert "<" in (allowed(guide, real) or ())
    for token_id in real.tokenizer.encode_plain("<think>\nHm. </think"):
        (mask,) = guide.masks([])
        assert mask is None or mask.allowed[token_id]
        guide.accept(token_id)
    closing = allowed(guide, real)
    assert closing is not None
    assert {">", ">\n", ">\n\n", "ing", " x"} <= closing
    assert not {'>"', ">(", ">{"} & closing
    for token_id in real.tokenizer.encode_plain(">\n"):
        guide.accept(token_id)
    assert allowed(guide, real) == {"{", '{"', "{}", "{\n", "\n"}


@pytest.mark.parametrize("name", ["minimax_m1", "minimax_m2"])
def test_what_a_real_model_says_in_its_format_is_allowed(real: Vocabulary, name: str) -> None:
    format = get_format(name)
    call = ToolCall("look up", {"query": "a <b> é", "kind": "web", "limit": 7, "where": {"a": "x"}})
    turns: list[Message] = [
        Message("assistant", "Well, let me see.", "First\nthink", (call, ToolCall("stop", {}))),
        Message("assistant", "", "Think", (call,)),
    ]
    for turn in turns:
        prompt = [Message("user", "Hello")]
        whole = format.render([*prompt, turn], TOOLS, add_generation_prompt=False)
        head = format.render(prompt, TOOLS)
        head = head if whole.startswith(head) else head[: head.rindex("<think>")]
        said_text = whole[len(head) :].removesuffix(f"{format.end_of_turn}\n")
        feed(guide_of(real, name, TOOLS, strict_tools=True), real, said_text)
