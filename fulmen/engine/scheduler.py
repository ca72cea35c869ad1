"""Which requests run in a step, and how many tokens of each.

Requests rank by priority, then by arrival. A step has a budget of tokens. Those that decode come
first, one token each. Half of what is left is for the prompt that came first, so it always moves,
and the rest for those that lack least, so a short prompt is not stuck behind long ones. Pages are
taken as they are needed; when there are none, the last in rank gives way: what it computed stays
known for as long as there is room, and it goes on later from where that ends. The first in rank
never gives way, so every request ends.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

from fulmen.engine.prefixes import Allocation, PrefixCache
from fulmen.kernels import PAGE


class Schedulable(Protocol):
    """What the scheduler knows of a request."""

    ids: list[int]
    """Prompt and new tokens"""
    allocation: Allocation | None
    """What it owns while it runs"""

    @property
    def rank(self) -> tuple[int, int]:
        """Priority and arrival; the lower goes first."""

    @property
    def num_pending(self) -> int:
        """Tokens that must be fed before the next one can be sampled."""


@dataclass(slots=True)
class Scheduled:
    """A request's part in a step."""

    request: Schedulable
    num_tokens: int
    """How many of its pending tokens are fed"""


@dataclass(slots=True)
class Scheduler:
    """Waiting and running requests of one cache."""

    prefixes: PrefixCache
    max_num_seqs: int
    max_num_batched_tokens: int
    """Of a step; at least max_num_seqs, so that all that decode find room"""
    num_preemptions: int = 0
    num_hit_tokens: int = 0
    """Tokens that admitted requests found in the cache"""
    _waiting: list[Schedulable] = field(default_factory=list)
    """By rank"""
    _running: list[Schedulable] = field(default_factory=list)
    """By rank"""

    def add(self, request: Schedulable) -> None:
        """Queues a request."""
        bisect.insort(self._waiting, request, key=_rank)

    def remove(self, request: Schedulable, *, keeps_end: bool = True) -> None:
        """Drops a request, whatever its state, and frees what it owns; see `PrefixCache.end`."""
        if request.allocation is None:
            self._waiting.remove(request)
            return
        self.prefixes.end(request.allocation, request.ids, keeps_end=keeps_end)
        request.allocation = None
        self._running.remove(request)

    def schedule(self) -> list[Scheduled]:
        """The next step; empty if nothing is left to do."""
        self._make_way()
        plan: dict[int, Scheduled] = {}
        preempted = self.num_preemptions
        decoding = [request for request in self._running if request.num_pending == 1]
        for request in decoding:
            self._plan(request, 1, plan)
        if self.num_preemptions == preempted:
            self._admit()
        budget = self.max_num_batched_tokens - len(plan)
        reading = [request for request in self._running if request.num_pending > 1]
        # A request that resumed or a prompt of one token may decode right away.
        reading += [
            request
            for request in self._running
            if request.num_pending == 1 and request not in decoding
        ]
        for request, num_tokens in shares(sorted(reading, key=_rank), budget):
            self._plan(request, num_tokens, plan)
        return list(plan.values())

    def _plan(self, request: Schedulable, num_tokens: int, plan: dict[int, Scheduled]) -> None:
        """Gives a request tokens of this step, and pages for them, if it still runs."""
        while (allocation := request.allocation) is not None:
            end = allocation.pass_end(allocation.num_tokens + num_tokens)
            if self.prefixes.grow(allocation, end):
                plan[request.rank[1]] = Scheduled(request, end - allocation.num_tokens)
                return
            last = self._running[-1]
            assert len(self._running) > 1, "a request alone has too few pages"
            self._preempt(last)
            plan.pop(last.rank[1], None)

    def _make_way(self) -> None:
        """Takes the last in rank off its slot where a higher priority waits for one."""
        if not self._waiting or len(self._running) < self.max_num_seqs:
            return
        last = self._running[-1]
        if self._waiting[0].rank[0] < last.rank[0]:
            self._preempt(last)

    def _preempt(self, request: Schedulable) -> None:
        self.remove(request)
        self.add(request)
        self.num_preemptions += 1

    def _admit(self) -> None:
        """Lets the first in rank run while there are slots, and pages for what they must read
        besides those that the running ones will need for theirs."""
        while self._waiting and len(self._running) < self.max_num_seqs:
            request = self._waiting[0]
            allocation = self.prefixes.begin(
                request.ids, spare=sum(map(self._lacks, self._running))
            )
            if allocation is None:
                assert self._running, "a request alone has too few pages"
                return
            self._waiting.pop(0)
            request.allocation = allocation
            self.num_hit_tokens += allocation.num_tokens
            bisect.insort(self._running, request, key=_rank)

    def _lacks(self, request: Schedulable) -> int:
        """Pages that a running request needs to read what it has, and one for what it will say."""
        assert request.allocation is not None
        return 1 + self.prefixes.missing_pages(request.allocation, len(request.ids))


def shares(requests: Sequence[Schedulable], budget: int) -> Iterator[tuple[Schedulable, int]]:
    """How many tokens each request reads of a budget: by priority, within one half for the first
    in rank, and the rest for those that lack least; no more than they have, and whole pages where
    that leaves anything.

    requests  by rank
    """
    for _, group in groupby(requests, key=lambda request: request.rank[0]):
        first, *others = group
        reserved = min(first.num_pending, -(-budget // 2))
        for request in sorted([first, *others], key=lambda request: request.num_pending):
            if request is first:
                reserved = 0
            allocation = request.allocation
            if allocation is None:  # it gave way to one before it
                continue
            share = min(request.num_pending, budget - reserved)
            if share < request.num_pending:
                end = (allocation.num_tokens + share) // PAGE * PAGE
                if end > allocation.num_tokens:
                    share = end - allocation.num_tokens
                elif request is not first:  # no piece of a page
                    continue
            if share > 0:
                budget -= share
                yield request, share


def _rank(request: Schedulable) -> tuple[int, int]:
    return request.rank
