"""Schemas of tools as servers send them: one reading for the parser and both formats' grammars."""

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from llguidance import LLMatcher, LLTokenizer

from fulmen.chat import ChatFormat, Message, Tool, ToolCall, Vocabulary, get_format, make_grammar
from fulmen.chat.constraints import CIRCULAR
from fulmen.chat.expressions import integers, matches, text_without, whole_text
from fulmen.chat.schemas import Document
from fulmen.chat.validation import as_json
from fulmen.sampling import SamplingParams
from tests.chat.helpers import real_tokenizer
from tests.examples import examples

M1, M2 = get_format("minimax_m1"), get_format("minimax_m2")
BYTES = LLTokenizer("byte")
STRICT = SamplingParams(strict_tools=True)


@pytest.fixture(scope="module")
def real() -> Vocabulary:
    return Vocabulary(real_tokenizer(), vocab_size=200_064, eos_token_ids=[200_020])


def block(format: ChatFormat, arguments: dict[str, Any]) -> str:
    """A block of one call of the tool f, after its opening tag, as the format writes it."""
    turn = Message("assistant", "", None, (ToolCall("f", arguments),))
    text = format.render([Message("user", "x"), turn], (), add_generation_prompt=False)
    assert format.calls is not None
    return text[text.rindex(format.calls.block) :].removesuffix(f"{format.end_of_turn}\n")


def read(format: ChatFormat, arguments: dict[str, Any], tool: Tool) -> dict[str, Any] | None:
    """Return what the parser makes of a call that the format wrote; None if it is in doubt."""
    reply = format.parse(block(format, arguments), [tool], thinking_open=False)
    return reply.tool_calls[0].arguments if reply.tool_calls else None


def matcher_of(grammar: str) -> LLMatcher:
    grammar = re.sub(r" \| <\[[0-9]+\]>", "", grammar)  # the one added token is no byte
    return LLMatcher(BYTES, grammar, log_level=0)


def accepts(format: ChatFormat, grammar: str, arguments: dict[str, Any]) -> bool:
    """Return whether a grammar takes the block of a call, byte by byte."""
    assert format.calls is not None
    matcher = matcher_of(grammar)
    assert not matcher.is_error(), matcher.get_error()
    text = list(block(format, arguments).removeprefix(format.calls.block).encode())
    return matcher.try_consume_tokens(text) == len(text) and matcher.is_accepting()


# Random schemas.

