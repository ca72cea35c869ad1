"""A thought and its budget: how it is led to its end, and that nothing of it leaks."""

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fulmen.chat import ChatRequest, CodePlace, Completion, Prompt, TokenBudget
from fulmen.engine import Choice, EngineConfig, TokenOutput
from fulmen.llm import LLM
from fulmen.sampling import SamplingParams
from fulmen.units import parse_count
from tests.examples import examples
from tests.tiny import write_checkpoint

MESSAGES = [{"role": "user", "content": "Hello"}]
TAGS = re.compile("</?(?:think|minimax:tool_call|tool_calls)>")


@pytest.fixture(scope="module", params=["m1", "m2"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return load(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def m2(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return load(tmp_path_factory.mktemp("m2-only"), "m2")


def load(folder: Path, kind: str) -> LLM:
    config = EngineConfig(max_num_seqs=16, num_draft_tokens=3)
    return LLM.load(str(write_checkpoint(folder, kind)), engine_config=config)


SCHEMAS = (
    '{"enum": ["yes", "no", 7]}',
    '{"type": "array", "items": {"type": "boolean"}, "maxItems": 3}',
    '{"type": "object", "properties": {"a": {"type": "string", "maxLength": 9}}, '
    '"required": ["a"], "additionalProperties": false}',
)


def thinking_ids(llm: LLM, text: str) -> list[int]:
    """An answer that has begun with a thought."""
    opening = "" if llm.format.thinking_open_in_prompt else "<think>\n"
    return llm.tokenizer.encode(opening + text)


def text_of(llm: LLM, completion: Completion) -> str:
    return llm.tokenizer.decode(completion.answer_ids)


def test_the_last_phrase_is_part_of_the_thought_and_of_its_budget(llm: LLM) -> None:
    phrase = llm.format.thinking_last_phrase
    params = SamplingParams(
        seed=1, thinking_budget=600, max_tokens=700, thinking_soft_end=1e-6, ignore_eos=True
    )
    completion = llm.chat(prompt=Prompt((1,)), params=params, prefix_ids=thinking_ids(llm, ""))
    assert completion.reply.thinking.endswith("\n\n" + phrase.strip())
    assert completion.reply.is_thinking_closed
    assert completion.usage.num_thinking_tokens <= 600
    assert phrase.strip() not in completion.reply.content


def test_the_end_gets_likelier_at_sentence_ends_and_only_there(m2: LLM) -> None:
    """Texts with one token left before the phrase: the closing tag is all but certain."""
    num_phrase = len(m2.tokenizer.encode("\n\n" + m2.format.thinking_last_phrase))
    ends = dict.fromkeys(("Yes.", "Yes. ", "So\n", "Is it? Yes!", "(It is.)"), True)
    for text, is_end in (ends | dict.fromkeys(("Yes", "It is 3.", "a,"), False)).items():
        prefix = m2.tokenizer.encode("x" * 700 + text)
        budget = len(prefix) + num_phrase + 1
        closed = 0
        for seed in range(10):
            params = SamplingParams(seed=seed, thinking_budget=budget, max_tokens=len(prefix) + 1)
            completion = m2.chat(prompt=Prompt((1,)), params=params, prefix_ids=prefix)
            ids = completion.answer_ids[len(prefix) :]
            closed += m2.tokenizer.decode(ids) == "</think>"
        assert (closed >= 8) == is_end, (text, closed)
        assert closed <= 2 or is_end, (text, closed)


class Biased:
    """Steers one request: its first token is drawn with a logit bias."""

    def __init__(self, bias: tuple[int, float] | None) -> None:
        self.bias = bias

    def ask(self, draft_ids: Sequence[int]) -> list[Choice]:
        return [Choice(logit_bias=self.bias)]

    def take(self, output: TokenOutput) -> bool:
        return False

    def fail(self, error: BaseException) -> None:
        raise error

    def abort(self) -> None:
        raise AssertionError


def test_a_biased_token_is_reported_as_likely_as_the_model_found_it(m2: LLM) -> None:
    end = m2.tokenizer.token_id("</think>")
    assert end is not None
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=20)
    outputs = []
    for bias in (None, (end, 50.0)):
        m2.engine.add_request([1, 2, 3], params, steering=Biased(bias))
        (output,) = (one for _ in range(9) for one in m2.engine.step())
        assert isinstance(output, TokenOutput)
        outputs.append(output)
    free, biased = outputs
    assert biased.token_id == end
    assert biased.logprob < free.logprob
    assert biased.top_logprobs == free.top_logprobs
    whole = dict(free.top_logprobs)
    assert biased.logprob == whole.get(end, biased.logprob)


def test_an_answer_that_was_stopped_goes_on_as_if_it_had_not_been(llm: LLM) -> None:
    random_ = random.Random(5)
    for _ in range(examples(25)):
        params = SamplingParams(
            seed=random_.randrange(100),
            thinking_budget=random_.choice([0, 3, 20, 700]),
            max_tokens=760 if random_.random() < 0.3 else 60,
            thinking_soft_end=random_.choice([0, 0.1, 0.9]),
        )
        opening = thinking_ids(llm, "")
        prompt = Prompt((1, 2))
        whole = llm.chat(prompt=prompt, params=params, prefix_ids=opening)
        at = random_.randrange(len(opening), len(whole.answer_ids) + 1)
        if at == len(whole.answer_ids):
            continue
        resumed = llm.chat(prompt=prompt, params=params, prefix_ids=whole.answer_ids[:at])
        assert resumed.answer_ids == whole.answer_ids
        assert [token.logprob for token in resumed.tokens] == [
            token.logprob for token in whole.tokens[at - len(opening) :]
        ]
        assert resumed.reply == whole.reply
        assert resumed.usage.num_thinking_tokens == whole.usage.num_thinking_tokens


def test_requests_share_a_budget(m2: LLM) -> None:
    shared = TokenBudget(50)
    params = SamplingParams(seed=2, max_tokens=40, ignore_eos=True)
    first = m2.chat(MESSAGES, params=replace(params, thinking_budget=20), budget=shared)
    assert (first.usage.num_thinking_tokens, shared.num_left) == (20, 30)
    together = m2.chat_many([ChatRequest(messages=MESSAGES, params=params, budget=shared)] * 3)
    assert sum(one.usage.num_thinking_tokens for one in together) == 30
    assert shared.num_left == 0
    assert all(one.reply.is_thinking_closed for one in together)
    assert m2.chat(MESSAGES, params=params, budget=shared).reply.thinking == ""
    shared = TokenBudget(9)
    with pytest.raises(ValueError, match="the prompt has"):
        m2.chat([{"role": "user", "content": "x" * 2000}], params=params, budget=shared)
    m2.stream(MESSAGES, params=params, budget=shared).close()
    assert shared.num_left == 9
    with pytest.raises(ValueError, match="it must be 0 or more"):
        TokenBudget(-1)


def cut_answers(llm: LLM, count: int, seed: int) -> Iterator[tuple[int, Completion]]:
    """Answers whose thoughts are cut at random budgets, sixteen at a time, all kinds of text."""
    random_ = random.Random(seed)
    pieces = ["Hm. ", "\n", "</thi", "<think>", "é", "日本。", "3.", "{", "</", "a"]
    left = count
    while left:
        streams = []
        for _ in range(min(16, left)):
            budget = random_.choice([0, 1, 2, 5, 13, random_.randrange(60), 560])
            schema = random_.choice([None, None, *SCHEMAS])
            params = SamplingParams(
                seed=random_.randrange(2**32),
                thinking_budget=budget,
                thinking_soft_end=random_.choice([0, 0.1, 0.5, 1]),
                temperature=random_.choice([0, 0.7, 1.5]),
                top_k=random_.choice([None, 40]),
                max_tokens=budget + 110,
                json_schema=schema,
                ignore_eos=schema is None and random_.random() < 0.8,
            )
            thought = "".join(random_.choices(pieces, k=random_.randrange(8)))
            prefix = thinking_ids(llm, thought)[: max(8, budget)]
            stream = llm.stream(prompt=Prompt((1,)), params=params, prefix_ids=prefix)
            streams.append((budget, stream))
        for budget, stream in streams:
            yield budget, stream.read()
        left -= len(streams)


def assert_well_formed(llm: LLM, budget: int, completion: Completion) -> None:
    reply = completion.reply
    assert completion.usage.num_thinking_tokens <= max(budget, 8)
    assert completion.sampled is not None
    if completion.sampled.has_later_thoughts:
        assert reply.is_thinking_closed or completion.usage.num_thinking_tokens < budget
        assert closes_only_in_code(reply.content)
        return
    if completion.finish_reason == "stop" and not reply.is_thinking_closed:
        assert not reply.content  # the model ended its turn inside the thought
        return
    assert reply.is_thinking_closed
    text = text_of(llm, completion)
    before, tag, after = text.partition("</think>")
    assert tag
    if completion.params.json_schema is not None and completion.finish_reason == "stop":
        assert_json(reply.content, completion.params.json_schema)
    # The thought is what stands before the tag and the content what stands behind it; other tags
    # are text to one format and stray to the other.
    assert bare(reply.thinking) in bare(before)
    assert closes_only_in_code(reply.content)
    assert bare(reply.content) in bare(after) or reply.problems
    if not reply.problems:
        assert not TAGS.search(re.sub("</?think>", "", reply.content))


def assert_json(content: str, schema: str) -> None:
    match json.loads(content):
        case "yes" | "no" | 7:
            assert schema == SCHEMAS[0]
        case list(items):
            assert schema == SCHEMAS[1]
            assert len(items) <= 3
            assert all(isinstance(item, bool) for item in items)
        case {"a": str(text), **others}:
            assert schema == SCHEMAS[2]
            assert len(text) <= 9
            assert not others
        case other:
            raise AssertionError(other)


def closes_only_in_code(content: str) -> bool:
    """Return True if every closing tag in the content stands in code."""
    before = content.split("</think>")[:-1]
    return all(
        CodePlace().after("".join(before[:end])).is_code for end in range(1, 1 + len(before))
    )


def bare(text: str) -> str:
    return "".join(TAGS.sub("", text).split())


def test_no_cut_leaks_a_tag_or_a_thought(llm: LLM) -> None:
    for budget, completion in cut_answers(llm, examples(160), seed=0):
        assert_well_formed(llm, budget, completion)


@pytest.mark.slow
def test_no_cut_of_ten_thousand_leaks_a_tag_or_a_thought(llm: LLM) -> None:
    for budget, completion in cut_answers(llm, 5_000, seed=1):
        assert_well_formed(llm, budget, completion)


@pytest.mark.parametrize(
    ("text", "count"), [("512", 512), ("40k", 40_000), ("1.5M", 1_500_000), ("80,000", 80_000)]
)
def test_numbers_of_tokens_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "k", "-3", "1.00001k", "4 0", "many"])
def test_other_texts_are_no_numbers_of_tokens(text: str) -> None:
    with pytest.raises(ValueError, match="is no number of tokens"):
        parse_count(text)


def left_out(choice: Choice) -> set[int]:
    """Return the ids that a choice leaves out."""
    if choice.mask is None:
        return set()
    assert choice.mask.redraw_only
    return {int(one) for one in (~choice.mask.allowed).nonzero()[0]}


def num_thinking(llm: LLM, prefix: list[int]) -> int:
    """Return how many tokens of a prefix count as thought."""
    params = SamplingParams(max_tokens=len(prefix) + 1)
    completion = llm.chat(prompt=Prompt((1,)), params=params, prefix_ids=prefix)
    return completion.usage.num_thinking_tokens


def test_a_thought_that_is_opened_again_is_closed_when_the_budget_is_spent(llm: LLM) -> None:
    before = thinking_ids(llm, "abc\n</think>\n\nYes.\n")
    prefix, used = before + llm.tokenizer.encode("<think>"), num_thinking(llm, before)
    for left in (0, 1, 7):
        params = SamplingParams(
            seed=3, thinking_budget=used + left, max_tokens=60, thinking_soft_end=0, ignore_eos=True
        )
        completion = llm.chat(prompt=Prompt((1,)), params=params, prefix_ids=prefix)
        assert completion.usage.num_thinking_tokens == used + left
        new = [token.token_id for token in completion.tokens]
        closing = llm.tokenizer.encode(llm.format.thinking_forced_end or "")
        if left == 0:
            assert new[: len(closing)] == closing
            assert (completion.reply.thinking, new[len(closing) :] != []) == ("abc", True)
        assert completion.reply.thinking.startswith("abc")
        assert completion.reply.content.startswith("Yes.\n")
        assert completion.reply.is_thinking_closed
        resumed = llm.chat(
            prompt=Prompt((1,)), params=params, prefix_ids=completion.answer_ids[: len(prefix) + 4]
        )
        assert resumed.answer_ids == completion.answer_ids


def test_no_thought_is_opened_again_when_the_budget_is_spent(m2: LLM) -> None:
    llm, opening = m2, m2.tokenizer.token_id("<think>")
    assert opening is not None
    spent = num_thinking(llm, thinking_ids(llm, "abc\n</think>\n\n"))
    for text, budget, is_masked in (
        ("abc\n</think>\n\n", spent, True),
        ("abc\n</think>\n\nYes.\n ", spent, True),
        ("abc\n</think>\n\nYes.", spent, True),
        ("abc\n</think>\n\nYes `x", spent, False),
        ("abc\n</think>\n\n```\nx\n", spent, False),
        ("abc\n</think>\n\n```\nx\n```", spent, True),
        ("abc\n</think>\n\n", spent + 1, False),
        ("abc\n</think>\n\n", None, False),
        ("ab", 3, False),
    ):
        params = SamplingParams(thinking_budget=budget, thinking_soft_end=0)
        request = ChatRequest(
            prompt=Prompt((1,)), params=params, prefix_ids=thinking_ids(llm, text)
        )
        (choice,) = llm.prepare(request).ask([])
        assert left_out(choice) == ({opening} if is_masked else set()), text


def test_guesses_do_not_change_where_a_thought_may_open(m2: LLM) -> None:
    llm, start = m2, thinking_ids(m2, "abc\n</think>\n\n")
    params = SamplingParams(
        thinking_budget=num_thinking(llm, start), thinking_soft_end=0, stop=("\n\nx",)
    )
    draft = llm.tokenizer.encode("a`b\n\n`c`\t")

    def ask(prefix: list[int], guesses: list[int]) -> list[set[int]]:
        request = ChatRequest(prompt=Prompt((1,)), params=params, prefix_ids=prefix)
        return [left_out(choice) for choice in llm.prepare(request).ask(guesses)]

    together = ask(start, draft)
    assert len(together) == len(draft) + 1
    may_open = [True, True, False, False, True, True, False, False, True, True]
    assert [bool(one) for one in together] == may_open
    assert together == [ask(start + draft[:place], [])[0] for place in range(len(draft) + 1)]
