"""A budget that agents share: it is never overdrawn, and nobody waits for ever."""

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.agent import BudgetedModel, SharedBudget, TokensSpent
from fulmen.chat import ChatRequest, Message, complete, get_format
from fulmen.llm import ScriptedModel
from fulmen.sampling import SamplingParams
from tests.agent.working import says
from tests.examples import examples


@given(
    st.integers(0, 200),
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60), st.booleans()), max_size=20),
    st.integers(0, 2**32),
)
@settings(max_examples=examples(200), deadline=None)
def test_a_shared_budget_is_never_overdrawn_and_all_are_served(
    total: int, answers: list[tuple[int, int, bool]], seed: int
) -> None:
    async def work() -> None:
        budget, choice, spent = SharedBudget(total), random.Random(seed), 0

        async def answer(most: int, used: int, is_cancelled: bool) -> None:
            nonlocal spent
            task = asyncio.ensure_future(budget.reserve(most))
            for _ in range(choice.randrange(3)):
                await asyncio.sleep(0)
            if is_cancelled:
                task.cancel()
            try:
                reserved = await task
            except asyncio.CancelledError:
                return
            assert 0 <= reserved <= most
            assert budget.num_spent + budget.num_reserved <= total
            for _ in range(choice.randrange(4)):
                await asyncio.sleep(0)
            if reserved < most:  # only where there is no more
                assert budget.num_left == 0
            spent += min(used, reserved)
            budget.settle(reserved, min(used, reserved))

        await asyncio.wait_for(asyncio.gather(*(answer(*one) for one in answers)), 30)
        assert (budget.num_spent, budget.num_reserved) == (spent, 0)
        assert spent <= total

    asyncio.run(work())


def test_answers_are_paid_as_they_were_and_cut_where_the_budget_ends(tokenizer: Any) -> None:
    async def work() -> None:
        script = [says("m2", "one two three four five six")] * 9
        model = ScriptedModel(get_format("minimax_m2"), script, tokenizer=tokenizer)
        request = ChatRequest(messages=[Message("user", "Say.")], params=SamplingParams())
        whole = (await complete(model, request)).usage.num_new_tokens
        budget = SharedBudget(2 * whole + 1)
        paid = BudgetedModel(model, budget, max_answer=100)
        reasons = []
        for _ in range(3):
            completion = await complete(paid, request)
            reasons.append(completion.finish_reason)
            assert budget.num_reserved == 0
        assert reasons == ["stop", "stop", "length"]
        assert budget.num_spent == 2 * whole + 1
        with pytest.raises(TokensSpent, match=f"the team has spent its {2 * whole + 1} tokens"):
            await complete(paid, request)
        assert budget.num_reserved == 0

    asyncio.run(work())


def test_an_answer_that_is_left_alone_gives_back_or_pays_all_it_held(tokenizer: Any) -> None:
    async def work() -> None:
        model = ScriptedModel(
            get_format("minimax_m2"), [says("m2", "a b c d")] * 2, tokenizer=tokenizer
        )
        budget = SharedBudget(50)
        paid = BudgetedModel(model, budget, max_answer=20)
        request = ChatRequest(messages=[Message("user", "Say.")])
        async with paid.stream(request):
            assert budget.num_reserved == 20
        assert (budget.num_spent, budget.num_reserved) == (0, 0)
        async with paid.stream(request) as stream:
            async for _ in stream:
                break
        assert (budget.num_spent, budget.num_reserved) == (20, 0)  # nobody knows what it took

    asyncio.run(work())
