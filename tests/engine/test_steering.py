"""Steering: only what it allows comes, whatever runs beside, is guessed or is preempted."""

import copy
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from fulmen.engine import Choice, Engine, EngineConfig, TokenOutput
from fulmen.models import Model
from fulmen.sampling import Mask, SamplingParams
from tests.engine.helpers import new_tokens
from tests.models.helpers import random_model, tiny_m1, tiny_m2

MODELS: dict[str, Model] = {"m1": random_model(tiny_m1()), "m2": random_model(tiny_m2())}
for name in list(MODELS):
    MODELS[f"{name} packed"] = copy.deepcopy(MODELS[name])
    MODELS[f"{name} packed"].pack()
VOCAB = 61
PARAMS = [
    SamplingParams(temperature=0, max_tokens=60, logprobs=2),
    SamplingParams(temperature=0.7, seed=1, max_tokens=60, top_k=3, logprobs=2),
    SamplingParams(temperature=1.3, seed=2, max_tokens=60, top_k=None, top_p=0.9),
]


class OneInThree:
    """Allows all of `num_free` ids; then an id may follow if its sum with the one before is a
    multiple of three."""

    def __init__(
        self, num_free: int, *, redraw_only: bool = False, forced_ids: Sequence[int] = ()
    ) -> None:
        self.num_free = num_free
        self.redraw_only = redraw_only
        self.forced_ids = list(forced_ids)
        self.last = 0

    def ask(self, draft_ids: Sequence[int]) -> list[Choice]:
        if self.forced_ids:
            return [Choice(forced_id=self.forced_ids[0])]
        choices: list[Choice] = []
        for place, last in enumerate((self.last, *draft_ids)):
            allowed = (np.arange(VOCAB) + last) % 3 == 0
            mask = None if place < self.num_free else Mask(allowed, self.redraw_only)
            choices.append(Choice(mask))
            is_last = place == len(draft_ids)
            if not is_last and place >= self.num_free and not allowed[draft_ids[place]]:
                break
        return choices

    def take(self, output: TokenOutput) -> bool:
        self.num_free = max(self.num_free - 1, 0)
        self.last = output.token_id
        del self.forced_ids[:1]
        return False

    def fail(self, error: BaseException) -> None:
        raise AssertionError from error

    def abort(self) -> None:
        raise AssertionError


def answers(
    model: Model, jobs: Sequence[tuple[SamplingParams, int | None]], config: EngineConfig
) -> tuple[list[list[TokenOutput]], Engine]:
    """Return each job's answer; a job is its params, and after how many ids it is masked, if it
    is."""
    engine = Engine(model, config)
    ids = [
        engine.add_request(
            [7, 3, 9, 4] * (8 + index), params, steering=None if free is None else OneInThree(free)
        )
        for index, (params, free) in enumerate(jobs)
    ]
    outputs: dict[int, list[TokenOutput]] = {request_id: [] for request_id in ids}
    while engine.has_unfinished:
        for output in new_tokens(engine.step()):
            outputs[output.request_id].append(output)
    return list(outputs.values()), engine


def said(outputs: Sequence[TokenOutput]) -> list[tuple[object, ...]]:
    return [(out.token_id, out.logprob, out.top_logprobs) for out in outputs]


JOBS = [(params, free) for params in PARAMS for free in (None, 0, 9)]


@cache
def answers_alone(name: str) -> list[list[tuple[object, ...]]]:
    """Return what each of the jobs says where it is the only one."""
    alone = []
    for index, job in enumerate(JOBS):
        # Its prompt depends on its place.
        before = [(SamplingParams(max_tokens=1), None)] * index
        config = EngineConfig(max_num_seqs=1, max_model_len=512)
        alone.append(said(answers(MODELS[name], [*before, job], config)[0][-1]))
    return alone


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("drafts", "candidates"), [(0, 61), (0, 4), (7, 9)])
def test_masked_and_free_requests_side_by_side_equal_lone_ones(
    name: str, drafts: int, candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = answers_alone(name)
    monkeypatch.setattr("fulmen.engine.runner.MASKED_CANDIDATES", candidates)
    config = EngineConfig(max_num_seqs=9, max_model_len=512, num_draft_tokens=drafts)
    together, engine = answers(MODELS[name], JOBS, config)
    assert [said(outputs) for outputs in together] == alone
    assert not drafts or engine.stats.num_accepted_tokens > 0
    for (_, free), outputs in zip(JOBS, together, strict=True):
        ids = [output.token_id for output in outputs]
        if free is not None:
            pairs = list(zip([0, *ids], ids, strict=False))[free:]
            assert all((one + two) % 3 == 0 for one, two in pairs)


@pytest.mark.parametrize("name", ["m1", "m2"])
def test_tokens_before_the_mask_are_those_of_a_request_without_one(name: str) -> None:
    config = EngineConfig(max_num_seqs=1, max_model_len=512)
    for params in PARAMS:
        (plain,), _ = answers(MODELS[name], [(params, None)], config)
        (guided,), _ = answers(MODELS[name], [(params, 20)], config)
        assert said(guided)[:20] == said(plain)[:20]
        assert said(guided)[20:] != said(plain)[20:]


@pytest.mark.parametrize("name", ["m1", "m2"])
def test_a_preempted_request_goes_on_in_its_grammar(name: str) -> None:
    model = MODELS[name]
    jobs = [(params, free) for params in PARAMS for free in (0, 9)]
    roomy = EngineConfig(max_num_seqs=3, max_model_len=256)
    tight = EngineConfig(
        max_num_seqs=3, max_model_len=256, kv_cache_bytes=5 * model.page_bytes(None)
    )
    expected, _ = answers(model, jobs, roomy)
    found, engine = answers(model, jobs, tight)
    assert [said(outputs) for outputs in found] == [said(outputs) for outputs in expected]
    assert engine.stats.num_preemptions > 0


def test_forced_tokens_come_whatever_follows_is_allowed() -> None:
    engine = Engine(MODELS["m2"], EngineConfig(max_num_seqs=1, max_model_len=256))
    params = SamplingParams(seed=1, max_tokens=4)
    engine.add_request([1, 2, 3], params, steering=OneInThree(0, forced_ids=[5, 5]))
    ids = [output.token_id for _ in range(4) for output in new_tokens(engine.step())]
    assert ids[:2] == [5, 5]
    assert (ids[2] + 5) % 3 == (ids[3] + ids[2]) % 3 == 0


def test_a_mask_for_redraws_changes_only_what_it_refuses() -> None:
    for params in PARAMS:
        ids: list[list[int]] = []
        for steering in (None, OneInThree(0, redraw_only=True)):
            engine = Engine(MODELS["m2"], EngineConfig(max_num_seqs=1, max_model_len=256))
            engine.add_request([1, 2, 3], params, steering=steering)
            ids.append(
                [new_tokens(engine.step())[0].token_id for _ in range(params.max_tokens or 1)]
            )
        free, held = ids
        allowed = [(one + two) % 3 == 0 for one, two in zip([0, *free], free, strict=False)]
        refused = allowed.index(False)
        assert held[:refused] == free[:refused]
        assert held[refused] != free[refused]
        assert all((one + two) % 3 == 0 for one, two in zip([0, *held], held, strict=False))
