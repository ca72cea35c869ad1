"""The engine against a plain loop over the model, alone and in company, and why requests end."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.engine import Engine, EngineConfig, TokenOutput
from fulmen.engine.sampler import num_candidates, sample
from fulmen.models import Model
from fulmen.sampling import SamplingParams
from tests.engine.helpers import Script, assert_nothing_is_owned, best_of, new_tokens
from tests.examples import examples
from tests.models.helpers import Session, packed_model, random_model, tiny_m1, tiny_m2

MODELS = {"m1": packed_model(tiny_m1()), "m2": packed_model(tiny_m2())}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
GREEDY = SamplingParams(temperature=0, max_tokens=8)
SMALL = EngineConfig(max_num_seqs=3, max_num_batched_tokens=16, max_model_len=256)


def run(engine: Engine) -> dict[int, list[TokenOutput]]:
    """All tokens of all requests."""
    outputs: dict[int, list[TokenOutput]] = {}
    while engine.has_unfinished:
        for output in new_tokens(engine.step()):
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def plain_loop(model: Model, prompt: list[int], params: SamplingParams) -> list[int]:
    """Feed, sample, feed the sample."""
    assert params.max_tokens is not None
    assert params.seed is not None
    session = Session(model)
    logits = session.feed(prompt)[-1]
    ids: list[int] = []
    while True:
        best = best_of(logits, num_candidates(params, len(logits)))
        ids.append(sample(best, params, seed=params.seed, draw=len(ids)).token_id)
        if len(ids) == params.max_tokens:
            return ids
        logits = session.feed(ids[-1:])[-1]


@every_model
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 60), min_size=1, max_size=90),
            st.integers(1, 6),
            st.integers(0, 99),
            st.integers(0, 4),
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=examples(15), deadline=None)
def test_requests_in_company_equal_a_plain_loop(
    model: Model, load: list[tuple[list[int], int, int, int]]
) -> None:
    engine = Engine(model, SMALL)
    expected: dict[int, list[int]] = {}
    outputs: dict[int, list[int]] = {}
    arrivals = list(load)
    while arrivals or engine.has_unfinished:
        if arrivals:
            prompt, max_tokens, seed, pause = arrivals.pop()
            params = SamplingParams(max_tokens=max_tokens, seed=seed, temperature=0.8)
            request_id = engine.add_request(prompt, params)
            expected[request_id] = plain_loop(model, prompt, params)
        for _ in range(pause + 1):
            for output in new_tokens(engine.step()):
                outputs.setdefault(output.request_id, []).append(output.token_id)
    assert outputs == expected
    assert_nothing_is_owned(engine)


@every_model
def test_an_aborted_request_frees_its_share_and_disturbs_nobody(model: Model) -> None:
    engine = Engine(model, SMALL)
    alone = Engine(model, SMALL)
    prompts = [[1, 2, 3], [4] * 70, [5, 6], [7, 8, 9]]
    kept = [engine.add_request(prompt, GREEDY) for prompt in prompts]
    engine.step()
    engine.abort(kept[0])
    engine.abort(kept[3])  # still waiting: only three run at once
    engine.abort(12345)
    outputs = run(engine)
    for index in (1, 2):
        request_id = alone.add_request(prompts[index], GREEDY)
        expected = [output.token_id for output in run(alone)[request_id]]
        assert [output.token_id for output in outputs[kept[index]]][-6:] == expected[-6:]
    assert kept[3] not in outputs
    assert_nothing_is_owned(engine)


def test_a_failed_step_aborts_what_took_part_and_leaves_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = MODELS["m1"]
    engine = Engine(model, EngineConfig(max_num_seqs=1, max_model_len=256))
    first, second = (engine.add_request([1, 2, 3], GREEDY) for _ in range(2))
    engine.step()

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model, "hidden_states", fail)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    assert not engine.is_unfinished(first)
    assert engine.is_unfinished(second)
    assert [out.token_id for out in run(engine)[second]] == [
        out.token_id for out in run_one(model, GREEDY)
    ]
    assert_nothing_is_owned(engine)


def test_a_context_cut_by_the_caches_size_is_said(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(MODELS["m2"], EngineConfig(kv_cache_bytes=100_000))
    assert engine.max_model_len < 1024
    assert f"holds {engine.max_model_len} tokens, the context could have 1024" in caplog.text


def test_eos_and_stop_ids_end_a_request_and_are_its_last_token() -> None:
    model = MODELS["m2"]
    free = [out.token_id for out in run_one(model, GREEDY)]
    eos = free[3]
    position = free.index(eos)
    for engine, params in (
        (Engine(model, SMALL, eos_token_ids=[eos]), GREEDY),
        (
            Engine(model, SMALL),
            SamplingParams(temperature=0, max_tokens=8, stop_token_ids=(eos,)),
        ),
    ):
        request_id = engine.add_request([1, 2, 3], params)
        outputs = run(engine)[request_id]
        assert [out.token_id for out in outputs] == free[: position + 1]
        assert outputs[-1].finish_reason == "stop"
    engine = Engine(model, SMALL, eos_token_ids=[eos])
    ignoring = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    request_id = engine.add_request([1, 2, 3], ignoring)
    assert [out.token_id for out in run(engine)[request_id]] == free


def run_one(model: Model, params: SamplingParams) -> list[TokenOutput]:
    """The tokens of one request alone."""
    engine = Engine(model, SMALL)
    request_id = engine.add_request([1, 2, 3], params)
    return run(engine)[request_id]


def test_max_tokens_and_the_context_end_a_request_with_length() -> None:
    outputs = run_one(MODELS["m2"], GREEDY)
    assert [out.finish_reason for out in outputs] == [None] * 7 + ["length"]
    engine = Engine(MODELS["m2"], EngineConfig(max_model_len=64))
    request_id = engine.add_request([1] * 60, SamplingParams(temperature=0))
    outputs = run(engine)[request_id]
    assert len(outputs) == 4
    assert outputs[-1].finish_reason == "length"


def test_repetition_stop_counts_confident_tokens_in_a_row() -> None:
    params = SamplingParams(temperature=0, max_tokens=8, repetition_window=3)
    assert len(run_one(MODELS["m2"], params)) == 8
    sure = random_model(tiny_m2())
    with torch.no_grad():
        assert sure.lm_head is not None
        assert isinstance(sure.lm_head.weight, torch.Tensor)
        sure.lm_head.weight.mul_(1000)
    outputs = run_one(sure, params)
    assert len(outputs) == 3
    assert outputs[-1].finish_reason == "repetition"


def test_forced_tokens_come_next_and_are_fed_like_any_other() -> None:
    model = MODELS["m1"]
    engine = Engine(model, SMALL)
    request_id = engine.add_request([1, 2, 3], GREEDY, steering=Script({1: 7, 2: 8}))
    outputs = run(engine)[request_id]
    ids = [output.token_id for output in outputs]
    assert ids[1:3] == [7, 8]
    session = Session(model)
    logits = session.feed([1, 2, 3, *ids[:3]])
    assert ids[3] == int(logits[-1].argmax())
    assert outputs[1].logprob == pytest.approx(float(logits[-3].log_softmax(-1)[7]), abs=1e-4)


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ([], "the prompt is empty, at least one token is needed"),
        ([1] * 256, "the prompt has 256 tokens, the context holds 256"),
        ([1, 61], "token id 61 is outside the 61 ids known"),
        ([-1], "token id -1 is outside"),
    ],
)
def test_wrong_prompts_are_refused(prompt: list[int], sentence: str) -> None:
    engine = Engine(MODELS["m2"], SMALL)
    with pytest.raises(ValueError, match=sentence):
        engine.add_request(prompt, GREEDY)
    assert not engine.has_unfinished


def test_a_cache_too_small_for_one_page_is_refused() -> None:
    with pytest.raises(ValueError, match="one page of 64 tokens needs"):
        Engine(MODELS["m2"], EngineConfig(kv_cache_bytes=10))
    with pytest.raises(ValueError, match="max_model_len is 2000, the model's context is 1024"):
        Engine(MODELS["m2"], EngineConfig(max_model_len=2000))
    with pytest.raises(ValueError, match="max_num_seqs is 0"):
        EngineConfig(max_num_seqs=0)
