"""Tokens that the agents of a team share: reserved before an answer, settled after it.

    reserve(most) -> max_tokens of the answer -> settle(used)

What is reserved and what is spent are never more than there is. An answer waits while others hold
what it may need, and is cut short only where all that is left is less.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Self

from fulmen.agent.loop import TokensSpent
from fulmen.chat import AnswerStream, ChatModel, ChatRequest, Completion, Event
from fulmen.sampling import SamplingParams, check_whole


class SharedBudget:
    """New tokens that several agents may make together, for one event loop."""

    def __init__(self, num_tokens: int | None, *, num_spent: int = 0) -> None:
        """num_tokens: None for no limit; num_spent: tokens that were made before"""
        if num_tokens is not None:
            check_whole("the tokens of a team", num_tokens, 0, 2**62)
        self.num_tokens = num_tokens
        self.num_spent = num_spent
        self.num_reserved = 0
        self._waiting: deque[tuple[int, asyncio.Future[int]]] = deque()

    @property
    def num_left(self) -> int | None:
        """Tokens that are neither spent nor reserved; None without a limit."""
        if self.num_tokens is None:
            return None
        return max(self.num_tokens - self.num_spent - self.num_reserved, 0)

    async def reserve(self, most: int) -> int:
        """Reserve tokens, waiting while others hold them; return how many: fewer where no more are
        left, 0 where none are. Who comes first is served first."""
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((most, waiter))
        self._grant()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.settle(waiter.result(), 0)
            self._waiting = deque(one for one in self._waiting if one[1] is not waiter)
            self._grant()
            raise

    def settle(self, reserved: int, used: int) -> None:
        """Give back what was reserved, and spend what was used of it."""
        self.num_reserved -= reserved
        self.num_spent += used
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            most, waiter = self._waiting[0]
            left = self.num_left
            if left is not None and left < most and self.num_reserved:
                return  # more may come back
            granted = most if left is None else min(most, left)
            self._waiting.popleft()
            if not waiter.done():
                self.num_reserved += granted
                waiter.set_result(granted)


class BudgetedModel:
    """A model whose answers are paid from a budget that others share."""

    def __init__(self, model: ChatModel, budget: SharedBudget, *, max_answer: int) -> None:
        """max_answer: tokens that one answer may have, if its request does not say fewer"""
        self.model = model
        self.budget = budget
        self.max_answer = max_answer

    def stream(self, request: ChatRequest) -> AnswerStream:
        """Return the answer to a request; it begins once its tokens are reserved. Raises
        TokensSpent then if there are none."""
        return _Paid(self, request)


class _Paid:
    """An answer that is paid when it ends."""

    def __init__(self, by: BudgetedModel, request: ChatRequest) -> None:
        self._by = by
        self._request = request
        self._inner: AnswerStream | None = None
        self._reserved: int | None = None
        """Tokens that are held for it; None before, and once it is paid"""
        self._has_begun = False

    async def __aenter__(self) -> Self:
        await self._begun()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _begun(self) -> AnswerStream:
        if self._inner is not None:
            return self._inner
        by, params = self._by, self._request.params or SamplingParams()
        asked = by.max_answer if params.max_tokens is None else params.max_tokens
        self._reserved = await by.budget.reserve(min(asked, by.max_answer))
        if self._reserved == 0:
            raise TokensSpent(f"the team has spent its {by.budget.num_tokens:,} tokens")
        params = replace(params, max_tokens=self._reserved)
        self._inner = by.model.stream(replace(self._request, params=params))
        await self._inner.__aenter__()
        return self._inner

    async def __aiter__(self) -> AsyncIterator[Event]:
        async for event in await self._begun():
            self._has_begun = True
            yield event

    async def finish(self) -> Completion:
        """End the answer if it still runs, pay it, and return everything it came to."""
        completion = await (await self._begun()).finish()
        self._pay(completion.usage.num_new_tokens)
        return completion

    async def close(self) -> None:
        """End the answer, if it still runs; one that nobody asked the end of costs all that was
        reserved, since nobody knows what it took."""
        try:
            if self._inner is not None:
                await self._inner.close()
        finally:
            self._pay((self._reserved or 0) if self._has_begun else 0)

    def _pay(self, used: int) -> None:
        reserved, self._reserved = self._reserved, None
        if reserved is not None:
            self._by.budget.settle(reserved, used)