WORDS = ("", "a", "ab", "abc", "12", "3", "-4", "null", "true", "x y", "[1]", "{", '{"a": 1}')
TEXTS = st.sampled_from([*WORDS, "é\n", "2024-01-31", "<b>", "A-1", "auto", "longer text here"])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-12, 12), st.sampled_from([0.5, -1.25, 3.5]), TEXTS
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("abc"), inner, max_size=2)
    ),
    max_leaves=4,
)
NAMES = ["null", "boolean", "integer", "number", "string"]
LEAVES = st.one_of(
    st.sampled_from(NAMES).map(lambda name: {"type": name}),
    st.lists(st.sampled_from(NAMES), min_size=2, max_size=2, unique=True).map(
        lambda names: {"type": names}
    ),
    st.integers(-10, 5).map(lambda n: {"type": "integer", "minimum": n, "maximum": n + 9}),
    st.integers(-3, 3).map(lambda n: {"type": "number", "exclusiveMinimum": n}),
    st.integers(0, 4).map(lambda n: {"type": "string", "minLength": n // 2, "maxLength": n}),
    st.sampled_from(["^[a-z]+$", "[0-9]", "^a|b$", "^.{2}$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
    st.lists(SCALARS, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    VALUES.map(lambda value: {"const": value}),
    st.just({}),
    st.sampled_from("pq").map(lambda name: {"$ref": f"#/$defs/{name}"}),
)


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any], names: str = "abc") -> dict[str, Any]:
    properties = draw(st.dictionaries(st.sampled_from(names), inner, max_size=2))
    required = draw(st.lists(st.sampled_from(names), max_size=2, unique=True))
    schema = {"type": "object", "properties": properties, "required": required}
    others = draw(st.sampled_from([None, None, True, False]))
    return schema if others is None else schema | {"additionalProperties": others}


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(
            st.sampled_from(["anyOf", "oneOf", "allOf"]), st.lists(inner, min_size=1, max_size=3)
        ).map(lambda pair: {pair[0]: pair[1]}),
        st.tuples(inner, st.integers(0, 3)).map(
            lambda pair: {"type": "array", "items": pair[0], "maxItems": pair[1]}
        ),
        objects(inner),
    ),
    max_leaves=5,
)
DEFINITIONS = st.fixed_dictionaries({"p": LEAVES, "q": SCHEMAS})
PARAMETERS = st.one_of(
    st.tuples(objects(SCHEMAS, "xy"), DEFINITIONS).map(lambda pair: pair[0] | {"$defs": pair[1]}),
    st.tuples(
        st.sampled_from(["anyOf", "oneOf", "allOf"]),
        st.lists(objects(SCHEMAS, "xy"), min_size=1, max_size=3),
        DEFINITIONS,
    ).map(lambda parts: {"type": "object", parts[0]: parts[1], "$defs": parts[2]}),
)
ARGUMENTS = st.dictionaries(st.sampled_from("xyw"), VALUES, max_size=3)


@given(PARAMETERS, st.lists(ARGUMENTS, min_size=6, max_size=6))
@settings(max_examples=examples(500), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_strict_tools_of_both_formats_take_the_same_values_and_only_valid_ones(
    real: Vocabulary, parameters: dict[str, Any], calls: list[dict[str, Any]]
) -> None:
    tool = Tool("f", parameters=parameters)
    grammars, problems = [], []
    for format in (M1, M2):
        try:
            grammars.append(format.call_grammar((tool,), real.tokenizer))
        except ValueError as error:
            problems.append(str(error))
    assert len(problems) in (0, 2)
    if problems:
        assert problems[0] == problems[1]
        assert problems[0].startswith("strict_tools: the schema of tool f cannot be followed: ")
        return
    if any(CIRCULAR in matcher_of(grammar).get_error() for grammar in grammars):
        return  # make_grammar refuses it
    is_valid = Draft202012Validator(parameters).is_valid
    for arguments in calls:
        is_m1, is_m2 = (
            accepts(format, grammar, arguments)
            for format, grammar in zip((M1, M2), grammars, strict=True)
        )
        meant = read(M2, arguments, tool)  # another value may be written with the same text
        assert not is_m1 or is_valid(arguments)
        assert not is_m2 or is_valid(meant), meant
        if json.dumps(meant) == json.dumps(arguments):
            assert is_m1 == is_m2


# Schemas as servers send them.

AS_SENT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "int"}, {"type": "integer"}),
    ({"type": "Dict", "properties": None, "required": None}, {"type": "object"}),
    ({"type": "object", "properties": []}, {"type": "object"}),
    ({"type": "str", "maxLength": None, "minLength": 5.0}, {"type": "string", "minLength": 5}),
    ({"type": "string", "maxLength": "7"}, {"type": "string", "maxLength": 7}),
    ({"type": "string", "nullable": True}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
    ({"type": "string", "nullable": False, "enum": []}, {"type": "string"}),
    ({"type": ["string", None]}, {"type": ["null", "string"]}),
    ({"type": "any", "description": "x", "default": 1, "x-order": 2}, {}),
    ({"properties": {"a": True}}, {"type": "object", "properties": {"a": {}}}),
    (
        {"properties": {"a": "string", "b": {"type": "bool", "required": True}}},
        {
            "type": "object",
            "properties": {"a": {"type": "string"}, "b": {"type": "boolean"}},
            "required": ["b"],
        },
    ),
    ({"required": "a"}, {"type": "object", "required": ["a"]}),
    (
        {"type": "integer", "minimum": 3, "exclusiveMinimum": True},
        {"type": "integer", "exclusiveMinimum": 3},
    ),
    (
        {"type": "list", "items": [{"type": "int"}], "additionalItems": False},
        {"type": "array", "prefixItems": [{"type": "integer"}], "items": False},
    ),
    ({"type": "array", "items": {}, "uniqueItems": False}, {"type": "array", "items": {}}),
    ({"const": None}, {"enum": [None]}),
    ({"type": "string", "const": None}, {"type": "string"}),
    ({"type": "integer", "enum": ["1", 2]}, {"type": "integer", "enum": [1, 2]}),
    ({"type": "boolean", "enum": ["true"]}, {"type": "boolean", "enum": [True]}),
    ({"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1}, {"type": "integer"}),
    ({"type": "object", "propertyNames": {"type": "string"}}, {"type": "object"}),
    ({"type": "object", "dependencies": {}, "if": {}}, {"type": "object"}),
    (
        {"type": "object", "unevaluatedProperties": False},
        {"type": "object", "additionalProperties": False},
    ),
    ({"type": "array", "items": []}, {"type": "array"}),
    (
        {"$ref": "#x", "$defs": {"a b": {"$anchor": "x", "type": "string"}}},
        {"$ref": "#/$defs/d0", "$defs": {"d0": {"type": "string"}}},
    ),
    (
        {"$ref": "#/$defs/a%20b", "$defs": {"a b": {"type": "string"}}},
        {"$ref": "#/$defs/d0", "$defs": {"d0": {"type": "string"}}},
    ),
    ({"anyOf": [], "allOf": None, "type": "number"}, {"type": "number"}),
]


@pytest.mark.parametrize(("sent", "meant"), AS_SENT)
def test_a_schema_is_read_as_it_is_meant(sent: dict[str, Any], meant: dict[str, Any]) -> None:
    document = Document(sent)
    assert not document.problems
    assert as_json(document, document.root) == meant


def properties(**schemas: Any) -> dict[str, Any]:
    return {"type": "object", "properties": schemas}


REFUSED: list[tuple[dict[str, Any], str]] = [
    (properties(a={"type": "objekt"}), "a has the type 'objekt', types are"),
    (properties(a={"type": "string", "maxLength": "many"}), "a has maxLength 'many', it must be"),
    (properties(a={"type": "string", "minLength": -1}), "a has minLength -1, it must be"),
    (properties(a={"type": "integer", "minimum": 10**30}), "a has minimum 1000"),
    (properties(a={"type": "number", "multipleOf": 0}), "a has multipleOf 0, it must be a number"),
    (properties(a={"type": "array", "uniqueItems": True}), "a has uniqueItems, which no answer"),
    (properties(a={"not": {"type": "string"}}), "a has not, which no answer can be held to"),
    (properties(a={"$ref": "#/$defs/x"}), "a has $ref '#/$defs/x', which points at nothing"),
    (properties(a={"$ref": "https://x.org/y"}), "a has $ref 'https://x.org/y', it must point"),
    (properties(a={"$ref": "#/properties/a"}), "a has $ref '#/properties/a', which only refers"),
    (properties(a={"type": "string", "pattern": "(?=x)y"}), "a has a pattern that cannot be"),
    (properties(a={"enum": ["\ud800"]}), "a has an enum that cannot be written"),
    (properties(a={"properties": 3}), "a has properties 3, they must be an object"),
    (properties(a={"anyOf": {}}), "a has anyOf {}, it must be a list of schemas"),
    (
        properties(a={"type": "string", "pattern": "^(([a-z]{1,100}){1,100}){1,100}$"}),
        "a has limits that fail: it is too large for the matcher",
    ),
    (
        properties(a={"allOf": [{"pattern": "^a$"}, {"pattern": "^b$"}]}),
        "a has limits that fail: ",
    ),
    (properties(a={"type": "string", "pattern": r"^[^\s\S]$"}), "a has limits that fail: "),
    (properties(a={"patternProperties": {"^x": {}}}), "a has patternProperties, which no answer"),
    (properties(a={"properties": {"\ud800": {}}}), "a has the name '\\ud800', which is no text"),
    (properties(a={"pattern": "\ud800"}), "a has a pattern that cannot be followed"),
    (properties(**{'a">b': {}}), 'a">b is a name that no tag'),
    (
        properties(
            a={"allOf": [{"prefixItems": [{"type": "integer"}]}, {"items": {"type": "string"}}]}
        ),
        "a has prefixItems beside other items",
    ),
    (properties(a=3), "a is 3, it must be a schema: an object"),
    (properties(a={"oneOf": [{"type": "string"}, {}]}), "a has a oneOf whose choices overlap"),
    (
        properties(a={"items": {"if": {}, "then": {"enum": [1]}}}),
        "a[] has if, which no answer can be held to",
    ),
    (
        properties(a={"$ref": "#/$defs/p"})
        | {
            "$defs": {
                "p": {
                    "type": "array",
                    "items": {
                        "allOf": [{}, {"type": "array", "maxItems": 2}, {"$ref": "#/$defs/p"}]
                    },
                }
            }
        },
        "a definition that refers to itself has to hold at once with another schema",
    ),
    ({"type": "string"}, "the schema must allow an object and nothing else"),
    ({"required": ["a"], "properties": {"a": {"$ref": "#"}}}, "the schema allows no value that"),
]


@pytest.mark.parametrize(("parameters", "sentence"), REFUSED)
def test_a_tool_that_cannot_be_strict_is_named_among_twenty(
    real: Vocabulary, parameters: dict[str, Any], sentence: str
) -> None:
    tools = [Tool(f"good_{i}", parameters=properties(a={"type": "string"})) for i in range(19)]
    tools.insert(7, Tool("bad", parameters=parameters))
    expected = re.escape(f"strict_tools: the schema of tool bad cannot be followed: {sentence}")
    for format in (M1, M2):
        with pytest.raises(ValueError, match=f"^{expected}") as error:
            make_grammar(real, STRICT, format=format, tools=tuple(tools))
        assert len(str(error.value)) < 300
        assert "\n" not in str(error.value)
        # The parser reads on: what it cannot read is text.
        assert format.parse(block(format, {}), tools, thinking_open=False).tool_calls


@pytest.mark.parametrize(
    "parameters",
    [
        {"oneOf": [properties(n={"type": "integer"}), properties(s={"type": "string"})]}
        | {"type": "object"},
        {"anyOf": [properties(n={"type": "integer"}), properties(s={"type": "string"})]},
        {"allOf": [properties(n={"type": "integer"}), properties(s={"type": "string"})]},
        {
            "$ref": "#/definitions/A",
            "definitions": {
                "A": {"$ref": "#/definitions/B"},
                "B": properties(n={"$ref": "#/definitions/C"}, s={"type": "string"}),
                "C": {"$ref": "#/definitions/D"},
                "D": {"type": "int"},
            },
        },
        {"type": "object", "additionalProperties": True},
        {"additionalProperties": {"type": ["integer", "string", "array"]}},
    ],
)
def test_arguments_are_typed_wherever_they_are_declared(parameters: dict[str, Any]) -> None:
    tool = Tool("f", parameters=parameters)
    for arguments in ({"n": 250}, {"s": "x"}):
        assert read(M2, arguments, tool) == arguments


def test_a_choice_made_before_tells_the_type_of_what_follows(real: Vocabulary) -> None:
    def choice(kind: str, type: str) -> dict[str, Any]:
        return {
            "properties": {"kind": {"const": kind}, "value": {"type": type}},
            "required": ["kind", "value"],
        }

    choices = [choice("count", "integer"), choice("name", "string"), choice("list", "array")]
    tool = Tool("f", parameters={"type": "object", "oneOf": choices})
    calls: list[dict[str, Any]] = [
        {"kind": "count", "value": 12},
        {"kind": "name", "value": "12"},
        {"kind": "list", "value": [12]},
    ]
    for arguments in calls:
        assert read(M2, arguments, tool) == arguments
        for format in (M1, M2):
            grammar = format.call_grammar((tool,), real.tokenizer)
            assert accepts(format, grammar, arguments)
    for format in (M1, M2):
        grammar = format.call_grammar((tool,), real.tokenizer)
        assert not accepts(format, grammar, {"kind": "count", "value": "many"})


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string", "format": "uri"}, "https://x.y/z"),
        ({"type": "string", "pattern": "^.+$"}, "a <b> c"),
        ({"type": "string", "pattern": r"^\S+$"}, "~/a>b"),
        ({"type": "string", "maxLength": 5}, "a\nb~"),
        ({"type": ["string", "null"], "maxLength": 5}, None),
        ({"enum": ["a b", "c>"]}, "c>"),
        ({"type": "array", "items": {"type": "string", "pattern": "^[a-z<>/]+$"}}, ["a<b>"]),
        ({"type": "object", "additionalProperties": {"type": "string"}}, {"a": "</b> ~"}),
        ({"anyOf": [{"type": "string", "maxLength": 9}, {"type": "array"}]}, ["</b>", "~"]),
    ],
)
def test_a_strict_call_is_written_id_by_id_to_its_end(
    real: Vocabulary, schema: dict[str, Any], value: Any
) -> None:
    tool = Tool("f", parameters=properties(a=schema) | {"required": ["a"]})
    for format in (M1, M2):
        guide = make_grammar(real, STRICT, format=format, tools=(tool,))
        assert guide is not None
        text = "</think>" * format.thinking_open_in_prompt + block(format, {"a": value})
        for token_id in real.tokenizer.encode(text):
            (mask,) = guide.masks([])
            assert mask is None or mask.allowed[token_id], real.tokenizer.decode([token_id])
            guide.accept(token_id)
        assert read(format, {"a": value}, tool) == {"a": value}


