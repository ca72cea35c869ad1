"""Choice of the requests that run in a step, how many tokens of each, and which guesses come along.

Requests are ordered by priority, then by arrival. Those that decode come first, one token each. The
step's pace (`pace.py`) says how much of prompts may be read beside them. Half of that goes to the
prompt that came first, so it always advances; the other half goes to the prompts closest to their
end, so a short prompt is not stuck behind long ones. What is left after that is for guesses.

A request that begins as a running prompt does waits until that has read what they share, then
takes it from the cache: agents of a team, and requests with one system prompt, come at one time.

Pages are taken as they are needed. When there are none, the last request in this order is
preempted: its pages stay known as long as there is room, and it resumes later where they end. The
first is never preempted, so every request ends.
"""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

from fulmen.engine.pace import Pace
from fulmen.engine.prefixes import PrefixCache
from fulmen.engine.request import Part, Request
from fulmen.engine.stats import timed
from fulmen.kernels import CHUNK, PAGE

_WORTH_WAITING: Final = 4 * PAGE
"""Least number of tokens for which a request waits until another one has read them"""


@dataclass(slots=True)
class Scheduler:
    """Waiting and running requests of one cache."""

    prefixes: PrefixCache
    max_num_seqs: int
    pace: Pace
    """Most tokens of a step, at least max_num_seqs, so that all can decode together; and how much
    of prompts is read beside those that decode"""
    num_draft_tokens: int = 0
    """Most guesses that a decoding request checks in one step"""
    num_preemptions: int = 0
    num_queried_tokens: int = 0
    """Tokens of admitted requests, which were looked up in the cache"""
    num_hit_tokens: int = 0
    """Tokens that admitted requests found in the cache"""
    seconds: float = 0.0
    """Time spent in `schedule`"""
    _waiting: list[Request] = field(default_factory=list)
    """Sorted by `_order`"""
    _running: list[Request] = field(default_factory=list)
    """Sorted by `_order`"""
    _moving: set[int] = field(default_factory=set)
    """Ids of the requests that the last step had a part of, or that were admitted since"""
    _read: float = 0.0
    """Weight of what the last step read of prompts"""
    _is_all_read: bool = True
    """The last step read every prompt to its end"""

    @property
    def num_running(self) -> int:
        """Number of requests that run."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait."""
        return len(self._waiting)

    def add(self, request: Request) -> None:
        """Queue a request."""
        bisect.insort(self._waiting, request, key=_order)

    def remove(self, request: Request, *, keeps_end: bool = True) -> None:
        """Drop a request, whatever its state, and free what it owns; see `PrefixCache.end`."""
        if request.allocation is None:
            self._waiting.remove(request)
            return
        self.prefixes.end(request.allocation, request.ids, keeps_end=keeps_end)
        request.allocation = None
        self._running.remove(request)

    def restart(self) -> None:
        """Send all running requests back to wait, and forget all that is known: each reads its
        tokens again from the first."""
        for request in list(self._running):
            self.remove(request, keeps_end=False)
            self.add(request)
        self.prefixes.clear()

    @timed("seconds")
    def schedule(self) -> list[Part]:
        """Return the parts of the next step; none if nothing is left to do."""
        self._make_way()
        plan: dict[int, Part] = {}
        num_before = self.num_preemptions
        decoding = [request for request in self._running if request.num_pending == 1]
        for request in decoding:
            self._plan(request, 1, plan)
        if self.num_preemptions == num_before:
            self._admit()
        # Besides prompts: a request that resumed, or a prompt of one token, may decode right away.
        reading = [request for request in self._running if request not in decoding]
        for request, num_tokens in self._shares(reading, num_decoding=len(plan)):
            self._plan(request, num_tokens, plan)
        self._note_reading(reading, plan)
        parts = list(plan.values())
        self._moving = set(plan)
        self._add_drafts(parts)
        return parts

    def learn(self, seconds: float) -> None:
        """Let the pace learn how long the last step took."""
        self.pace.learn(self._read, seconds, is_all=self._is_all_read)

    def _note_reading(self, reading: Sequence[Request], plan: Mapping[int, Part]) -> None:
        """Note how much of prompts this step reads, for `learn`."""
        parts = [plan[r.request_id] for r in reading if r.request_id in plan]
        weight = self.pace.weight
        self._read = sum(p.num_tokens * weight(p.request.num_cached_tokens) for p in parts)
        self._is_all_read = len(parts) == len(reading) and all(p.is_sampled for p in parts)

    def _shares(
        self, reading: Sequence[Request], *, num_decoding: int
    ) -> list[tuple[Request, int]]:
        """Return how much of which prompts a step reads beside requests that decode."""
        room = self.pace.max_tokens - num_decoding
        if not reading or not num_decoding or self.pace.max_gap_seconds is None:
            return shares(reading, room)
        amount = self.pace.amount_from(reading[0].num_cached_tokens)
        return shares(reading, room, amount=amount, weight=self.pace.weight)

    def _plan(self, request: Request, num_tokens: int, plan: dict[int, Part]) -> None:
        """Give a request tokens of this step and pages for them, unless it was preempted since."""
        while (allocation := request.allocation) is not None:
            end = allocation.pass_end(allocation.num_tokens + num_tokens)
            if self.prefixes.grow(allocation, end):
                plan[request.request_id] = Part(request, end - allocation.num_tokens)
                return
            last = self._running[-1]
            assert len(self._running) > 1, "a request alone has too few pages"
            self._preempt(last)
            plan.pop(last.request_id, None)

    def _add_drafts(self, parts: Sequence[Part]) -> None:
        """Add guesses to the parts that decode, as far as the step's budget and pages go."""
        if not self.num_draft_tokens:
            return
        room = self.pace.max_tokens - sum(part.num_tokens for part in parts)
        for part in parts:
            request, allocation = part.request, part.request.allocation
            assert allocation is not None
            if request.num_pending > 1:
                continue
            end = allocation.num_tokens + 1
            # Within a chunk wrong guesses are written over; a state that took them in at the
            # chunk's end could not be taken back.
            in_chunk = CHUNK - 1 - end % CHUNK
            to_come = request.max_tokens - request.num_new_tokens - 1
            most = min(self.num_draft_tokens, room, in_chunk, to_come)
            draft_ids = request.drafter.draft(request.ids, most) if most > 0 else []
            if draft_ids and self.prefixes.grow(allocation, end + len(draft_ids)):
                part.draft_ids = draft_ids
                room -= len(draft_ids)

    def _make_way(self) -> None:
        """Preempt the last request where one of a higher priority waits for its slot."""
        if len(self._running) < self.max_num_seqs:
            return
        first, last = self._first_waiting(), self._running[-1]
        if first is not None and first.priority < last.priority:
            self._preempt(last)

    def _preempt(self, request: Request) -> None:
        self.remove(request)
        self.add(request)
        self.num_preemptions += 1

    def _admit(self) -> None:
        """Start the first waiting requests while there are slots, and pages for what they must
        read besides those that the running ones will need for theirs."""
        while len(self._running) < self.max_num_seqs:
            request = self._first_waiting()
            if request is None:
                return
            allocation = self.prefixes.begin(
                request.ids,
                spare=sum(map(self._missing_pages, self._running)),
                most_hits=request.most_hits,
            )
            if allocation is None:
                assert self._running, "a request alone has too few pages"
                return
            self._waiting.remove(request)
            self._moving.add(request.request_id)
            request.start(allocation)
            self.num_queried_tokens += len(request.ids)
            self.num_hit_tokens += allocation.num_tokens
            bisect.insort(self._running, request, key=_order)

    def _first_waiting(self) -> Request | None:
        """Return the first request that has nothing to wait for but room."""
        return next((one for one in self._waiting if not self._is_being_read(one)), None)

    def _is_being_read(self, request: Request) -> bool:
        """Tell whether a running prompt that advances is about to read what a waiting request
        begins with, and take note of that prompt."""
        leader, num_shared = request.awaited or (None, 0)
        if leader is not None and self._will_read(leader, num_shared):
            return True
        request.awaited = None
        leaders = [one for one in self._running if self._will_read(one, math.inf)]
        if not leaders:
            return False
        most = len(request.ids) - 1 if request.most_hits is None else request.most_hits
        for leader in leaders:
            num_shared = min(num_common_pages(leader.ids, request.ids), most // PAGE) * PAGE
            is_first = leader.priority <= request.priority
            if not is_first or num_shared - leader.num_cached_tokens < _WORTH_WAITING:
                continue
            if num_shared - self.prefixes.num_usable(request.ids[:most]) >= _WORTH_WAITING:
                assert leader.allocation is not None
                self.prefixes.want_snapshot(leader.allocation, num_shared)
                request.awaited = leader, num_shared
                return True
        return False

    def _will_read(self, leader: Request, num_tokens: float) -> bool:
        """Tell whether a request runs, advances and has prompt to read before so many tokens."""
        is_moving = leader.allocation is not None and leader.request_id in self._moving
        return is_moving and leader.num_pending > 1 and leader.num_cached_tokens < num_tokens

    def _missing_pages(self, request: Request) -> int:
        """Return the pages that a running request needs for the tokens it has, and one more for
        new ones."""
        assert request.allocation is not None
        return 1 + self.prefixes.missing_pages(request.allocation, len(request.ids))


def num_common_pages(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many whole pages two sequences begin with in common."""
    low, high = 0, min(len(first), len(second)) // PAGE
    while low < high:
        middle = (low + high + 1) // 2
        part = slice(low * PAGE, middle * PAGE)
        low, high = (middle, high) if first[part] == second[part] else (low, middle - 1)
    return low


def shares(
    requests: Sequence[Request],
    num_tokens: int,
    *,
    amount: float | None = None,
    weight: Callable[[int], float] = lambda position: 1,
) -> list[tuple[Request, int]]:
    """Return which requests read how many tokens.

    A higher priority goes first. Among equals, half is reserved for the first, and the rest goes
    to those with the least left to read; whole pages where a share is not all that is left. A
    request that waits reads nothing.

    requests    sorted by `_order`
    num_tokens  most tokens of all
    amount      most that these tokens may weigh; None: num_tokens
    weight      weight of a token after so many others, at least 1
    """
    found: list[tuple[Request, int]] = []
    left = num_tokens if amount is None else amount
    for _, group in groupby(requests, key=lambda request: request.priority):
        first, *others = group
        each = weight(first.num_cached_tokens)
        reserved = min(first.num_pending * each, left / 2)
        num_reserved = min(math.ceil(reserved / each), num_tokens)
        for request in sorted([first, *others], key=lambda request: request.num_pending):
            if request is first:
                reserved = num_reserved = 0
            if request.allocation is None:
                continue
            each = weight(request.num_cached_tokens)
            most = min(num_tokens - num_reserved, int((left - reserved) / each))
            share = _whole_pages(request, most, is_first=request is first)
            if share > 0:
                left -= share * each
                num_tokens -= share
                found.append((request, share))
    return found


def _whole_pages(request: Request, most: int, *, is_first: bool) -> int:
    """Return how many tokens a request reads, at most `most`: all that it lacks, or as many as end
    with a page. Only the first reads a piece of a page."""
    if request.num_pending <= most:
        return request.num_pending
    num_cached = request.num_cached_tokens
    whole = (num_cached + most) // PAGE * PAGE - num_cached
    return whole if whole > 0 else most if is_first else 0


def _order(request: Request) -> tuple[int, int]:
    return request.priority, request.request_id
