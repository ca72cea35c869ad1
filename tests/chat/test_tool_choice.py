"""Tool choice: calls that must come, calls that must not, and which and how many may."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.chat import Completion, Reply, TemplateFormat, Tokenizer, Tool, Vocabulary, get_format
from fulmen.engine import EngineConfig
from fulmen.llm import LLM
from fulmen.sampling import SamplingParams
from tests.chat.test_grammar import allowed, feed, guide_of, said
from tests.chat.test_grammar import real as real  # the fixture
from tests.examples import examples
from tests.models.helpers import packed_model, tiny_m1, tiny_m2
from tests.tiny import write_checkpoint

MESSAGES = [{"role": "user", "content": "Hello"}]
FREE = SamplingParams(max_tokens=250, temperature=1.0, top_k=None, top_p=1.0)
TOOLS = [
    Tool("look up", parameters={
        "type": "object",
        "properties": {"query": {"type": "string", "maxLength": 6}, "limit": {"type": "integer"}},
        "required": ["query"],
    }),
    Tool("stop"),
    Tool("mcp__files.read-all", parameters={"properties": {"at": {"type": "object"}}}),
]  # fmt: skip
NAMES = [tool.name for tool in TOOLS]


@pytest.fixture(scope="module", params=["m1", "m2"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = write_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    tokenizer, format = Tokenizer.from_folder(folder), get_format(f"minimax_{request.param}")
    sizes = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 4096}
    model = packed_model(tiny_m1(**sizes) if request.param == "m1" else tiny_m2(**sizes))
    config = EngineConfig(max_num_seqs=4, num_draft_tokens=3)
    return LLM(model, tokenizer, format, engine_config=config)


def thought_of(llm: LLM, text: str) -> list[int]:
    """An answer that begins with a thought, which is closed."""
    opening = "" if llm.format.thinking_open_in_prompt else "<think>\n"
    return llm.tokenizer.encode(f"{opening}{text}{llm.format.thinking_forced_end}")


def block_of(llm: LLM) -> str:
    assert llm.format.calls is not None
    return llm.format.calls.block


def ask(
    llm: LLM, params: SamplingParams, *, tools: Sequence[Any] = TOOLS, **rest: Any
) -> Completion:
    return llm.chat(MESSAGES, tools=tools, params=params, **rest)


def assert_calls(reply: Reply, names: Sequence[str], most: int | None) -> None:
    assert reply.tool_calls, reply
    assert {call.name for call in reply.tool_calls} <= set(names)
    assert not reply.content
    assert most is None or len(reply.tool_calls) <= most
    for problem in reply.problems:  # nothing but arguments that the tool does not declare, or twice
        assert "does not declare" in problem or "the first value counts" in problem, problem


@given(
    st.sets(st.sampled_from(NAMES)),
    st.booleans(),
    st.sampled_from([None, 1, 2]),
    st.sampled_from([None, 0, 5, 40]),
    st.integers(0, 10**6),
)
@settings(max_examples=examples(10), deadline=None)
def test_a_required_call_comes_whole_and_nothing_else_does(
    llm: LLM, names: set[str], is_strict: bool, most: int | None, budget: int | None, seed: int
) -> None:
    allowed_tools = tuple(sorted(names))
    params = replace(
        FREE, seed=seed, tool_choice="required", allowed_tools=allowed_tools, max_calls=most,
        strict_tools=is_strict, thinking_budget=budget,
    )  # fmt: skip
    # A random thought is long: it is given, but for the budgets that end it.
    forced = thought_of(llm, "Hm.") if budget is None else []
    completion = ask(llm, params, forced_ids=forced)
    if completion.finish_reason == "stop":
        assert_calls(completion.reply, allowed_tools or NAMES, most)
    else:
        assert completion.finish_reason == "length"
        assert not completion.reply.content.strip()


def test_most_required_calls_come_to_their_end(llm: LLM) -> None:
    for is_strict in (True, False):
        reasons = []
        for seed in range(12):
            params = replace(
                FREE, seed=seed, tool_choice="required", allowed_tools=("stop",), max_calls=1,
                strict_tools=is_strict,
            )  # fmt: skip
            completion = ask(llm, params, forced_ids=thought_of(llm, "Hm."))
            reasons.append(completion.finish_reason)
            if completion.finish_reason == "stop":
                assert_calls(completion.reply, ["stop"], 1)
        assert reasons.count("stop") >= 4, reasons


@pytest.mark.parametrize("is_strict", [False, True])
def test_no_call_comes_where_none_may(llm: LLM, is_strict: bool) -> None:
    block = block_of(llm)
    for seed in range(8):
        params = replace(FREE, seed=seed, tool_choice="none", strict_tools=is_strict, max_tokens=60)
        # All of the tag but its last byte, where that is no id of its own
        start = llm.tokenizer.encode_plain(block[:-1]) if seed % 2 else []
        completion = ask(llm, params, forced_ids=[*thought_of(llm, "Hm."), *start])
        assert not completion.reply.tool_calls
        text = llm.tokenizer.decode(completion.answer_ids)
        assert block not in text
    masked = llm.chat(MESSAGES, tools=TOOLS, params=replace(FREE, seed=1, tool_choice="none"))
    free = llm.chat(MESSAGES, tools=TOOLS, params=replace(FREE, seed=1))
    if block not in llm.tokenizer.decode(free.answer_ids):
        assert said(masked) == said(free)  # nothing else changes
    assert masked.prompt_ids == free.prompt_ids


def test_with_one_call_at_most_there_is_no_second(llm: LLM) -> None:
    block = block_of(llm)
    num_calls = 0
    for seed in range(10):
        params = replace(FREE, seed=seed, max_calls=1, allowed_tools=("stop",), max_tokens=150)
        forced = thought_of(llm, "Hm.") + llm.tokenizer.encode(block)
        completion = ask(llm, params, forced_ids=forced)
        assert {call.name for call in completion.reply.tool_calls} <= {"stop"}
        assert len(completion.reply.tool_calls) <= 1
        num_calls += len(completion.reply.tool_calls)
        assert llm.tokenizer.decode(completion.answer_ids).count(block) == 1
    assert num_calls > 3


def test_a_required_call_is_the_same_with_guesses_alone_and_taken_up_again(llm: LLM) -> None:
    other = LLM(llm.engine.model, llm.tokenizer, llm.format)
    for choice in ("required", "none", "auto"):
        params = replace(
            FREE, seed=5, tool_choice=choice, allowed_tools=("stop", "look up"),
            max_calls=2, thinking_budget=30, max_tokens=120, top_k=5, logprobs=2,
        )  # fmt: skip
        forced = thought_of(llm, "Hm.")
        whole = ask(llm, params, forced_ids=forced)
        assert said(ask(other, params, forced_ids=forced)) == said(whole)
        for cut in (1, 20, len(whole.tokens) - 1):
            again = ask(llm, params, prefix_ids=whole.answer_ids[:cut], forced_ids=forced[cut:])
            assert again.answer_ids == whole.answer_ids
            assert again.reply == whole.reply


def test_forced_ids_win(llm: LLM) -> None:
    calls = {"minimax_m1": '\n{"name": "other", "arguments": {"a": "</x>"}}\n</tool_calls>'}
    call = calls.get(
        llm.format.name,
        '\n<invoke name="other">\n<parameter name="a">x <parameter name="b"></parameter>'
        "\n</invoke>\n</minimax:tool_call>",
    )
    text = block_of(llm) + call
    expected = llm.format.parse(llm.tokenizer.decode(thought_of(llm, "Hm.")) + text, TOOLS)
    for fields in ({"tool_choice": "none"}, {"allowed_tools": ("stop",)}, {"max_calls": 1}):
        end = llm.tokenizer.token_id(llm.format.end_of_turn)
        assert end is not None
        forced = [*thought_of(llm, "Hm."), *llm.tokenizer.encode(text), end]
        completion = ask(llm, replace(FREE, **fields), forced_ids=forced)
        assert completion.finish_reason == "stop"
        assert completion.reply == expected


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"tool_choice": "any"}, "tool_choice is 'any', it must be auto, none or required"),
        ({"max_calls": 0}, "max_calls is 0, it must be 1 or more, or none"),
        ({"max_calls": 10**6}, "max_calls is 1000000, it must be at most 128, or none"),
        ({"allowed_tools": ["stop"]}, r"allowed_tools is \['stop'\], it must be a tuple of str"),
        ({"allowed_tools": ("",)}, r"allowed_tools is \(''.*, it must have no empty text"),
        ({"tool_choice": "required", "regex": "a"}, "tool_choice is required, .* follow regex"),
        ({"tool_choice": "required", "ignore_eos": True}, "ignore_eos .* that tool_choice leads"),
        ({"allowed_tools": ("nope",)}, "allowed_tools has 'nope' in it, only look up, stop, mcp__"),
    ],
)
def test_what_cannot_be_chosen_is_refused_in_one_sentence(
    llm: LLM, fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        ask(llm, replace(FREE, **fields))
    assert not llm.engine.has_unfinished


def test_a_call_is_required_only_where_there_are_calls(llm: LLM) -> None:
    required = replace(FREE, tool_choice="required", max_tokens=8)
    with pytest.raises(ValueError, match=r"^tool_choice is required, and no tool is declared$"):
        ask(llm, required, tools=[])
    with pytest.raises(ValueError, match=r"^allowed_tools has 'f' in it, no tool is declared$"):
        ask(llm, replace(FREE, allowed_tools=("f",)), tools=[])
    with pytest.raises(ValueError, match=r"^tool_choice is required, text that is continued"):
        llm.generate("Hello", params=required)
    with pytest.raises(ValueError, match=r"^a tool is named 'a.b', which no tag"):
        ask(llm, required, tools=[Tool('a"b')])
    template = TemplateFormat("{{ messages }}", {"eos_token": llm.format.end_of_turn})
    other = LLM(llm.engine.model, llm.tokenizer, template)
    with pytest.raises(ValueError, match=r"^tool_choice is required, the format template does"):
        ask(other, required)
    plain = replace(FREE, seed=4, max_tokens=8)
    for fields in ({"tool_choice": "none"}, {"max_calls": 1}, {"allowed_tools": ("stop",)}):
        held = ask(other, replace(plain, **fields))
        assert said(held) == said(ask(other, plain))
    assert ask(llm, replace(plain, max_calls=1), tools=[]).finish_reason in ("length", "stop")


# With the real vocabulary


@pytest.mark.parametrize("name", ["minimax_m1", "minimax_m2"])
def test_the_real_models_say_their_calls_as_they_like(real: Vocabulary, name: str) -> None:
    """Any arguments in any order, but only names that are allowed."""
    format = get_format(name)
    start = "" if format.thinking_open_in_prompt else "<think>\n"
    thought = f"{start}Hm.{format.thinking_forced_end}"
    if name == "minimax_m1":
        calls = [
            '{"name": "look up", "arguments": {"zzz": [1, {"a": null}], "limit": "<b>"}}\n',
            '{"name": "stop", "arguments": {}}\n',
        ]
        block, end = "<tool_calls>\n", "</tool_calls>"
    else:
        calls = [
            '<invoke name="look up">\n<parameter name="zzz">[1, {"a": null}]</parameter>\n'
            '<parameter name="limit"><b> é\n</parameter>\n</invoke>\n',
            '<invoke name="stop">\n</invoke>\n',
        ]
        block, end = "<minimax:tool_call>\n", "</minimax:tool_call>"
    options: dict[str, Any] = {"tool_choice": "required"}
    guide = guide_of(real, name, TOOLS, **options)
    feed(guide, real, thought + block + "".join(calls) + end)
    assert allowed(guide, real) == {"[e~["}
    guide = guide_of(real, name, TOOLS, max_calls=1, **options)
    feed(guide, real, thought + "\n" + block + calls[0] + end[:2])
    guide = guide_of(real, name, TOOLS, allowed_tools=("stop",), **options)
    feed(guide, real, thought + block + calls[1] + calls[1])
    guide = guide_of(real, name, TOOLS, allowed_tools=("stop",))
    feed(guide, real, f"{thought}Well.\n{block}{calls[1]}{end}")
    feed(guide, real, "\nAnd `<think>` is <too")
    feed(guide, real, f"</think>\n{block}{calls[1]}{end}")
    other = calls[1].replace("stop", "look up")
    guide = guide_of(real, name, TOOLS, allowed_tools=("stop",))
    for token_id in real.tokenizer.encode(f"{thought}Well.\n{block}{other}"):
        (mask,) = guide.masks([])
        if mask is not None and not mask.allowed[token_id]:
            break
        guide.accept(token_id)
    else:
        raise AssertionError("a tool that is not allowed was called")


@pytest.mark.parametrize("name", ["minimax_m1", "minimax_m2"])
def test_no_id_of_the_real_vocabulary_opens_calls_where_none_may_be(
    real: Vocabulary, name: str
) -> None:
    format = get_format(name)
    assert format.calls is not None
    thought = f"Hm.{format.thinking_forced_end}"
    before = [thought if format.thinking_open_in_prompt else f"<think>\n{thought}", "Well, "]
    before += ["" if format.thinking_open_in_prompt else f"<think>{thought}`<think>`"]
    for text in before:
        for spelled in (real.tokenizer.encode, real.tokenizer.encode_plain):
            guide = guide_of(real, name, TOOLS, tool_choice="none")
            feed(guide, real, text)
            for token_id in spelled(format.calls.block):
                (mask,) = guide.masks([])
                if mask is not None and not mask.allowed[token_id]:
                    break
                guide.accept(token_id)
            else:
                raise AssertionError((text, spelled))
