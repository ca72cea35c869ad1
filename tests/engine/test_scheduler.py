"""Shares of a step's budget among prompts."""

from hypothesis import given
from hypothesis import strategies as st

from fulmen.engine.prefixes import Allocation
from fulmen.engine.request import Request
from fulmen.engine.scheduler import shares
from fulmen.sampling import SamplingParams


def make_request(request_id: int, length: int, priority: int = 0, known: int = 0) -> Request:
    """Return a request that lacks `length` tokens after those known."""
    ids = [0] * (known + length)
    request = Request(request_id, ids, SamplingParams(), 0, 1, priority=priority)
    request.allocation = Allocation(slot=0, nodes=[], pages=[], num_tokens=known, snapshot_at=[])
    return request


def planned(requests: list[Request], budget: int) -> dict[int, int]:
    return {request.request_id: count for request, count in shares(requests, budget)}


def test_short_prompts_pass_long_ones_and_the_first_always_moves() -> None:
    long, short, middle = make_request(0, 4096), make_request(1, 80), make_request(2, 400)
    assert planned([long, short, middle], 1000) == {0: 512, 1: 80, 2: 400}
    assert planned([long, middle], 768) == {0: 384, 2: 384}


def test_pieces_end_with_pages_and_only_the_first_reads_less_than_one() -> None:
    long, other = make_request(0, 4096, known=10), make_request(1, 3000, known=10)
    assert planned([long, other], 1000) == {0: 502, 1: 438}
    assert planned([long, other], 60) == {0: 54}
    assert planned([long, other], 20) == {0: 20}


def test_a_prompt_that_gave_way_reads_nothing() -> None:
    first, second = make_request(0, 100), make_request(1, 100)
    second.allocation = None
    assert planned([first, second], 1000) == {0: 100}


def test_a_prompt_alone_has_the_whole_budget() -> None:
    assert planned([make_request(0, 4096)], 1024) == {0: 1024}


def test_a_lower_priority_reads_what_a_higher_one_leaves() -> None:
    urgent, other = make_request(1, 300), make_request(0, 100, priority=1)
    assert planned([urgent, other], 350) == {1: 300, 0: 50}
    assert planned([urgent, other], 192) == {1: 192}


def test_tokens_that_weigh_more_are_fewer() -> None:
    deep, other = make_request(0, 4096, known=6400), make_request(1, 4000)
    found = shares([deep, other], 1000, amount=512, weight=lambda position: 1 + position / 6400)
    assert [(request.request_id, count) for request, count in found] == [(1, 256), (0, 128)]


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(0, 9000)), min_size=1, max_size=9),
    st.integers(1, 1024),
    st.floats(64, 3000),
)
def test_neither_tokens_nor_weight_are_exceeded_and_the_first_moves(
    sizes: list[tuple[int, int]], num_tokens: int, amount: float
) -> None:
    def weight(position: int) -> float:
        return 1 + position / 3000

    requests = [make_request(i, length, known=known) for i, (length, known) in enumerate(sizes)]
    amount = max(amount, 64 * weight(sizes[0][1]))
    found = shares(requests, num_tokens, amount=amount, weight=weight)
    assert sum(count for _, count in found) <= num_tokens
    assert sum(count * weight(r.num_cached_tokens) for r, count in found) <= amount * 1.000001
    assert any(request is requests[0] for request, _ in found)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=9), st.integers(0, 600))
def test_no_share_is_more_than_is_lacking_or_left(lengths: list[int], budget: int) -> None:
    requests = [make_request(index, length) for index, length in enumerate(lengths)]
    found = planned(requests, budget)
    assert sum(found.values()) <= budget
    assert all(0 < count <= lengths[index] for index, count in found.items())
    least = min(lengths[0], budget // 2)
    assert found.get(0, 0) >= (least if least < 64 or least == lengths[0] else least // 64 * 64)