def test_a_json_string_in_a_call_holds_no_tag_of_the_call(real: Vocabulary) -> None:
    tool = Tool("f", parameters=properties(a={"type": "array"}) | {"required": ["a"]})
    guide = make_grammar(real, STRICT, format=M2, tools=(tool,))
    assert guide is not None
    text = f"</think>{block(M2, {'a': ['x</parameter']})}"
    for token_id in real.tokenizer.encode(text[: text.index("</parameter") + len("</parameter")]):
        guide.accept(token_id)
    (mask,) = guide.masks([])
    assert mask is not None
    texts = {real.tokenizer.decode([int(one)]) for one in mask.allowed.nonzero()[0]}
    assert "x" in texts
    assert not any(one.startswith(">") for one in texts)


@pytest.mark.parametrize("length", [1, 100, 4_000, 10**6])
def test_text_with_a_limit_is_written_to_its_end(real: Vocabulary, length: int) -> None:
    limits = {"type": "string", "minLength": 1, "maxLength": length}
    tool = Tool("f", parameters=properties(a=limits) | {"required": ["a"]})
    for format in (M1, M2):
        grammar = format.call_grammar((tool,), real.tokenizer)
        whole = ("Say <b>é</b> once more. " * (min(length, 30_000) // 24 + 1))[:length]
        assert accepts(format, grammar, {"a": whole})
        assert accepts(format, grammar, {"a": whole[:1]})
        assert not accepts(format, grammar, {"a": ""})
        if len(whole) == length:
            assert not accepts(format, grammar, {"a": f"{whole}x"})


# Expressions.

BOUNDS = st.one_of(st.none(), st.integers(-1200, 1200), st.integers(-12, 12))


@given(BOUNDS, BOUNDS, st.lists(st.integers(-1500, 1500), max_size=20))
def test_an_expression_of_whole_numbers_holds_those_in_its_range(
    low: int | None, high: int | None, numbers: list[int]
) -> None:
    if low is not None and high is not None:
        low, high = min(low, high), max(low, high)
    expression = re.compile(integers(low, high))
    edges = [edge + step for edge in (low or 0, high or 0) for step in (-1, 0, 1)]
    for number in (*numbers, *edges):
        is_in = (low is None or low <= number) and (high is None or number <= high)
        assert bool(expression.fullmatch(str(number))) == is_in


@given(st.text("<>/ab cd", max_size=30))
def test_text_without_tags_is_what_holds_none(text: str) -> None:
    tags = ("<ab>", "</ab>", "<a c", "</cd>")
    is_without = not any(tag in text for tag in tags)
    assert matches(text_without(tags), text) == is_without


PATTERNS = [
    "^[a-z]+$",
    "[0-9]",
    "^a|b$",
    "a|b",
    r"^\d{2}-\w+$",
    "(?i)^AB",
    r"[|]x",
    r"a\|b",
    "[]a]+$",
]


@given(st.sampled_from(PATTERNS), st.text("abAB01-|x]", max_size=6))
def test_an_expression_of_the_whole_text_finds_what_a_search_finds(pattern: str, text: str) -> None:
    assert matches(whole_text(pattern), text) == bool(re.search(pattern, text))
