"""Draws without filters, which the head makes itself: the ids of a draw from all logits, whatever
runs beside, with masks, biases and guesses."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.engine import Choice, Engine, EngineConfig
from fulmen.engine.sampler import sample
from fulmen.models import Model
from fulmen.sampling import Mask, SamplingParams
from tests.engine.helpers import Script, best_of, new_tokens
from tests.examples import examples
from tests.models.helpers import Session, packed_model, random_model, tiny_m1, tiny_m2

VOCAB = 200  # several panels of the head
MODELS = {
    "m1": packed_model(tiny_m1(vocab_size=VOCAB)),
    "m2": packed_model(tiny_m2(vocab_size=VOCAB)),
    "m2 plain": random_model(tiny_m2(vocab_size=VOCAB)),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
MIXED = [
    SamplingParams(temperature=1.0, top_p=1.0, top_k=None),
    SamplingParams(temperature=0.6, top_p=1.0, top_k=None, logprobs=3),
    SamplingParams(temperature=0),
    SamplingParams(temperature=1.0, top_p=0.9, top_k=None),
]


class Held(Script):
    """Allows the ids of a mask alone, or biases one."""

    def __init__(self, choice: Choice) -> None:
        super().__init__()
        self.choice = choice

    def ask(self, draft_ids: Sequence[int]) -> list[Choice]:
        return [self.choice]


def plain_loop(
    model: Model, prompt: Sequence[int], params: SamplingParams, choice: Choice | None = None
) -> list[tuple[int, float]]:
    """Feed, sample from all logits, feed the sample."""
    assert params.seed is not None
    assert params.max_tokens is not None
    session = Session(model)
    logits = session.feed(prompt)[-1]
    found: list[tuple[int, float]] = []
    while True:
        forced = None if choice is None or choice.logit_bias is None else choice.logit_bias[0]
        best = best_of(logits, VOCAB, forced)
        sampled = sample(best, params, seed=params.seed, draw=len(found), choice=choice)
        found.append((sampled.token_id, sampled.logprob))
        if len(found) == params.max_tokens:
            return found
        logits = session.feed([sampled.token_id])[-1]


def answers(
    model: Model, load: Sequence[tuple[list[int], SamplingParams, Choice | None]], **limits: Any
) -> list[list[tuple[int, float]]]:
    """Answer all together."""
    config = EngineConfig(max_num_batched_tokens=32, max_model_len=256, **limits)
    engine = Engine(model, config)
    ids = [
        engine.add_request(prompt, params, steering=None if choice is None else Held(choice))
        for prompt, params, choice in load
    ]
    found: dict[int, list[tuple[int, float]]] = {request_id: [] for request_id in ids}
    while engine.has_unfinished:
        for output in new_tokens(engine.step()):
            found[output.request_id].append((output.token_id, output.logprob))
    return list(found.values())


@st.composite
def requests(draw: st.DrawFn) -> tuple[list[int], SamplingParams, Choice | None]:
    random = np.random.default_rng(draw(st.integers(0, 999)))
    allowed = random.random(VOCAB) < draw(st.sampled_from([0.05, 0.5]))
    allowed[3] = True
    choice = draw(
        st.sampled_from(
            [
                None,
                Choice(Mask(allowed)),
                Choice(Mask(allowed, redraw_only=True)),
                Choice(logit_bias=(5, 3.0)),
                Choice(Mask(allowed), logit_bias=(3, -2.0)),
                Choice(Mask(allowed, redraw_only=True), logit_bias=(3, 9.0)),
            ]
        )
    )
    params = replace(
        draw(st.sampled_from(MIXED)),
        seed=draw(st.integers(0, 99)),
        max_tokens=draw(st.integers(1, 12)),
    )
    prompt = random.integers(0, VOCAB, draw(st.integers(1, 70))).tolist()
    return prompt, params, choice


@every_model
@given(st.lists(requests(), min_size=1, max_size=6), st.sampled_from([0, 3]))
@settings(max_examples=examples(25), deadline=None)
def test_requests_in_any_company_draw_as_a_plain_loop_from_all_logits(
    model: Model,
    load: list[tuple[list[int], SamplingParams, Choice | None]],
    num_draft_tokens: int,
) -> None:
    found = answers(model, load, max_num_seqs=4, num_draft_tokens=num_draft_tokens)
    for tokens, request in zip(found, load, strict=True):
        expected = plain_loop(model, *request)
        assert [one for one, _ in tokens] == [one for one, _ in expected]
        assert [one for _, one in tokens] == pytest.approx([one for _, one in expected], abs=1e-4)
        assert [tokens] == answers(model, [request], max_num_seqs=1)  # to the bit


@every_model
def test_a_mask_that_never_refuses_a_draw_changes_nothing(model: Model) -> None:
    params = replace(MIXED[0], seed=9, max_tokens=40)
    everything = np.ones(VOCAB, dtype=np.bool_)
    free, held = answers(
        model,
        [([1, 2], params, None), ([1, 2], params, Choice(Mask(everything, redraw_only=True)))],
        max_num_seqs=2,
    )
    assert free == held
    others = np.ones(VOCAB, dtype=np.bool_)
    others[free[0][0]] = False  # the first draw is refused, and drawn again by another number
    (redrawn,) = answers(
        model, [([1, 2], params, Choice(Mask(others, redraw_only=True)))], max_num_seqs=1
    )
    assert all(token_id != free[0][0] for token_id, _ in redrawn)


def test_a_draw_that_is_continued_draws_what_it_would_have_drawn() -> None:
    params = replace(MIXED[0], seed=2, max_tokens=30)
    engine = Engine(MODELS["m1"])
    engine.add_request([4, 5, 6], params)
    whole = [one for _ in range(40) for one in new_tokens(engine.step())]
    ids = [output.token_id for output in whole]
    engine.add_request([4, 5, 6, *ids[:11]], params, num_prefix_ids=11)
    rest = [one for _ in range(40) for one in new_tokens(engine.step())]
    assert [(one.token_id, one.logprob) for one in rest] == [
        (one.token_id, one.logprob) for one in whole[11:]
    ]
