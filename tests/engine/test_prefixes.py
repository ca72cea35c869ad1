"""Known prefixes: whatever is shared, evicted, preempted or aborted, every request's tokens and
log-probabilities are those of a plain loop, to the bit, and nothing stays owned."""

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.engine import Engine, EngineConfig, TokenOutput
from fulmen.engine.prefixes import PrefixCache
from fulmen.engine.request import Part
from fulmen.engine.sampler import Candidates, num_candidates, sample
from fulmen.models import Model, Packed
from fulmen.sampling import SamplingParams
from tests.engine.helpers import Script, assert_nothing_is_owned, new_tokens
from tests.examples import examples
from tests.models.helpers import packed_model, tiny_m1, tiny_m2

MODELS: dict[str, Model] = {"m1": packed_model(tiny_m1()), "m2": packed_model(tiny_m2())}
MODELS["m2, int8 pages"] = MODELS["m2"]
every_model = pytest.mark.parametrize("name", MODELS)
STREAMS = torch.randint(61, (3, 300), generator=torch.Generator().manual_seed(5)).tolist()
"""Beginnings that some prompts share"""
Tokens = list[tuple[int, float]]


def kv_dtype(name: str) -> torch.dtype | None:
    return torch.int8 if "int8" in name else None


def small_engine(
    name: str, *, pages: int = 7, snapshots: int = 100, seqs: int = 3, drafts: int = 0
) -> Engine:
    """Return an engine with room for that many pages and about so many snapshots."""
    model = MODELS[name]
    config = model.config
    heads, dim = config.num_attention_heads, config.head_dim
    state = 4 * heads * dim * dim * (len(config.attn_type_list) - sum(config.attn_type_list))
    return Engine(
        model,
        EngineConfig(
            max_num_seqs=seqs,
            max_num_batched_tokens=96,
            max_model_len=320,
            kv_cache_bytes=pages * model.page_bytes(kv_dtype(name)),
            kv_cache_dtype="int8" if kv_dtype(name) else "auto",
            snapshot_bytes=snapshots * state,
            num_draft_tokens=drafts,
        ),
    )


@functools.cache
def plain_loop(name: str, prompt: tuple[int, ...], max_tokens: int, seed: int) -> Tokens:
    """Return tokens and their log-probabilities: feed, sample, feed the sample."""
    model = MODELS[name]
    params = SamplingParams(max_tokens=max_tokens, seed=seed, temperature=0.8)
    top_k = num_candidates(params, model.config.vocab_size)
    cache, pages = model.new_cache(8, 1, kv_dtype=kv_dtype(name)), list(range(8))
    found: Tokens = []
    length, ids = 0, list(prompt)
    while len(found) < max_tokens:
        packed = Packed.of(
            [ids], context_lens=[length], block_tables=[pages], slots=[0], only_last_logits=True
        )
        with torch.inference_mode():
            head = model.next_tokens(packed, cache, targets=torch.zeros(1).long(), top_k=top_k)
        best = Candidates(float(head.logsumexp[0]), head.top_logits[0], head.top_ids[0])
        sampled = sample(best, params, seed=seed, draw=len(found))
        found.append((sampled.token_id, sampled.logprob))
        length, ids = length + len(ids), [sampled.token_id]
    return found


def tokens_of(outputs: list[TokenOutput]) -> Tokens:
    return [(output.token_id, output.logprob) for output in outputs]


def finish(engine: Engine, outputs: dict[int, list[TokenOutput]], limit: int = 5000) -> None:
    """Run to the end, which must come."""
    for _ in range(limit):
        for output in new_tokens(engine.step()):
            outputs.setdefault(output.request_id, []).append(output)
        if not engine.has_unfinished:
            return
    raise AssertionError("some request never ends")


ARRIVAL = st.tuples(
    st.integers(0, 2),  # stream
    st.integers(0, 200),  # tokens of it
    st.lists(st.integers(0, 60), min_size=1, max_size=5),  # what follows
    st.integers(1, 90),  # new tokens
    st.integers(0, 1),  # seed
    st.integers(0, 1),  # priority
    st.integers(0, 30),  # steps until the next arrives
    st.sampled_from([None, None, None, 1, 9]),  # abort after so many tokens
)


