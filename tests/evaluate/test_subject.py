"""A thought cut at a budget is, to the bit, the thought of a run at that budget."""

from dataclasses import replace

import pytest

from fulmen.chat import Prompt
from fulmen.evaluate.subject import Subject
from fulmen.llm import LLM
from tests.evaluate.helpers import PARAMS, LuckyTask, load, plain

BUDGETS = (0, 1, 7, 40, 130, 200)


@pytest.fixture(scope="module", params=["m1", "m2"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return load(tmp_path_factory.mktemp(request.param), request.param)


def test_a_fork_is_what_a_run_with_that_thinking_budget_says(llm: LLM) -> None:
    """Use one seed for thought and answer: draws go by the token's place, so nothing differs."""
    format = llm.format
    opening = llm.tokenizer.encode(format.thinking_forced_start or "")
    # What ThoughtBudget counts of the opening: a line break that is a token of its own.
    counted = int(bool(opening))
    ends = set()
    for seed in range(10):
        subject = Subject(llm, PARAMS, answer_tokens=9)
        thought = subject.thought(LuckyTask(seed), seed)
        for budget in BUDGETS:
            subject.think([(thought, budget)])
            (answer,) = subject.answer([(thought, seed)])
            is_cut = not (thought.is_closed or thought.is_over)
            ends.add((is_cut, thought.is_over))
            closing = llm.tokenizer.encode(format.thinking_forced_end or "") if is_cut else []
            params = replace(
                PARAMS,
                seed=seed,
                thinking_budget=budget + counted,
                thinking_soft_end=0,
                max_tokens=sum(map(len, (opening, thought.ids, closing)))
                + (0 if thought.is_over else 9),
            )
            prompt = Prompt(tuple(thought.prompt_ids))
            whole = llm.chat(prompt=prompt, params=params, prefix_ids=opening)
            drawn = [token.token_id for token in whole.tokens]
            assert drawn[: len(thought.ids)] == thought.ids
            assert answer.reply == whole.reply
            assert len(drawn) == len(thought.ids) + len(closing) + answer.num_tokens
            last = whole.tokens[len(drawn) - answer.num_tokens :]
            assert answer.logprob == sum(token.logprob for token in last)
    assert len(ends) > 1  # cut ones, and some that ended by themselves


def test_a_thought_in_pieces_is_the_thought_in_one(llm: LLM) -> None:
    for at_once in (llm, plain(llm)):
        closing = None if at_once is llm else " So:"
        subject = Subject(at_once, PARAMS, answer_tokens=5, closing=closing)
        thoughts = [subject.thought(LuckyTask(seed), seed) for seed in range(8)]
        whole = [subject.thought(LuckyTask(seed), seed) for seed in range(8)]
        for budget in BUDGETS:
            subject.think([(thought, budget) for thought in thoughts])
            subject.answer([(thought, 5) for thought in thoughts])
        subject.think([(thought, BUDGETS[-1]) for thought in whole])
        for thought, other in zip(thoughts, whole, strict=True):
            assert thought.ids == other.ids
            assert thought.logprob == pytest.approx(other.logprob)
            assert (thought.is_closed, thought.is_over) == (other.is_closed, other.is_over)


def test_a_fork_reads_nothing_again(llm: LLM) -> None:
    params = replace(PARAMS, temperature=0)  # which never ends the thoughts of these models
    subject = Subject(llm, params, answer_tokens=5)
    thought = subject.thought(LuckyTask(99), 0)  # no other test's, so all hits are its own
    closing = llm.tokenizer.encode(llm.format.thinking_forced_end or "")
    for budget in BUDGETS[1:]:
        subject.think([(thought, budget)])
        assert len(thought.ids) == budget
        before = llm.engine.stats
        subject.answer([(thought, 1)])
        after = llm.engine.stats
        given = after.num_prompt_tokens - before.num_prompt_tokens
        hits = after.num_hit_tokens - before.num_hit_tokens
        # The last token of the thought was drawn, and never fed.
        assert given - hits == 1 + len(closing)


def test_a_format_without_a_thought_is_led_to_its_answer_by_a_text(llm: LLM) -> None:
    subject = Subject(plain(llm), PARAMS, answer_tokens=6, closing="\nThe answer is")
    thought = subject.thought(LuckyTask(3), 3)
    subject.think([(thought, 12)])
    (answer,) = subject.answer([(thought, 1)])
    assert answer.reply.thinking == llm.tokenizer.decode(thought.ids)
    assert answer.reply.content.startswith("The answer is")
    assert answer.num_tokens <= 6


def test_a_turn_that_ended_by_itself_is_its_own_answer(llm: LLM) -> None:
    subject = Subject(plain(llm), PARAMS, answer_tokens=6, closing="\nThe answer is")
    thoughts = [subject.thought(LuckyTask(seed), seed) for seed in range(30)]
    subject.think([(thought, 200) for thought in thoughts])
    answers = subject.answer([(thought, 1) for thought in thoughts])
    over = [pair for pair in zip(thoughts, answers, strict=True) if pair[0].is_over]
    assert over
    for thought, answer in over:
        assert answer.reply.content == llm.tokenizer.decode(thought.ids[:-1])
        assert (answer.num_tokens, answer.reply.thinking) == (0, "")


def test_a_closing_is_refused_where_the_model_has_its_own(llm: LLM) -> None:
    with pytest.raises(ValueError, match="closes its thoughts with </think> alone"):
        Subject(llm, PARAMS, answer_tokens=6, closing="So:")
    with pytest.raises(ValueError, match="has no tag that closes a thought, it needs a closing"):
        Subject(plain(llm), PARAMS, answer_tokens=6)


def test_a_thought_that_the_context_cannot_hold_is_refused(llm: LLM) -> None:
    subject = Subject(llm, PARAMS, answer_tokens=6)
    thought = subject.thought(LuckyTask(0), 0)
    with pytest.raises(ValueError, match=r"a thought of 100000 tokens needs .*the context holds"):
        subject.check_room(thought, 100_000)
