"""Requests that come at one time and begin alike: what they share is read once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.engine import Engine, EngineConfig
from fulmen.engine.scheduler import num_common_pages
from fulmen.kernels import PAGE
from fulmen.models import Model
from fulmen.sampling import SamplingParams
from tests.engine.helpers import assert_nothing_is_owned, new_tokens
from tests.engine.test_engine import GREEDY, every_model, plain_loop, run
from tests.examples import examples

BASES = [[(7 * i + base) % 61 for i in range(900)] for base in range(2)]
CONFIG = EngineConfig(max_num_seqs=3, max_num_batched_tokens=128, max_model_len=1024)


@every_model
@pytest.mark.parametrize("num_shared", [5 * PAGE + 17, 13 * PAGE])
def test_what_requests_begin_with_is_read_by_the_first_of_them(
    model: Model, num_shared: int
) -> None:
    engine = Engine(model, CONFIG)
    prompts = [[*BASES[0][:num_shared], number, *[5] * 30] for number in range(5)]
    ids = [engine.add_request(prompt, GREEDY) for prompt in prompts]
    together = run(engine)
    stats = engine.stats
    whole = num_shared // PAGE * PAGE
    num_read = stats.num_queried_tokens - stats.num_hit_tokens
    assert num_read <= sum(map(len, prompts)) - 4 * whole
    for request_id, prompt in zip(ids, prompts, strict=True):
        alone = Engine(model, CONFIG)
        alone.add_request(prompt, GREEDY)
        assert [one.token_id for one in together[request_id]] == [
            one.token_id for one in run(alone)[0]
        ]
    assert_nothing_is_owned(engine)


@every_model
def test_nobody_waits_for_one_that_is_gone_or_comes_later(model: Model) -> None:
    engine = Engine(model, CONFIG)
    first = engine.add_request([*BASES[0][:800], 1], GREEDY, priority=1)
    engine.step()
    urgent = engine.add_request([*BASES[0][:800], 2], GREEDY)  # its turn is before the first's
    last = engine.add_request([*BASES[0][:800], 3], GREEDY, priority=1)
    engine.step()
    assert engine.stats.num_running == 2
    engine.abort(first)
    engine.abort(urgent)
    engine.step()
    assert engine.stats.num_running == 1
    assert len(run(engine)[last]) == GREEDY.max_tokens
    assert_nothing_is_owned(engine)


@every_model
@given(st.data())
@settings(max_examples=examples(15), deadline=None)
def test_answers_do_not_depend_on_who_waited(model: Model, data: st.DataObject) -> None:
    engine = Engine(model, CONFIG)
    expected: dict[int, list[int]] = {}
    outputs: dict[int, list[int]] = {}
    for _ in range(data.draw(st.integers(2, 5), label="requests")):
        base = data.draw(st.sampled_from(BASES), label="base")
        prompt = base[: data.draw(st.integers(0, 600), label="shared")]
        prompt = [*prompt, *data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=70))]
        params = SamplingParams(max_tokens=3, seed=7, temperature=0.8)
        priority = data.draw(st.integers(0, 1), label="priority")
        request_id = engine.add_request(prompt, params, priority=priority)
        if data.draw(st.integers(0, 5), label="is aborted") == 0:
            engine.abort(request_id)
        else:
            expected[request_id] = plain_loop(model, prompt, params)
        for _ in range(data.draw(st.integers(0, 3), label="steps")):
            for output in new_tokens(engine.step()):
                outputs.setdefault(output.request_id, []).append(output.token_id)
    for _ in range(10_000):
        if not engine.has_unfinished:
            break
        for output in new_tokens(engine.step()):
            outputs.setdefault(output.request_id, []).append(output.token_id)
    assert outputs == expected
    assert_nothing_is_owned(engine)


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400))
def test_whole_pages_in_common_are_counted(shared: int, first: int, second: int) -> None:
    one, other = [0] * shared + [1] * first, [0] * shared + [2] * second
    assert num_common_pages(one, other) == shared // PAGE
    assert num_common_pages(one, one) == len(one) // PAGE