@every_model
@given(
    load=st.lists(ARRIVAL, min_size=2, max_size=7),
    pages=st.integers(5, 9),
    snapshots=st.sampled_from([0, 2, 5, 100]),
    drafts=st.sampled_from([0, 1, 15]),
)
@settings(max_examples=examples(25), deadline=None)
def test_any_load_equals_a_plain_loop(
    name: str,
    load: list[tuple[int, int, list[int], int, int, int, int, int | None]],
    pages: int,
    snapshots: int,
    drafts: int,
) -> None:
    engine = small_engine(name, pages=pages, snapshots=snapshots, drafts=drafts)
    outputs: dict[int, list[TokenOutput]] = {}
    expected: dict[int, Tokens] = {}
    aborts: dict[int, int] = {}

    def step() -> None:
        for output in new_tokens(engine.step()):
            outputs.setdefault(output.request_id, []).append(output)
        for request_id, count in list(aborts.items()):
            if len(outputs.get(request_id, ())) >= count:
                engine.abort(request_id)
                del aborts[request_id]

    for stream, length, rest, max_tokens, seed, priority, pause, abort in load:
        prompt = (*STREAMS[stream][:length], *rest)
        params = SamplingParams(max_tokens=max_tokens, seed=seed, temperature=0.8)
        request_id = engine.add_request(prompt, params, priority=priority)
        expected[request_id] = plain_loop(name, prompt, max_tokens, seed)
        if abort is not None:
            aborts[request_id] = min(abort, max_tokens)
        for _ in range(pause):
            step()
    for _ in range(5000):
        if not engine.has_unfinished:
            break
        step()
    assert not engine.has_unfinished, "some request never ends"
    for request_id, tokens in expected.items():
        found = tokens_of(outputs[request_id])
        assert found == tokens[: len(found)]
    assert_nothing_is_owned(engine)


@every_model
def test_the_last_request_is_preempted_and_resumes_later(name: str) -> None:
    engine = small_engine(name, pages=5)
    outputs: dict[int, list[TokenOutput]] = {}
    prompts = [tuple(STREAMS[n][:60]) for n in range(3)]
    params = SamplingParams(max_tokens=100, seed=3, temperature=0.8)
    ids = [engine.add_request(prompt, params) for prompt in prompts]
    finish(engine, outputs)
    assert engine.stats.num_preemptions > 0
    for request_id, prompt in zip(ids, prompts, strict=True):
        assert tokens_of(outputs[request_id]) == plain_loop(name, prompt, 100, 3)


