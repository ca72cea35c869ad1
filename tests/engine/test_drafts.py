"""Guessed tokens: nothing that is said changes, and text that repeats itself takes fewer steps."""

import copy
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.engine import Engine, EngineConfig, EngineStats, TokenOutput
from fulmen.engine.drafts import KEY, LONGEST_MATCH, Drafter
from fulmen.models import Model
from fulmen.sampling import SamplingParams
from tests.engine.helpers import Script, new_tokens
from tests.models.helpers import random_model, tiny_m1, tiny_m2

MODELS: dict[str, Model] = {"m1": random_model(tiny_m1()), "m2": random_model(tiny_m2())}
for name in list(MODELS):
    MODELS[f"{name} packed"] = copy.deepcopy(MODELS[name])
    MODELS[f"{name} packed"].pack()
PATTERN = [7, 3, 9, 4, 1, 12, 5]


def answer(
    name: str, drafts: int, params: Sequence[SamplingParams]
) -> tuple[list[list[TokenOutput]], EngineStats]:
    engine = Engine(
        MODELS[name],
        EngineConfig(max_num_seqs=3, max_model_len=512, num_draft_tokens=drafts),
    )
    prompt = PATTERN * 12
    ids = [engine.add_request(prompt, one) for one in params]
    outputs: dict[int, list[TokenOutput]] = {request_id: [] for request_id in ids}
    while engine.has_unfinished:
        for output in new_tokens(engine.step()):
            outputs[output.request_id].append(output)
    return list(outputs.values()), engine.stats


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("requests", [1, 3])
def test_drafts_change_nothing_but_the_number_of_steps(name: str, requests: int) -> None:
    params = [
        SamplingParams(temperature=0, max_tokens=200),
        SamplingParams(temperature=0.7, seed=1, max_tokens=150, top_k=3, logprobs=2),
        SamplingParams(temperature=0.2, seed=2, max_tokens=90),
    ][:requests]
    plain, before = answer(name, 0, params)
    drafted, after = answer(name, 7, params)
    assert drafted == plain
    assert before.num_drafted_tokens == 0
    assert 0 < after.num_accepted_tokens <= after.num_drafted_tokens
    assert after.num_steps < before.num_steps


@pytest.mark.parametrize("name", ["m1", "m2"])
def test_an_id_forced_or_an_end_within_a_step_counts_at_once(name: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=120)

    forced = {20: 5, 21: 6, 61: 5, 62: 6, 63: 5, 64: 6}

    def run(drafts: int, *, ends: bool) -> list[int]:
        engine = Engine(
            MODELS[name], EngineConfig(max_num_seqs=1, max_model_len=512, num_draft_tokens=drafts)
        )
        steering = Script(forced, end=101 if ends else None)
        engine.add_request(PATTERN * 12, params, steering=steering)
        ids: list[int] = []
        while engine.has_unfinished:
            ids += [output.token_id for output in new_tokens(engine.step())]
        assert ids == [output.token_id for output in steering.outputs]
        return ids

    plain = run(0, ends=False)
    assert run(7, ends=False) == plain
    assert run(7, ends=True) == plain[:101]


@given(st.lists(st.integers(0, 3), max_size=80), st.integers(1, 15))
def test_a_draft_followed_the_longest_latest_match(ids: list[int], most: int) -> None:
    drafter = Drafter()
    for end in range(len(ids) // 2, len(ids)):
        drafter.draft(ids[:end], most)
    draft = drafter.draft(ids, most)
    places = [end for end in range(KEY, len(ids)) if ids[end - KEY : end] == ids[len(ids) - KEY :]][
        -4:
    ]
    assert bool(draft) == bool(places)
    if not draft:
        return

    def agreement(place: int) -> int:
        length = KEY
        while length < min(LONGEST_MATCH, place) and ids[place - length - 1] == ids[-length - 1]:
            length += 1
        return length

    best = max(places, key=lambda place: (agreement(place), place))
    assert draft == ids[best : best + min(most, agreement(best))]