def count_fed(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> Callable[[], int]:
    """Return a count of the tokens that the model is fed from now on."""
    fed = 0
    forward = engine._runner.run

    def counting(parts: Sequence[Part]) -> object:
        nonlocal fed
        fed += sum(len(part.ids) for part in parts)
        return forward(parts)

    monkeypatch.setattr(engine._runner, "run", counting)
    return lambda: fed


@every_model
def test_a_next_turn_reads_only_what_is_new(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = small_engine(name, pages=20)
    fed = count_fed(monkeypatch, engine)
    history = tuple(STREAMS[0][:150])
    for turn in range(3):
        before = fed()
        outputs: dict[int, list[TokenOutput]] = {}
        params = SamplingParams(max_tokens=10, seed=turn, temperature=0.8)
        request_id = engine.add_request(history, params)
        finish(engine, outputs)
        assert tokens_of(outputs[request_id]) == plain_loop(name, history, 10, turn)
        # Of a later turn: the last token of the answer before, five new ones and nine sampled.
        assert fed() - before == (159 if turn == 0 else 15)
        answer = [output.token_id for output in outputs[request_id]]
        history = (*history, *answer, *STREAMS[1][:5])


@every_model
def test_a_request_that_runs_shares_its_pages_with_the_next(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = small_engine(name, pages=6)
    fed = count_fed(monkeypatch, engine)
    prompt = tuple(STREAMS[0][:280])
    outputs: dict[int, list[TokenOutput]] = {}
    params = SamplingParams(max_tokens=4, seed=1, temperature=0.8)
    first = engine.add_request(prompt, params)
    while fed() < 280:
        engine.step()
    second = engine.add_request((*prompt[:256], 1, 2), params)  # alone it needs 5 pages of 6
    before = fed()
    finish(engine, outputs)
    assert fed() - before == 2 + 3 + 3
    assert tokens_of(outputs[second]) == plain_loop(name, (*prompt[:256], 1, 2), 4, 1)
    assert tokens_of(outputs[first]) == plain_loop(name, prompt, 4, 1)[1:]


def test_the_third_of_a_kind_finds_the_state_where_the_first_two_parted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = small_engine("m1", pages=20)
    fed = count_fed(monkeypatch, engine)
    common = STREAMS[0][:130]  # two pages and two tokens
    found = []
    for n in range(3):
        before = fed()
        engine.add_request((*common, *STREAMS[1 + n % 2][n : n + 90]), SamplingParams(max_tokens=1))
        finish(engine, {})
        found.append(fed() - before)
    assert found[0] == 220
    assert found[2] == 220 - 128


def test_snapshots_of_a_long_way_grow_further_apart() -> None:
    cache = MODELS["m1"].new_cache(num_pages=400, num_slots=1)
    prefixes = PrefixCache(cache, snapshot_bytes=2**30)
    ids = list(range(64 * 300))
    allocation = prefixes.begin(ids)
    assert allocation is not None
    for page in range(1, 299):
        assert prefixes.grow(allocation, page * 64)
        prefixes.advance(allocation, ids, page * 64)
    depths = [node.depth // 64 for node in allocation.nodes if node.state is not None]
    assert len(depths) < 40
    for depth, after in pairwise(depths):
        assert after - depth <= max(1, (298 - after) // 2 + 1)


def test_int8_pages_change_logprobs_little() -> None:
    prompt = tuple(STREAMS[0][:250])
    exact, rounded = (plain_loop(name, prompt, 1, 0)[0] for name in ("m2", "m2, int8 pages"))
    assert exact[0] == rounded[0]
    assert exact[1] != rounded[1]
    assert rounded[1] == pytest.approx(exact[1], abs=0.02)


def test_what_was_used_last_stays_longest() -> None:
    prefixes = PrefixCache(MODELS["m2"].new_cache(num_pages=4, num_slots=2), snapshot_bytes=0)

    def run(ids: list[int]) -> int:
        allocation = prefixes.begin(ids)
        assert allocation is not None
        hit = allocation.num_tokens
        assert prefixes.grow(allocation, len(ids))
        prefixes.advance(allocation, ids, len(ids))
        prefixes.end(allocation, ids)
        return hit

    a, b, c = ([n] * 128 for n in range(3))
    assert run(a) == 0
    assert run(b) == 0
    assert run(a) == 127
    assert run(c) == 0  # takes the pages of b
    assert run(a) == 127
    assert run(b) == 0


def params_for(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, seed=3, temperature=0.8)


@every_model
def test_a_request_aborted_before_its_page_is_full_leaves_nothing_wrong(name: str) -> None:
    engine = small_engine(name, pages=20)
    first = engine.add_request(STREAMS[0][:10], params_for(200))
    prompt = tuple(STREAMS[1][:120])
    second = engine.add_request(prompt, params_for(100))
    made: list[int] = []
    while engine.is_unfinished(second):
        made += [out.token_id for out in new_tokens(engine.step()) if out.request_id == second]
        if len(made) == 8:  # 127 tokens are cached, with the next one its page is full
            engine.abort(second)
    engine.abort(first)
    longer = (*prompt, *made, 5, 6)
    outputs: dict[int, list[TokenOutput]] = {}
    third = engine.add_request(longer, params_for(5))
    finish(engine, outputs)
    assert tokens_of(outputs[third]) == plain_loop(name, longer, 5, 3)


@every_model
def test_a_known_prompt_runs_again_where_it_takes_all_pages(name: str) -> None:
    engine = small_engine(name, pages=5)
    prompt = tuple(STREAMS[0][:300])
    for again in (prompt, prompt, prompt[:299], (*prompt, 3)):
        outputs: dict[int, list[TokenOutput]] = {}
        request_id = engine.add_request(again, params_for(10))
        finish(engine, outputs)
        assert tokens_of(outputs[request_id]) == plain_loop(name, again, 10, 3)


def test_a_higher_priority_takes_the_slot_of_a_lower_one() -> None:
    engine = small_engine("m1", pages=20, seqs=1)
    prompts = [tuple(STREAMS[n][:70]) for n in range(2)]
    low = engine.add_request(prompts[0], params_for(60), priority=5)
    outputs: dict[int, list[TokenOutput]] = {}
    for _ in range(5):
        for output in new_tokens(engine.step()):
            outputs.setdefault(output.request_id, []).append(output)
    high = engine.add_request(prompts[1], params_for(3))
    while engine.is_unfinished(high):
        for output in new_tokens(engine.step()):
            outputs.setdefault(output.request_id, []).append(output)
    assert len(outputs[low]) < 10
    finish(engine, outputs)
    assert tokens_of(outputs[low]) == plain_loop("m1", prompts[0], 60, 3)
    assert tokens_of(outputs[high]) == plain_loop("m1", prompts[1], 3, 3)


def test_a_step_interrupted_between_two_requests_ends_them_and_nothing_stays_owned() -> None:
    class Interrupted(Script):
        def take(self, output: TokenOutput) -> bool:
            raise KeyboardInterrupt

    engine = small_engine("m2")
    for n in range(2):
        engine.add_request(STREAMS[n][:5], params_for(3), steering=(Script, Interrupted)[n]())
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert not engine.is_unfinished(1)
    finish(engine, {})
    assert_nothing_is_owned(engine)


def test_a_forced_id_comes_next_with_its_logprob_in_any_company() -> None:
    engine = small_engine("m2")
    engine.add_request(STREAMS[0][:5], params_for(4))
    second = engine.add_request(STREAMS[1][:5], params_for(4), steering=Script({1: 7}))
    outputs: dict[int, list[TokenOutput]] = {}
    finish(engine, outputs)
    plain = plain_loop("m2", tuple(STREAMS[1][:5]), 4, 3)
    found = tokens_of(outputs[second])
    assert found[0] == plain[0]
    assert found[1][0] == 7
    again = small_engine("m2")
    request_id = again.add_request(STREAMS[1][:5], params_for(4), steering=Script({1: 7}))
    again_outputs: dict[int, list[TokenOutput]] = {}
    finish(again, again_outputs)
    assert tokens_of(again_outputs[request_id]) == found
