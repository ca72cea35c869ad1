"""A request that fails ends alone: the others' bits do not change, and nothing stays owned."""

import functools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.engine import Candidates, Choice, Engine, EngineConfig, RequestFailed, TokenOutput
from fulmen.engine.sampler import num_candidates, sample
from fulmen.kernels import Program
from fulmen.models import Model, Packed
from fulmen.sampling import Mask, SamplingParams
from tests.engine.helpers import Script, assert_nothing_is_owned, new_tokens
from tests.examples import examples
from tests.models.helpers import random_model, tiny_m1, tiny_m2

VOCAB = 61
BROKEN = 60
"""Id whose embedding is not finite: logits are not, once it was fed"""


def broken_model(model: Model, value: float, *, packs: bool = False) -> Model:
    with torch.no_grad():
        model.model.embed_tokens.weight[BROKEN] = value
        assert model.lm_head is not None
        assert isinstance(model.lm_head.weight, torch.Tensor)
        model.lm_head.weight[BROKEN] *= 3  # so that it is drawn now and then
    if packs:
        model.pack()
    return model


MODELS = {
    "m1 nan": broken_model(random_model(tiny_m1()), math.nan),
    "m2 inf": broken_model(random_model(tiny_m2()), math.inf),
    "m1 inf packed": broken_model(random_model(tiny_m1()), math.inf, packs=True),
    "m2 nan packed": broken_model(random_model(tiny_m2()), math.nan, packs=True),
}
every_model = pytest.mark.parametrize("name", MODELS)
STREAMS = torch.randint(BROKEN, (2, 200), generator=torch.Generator().manual_seed(5)).tolist()
REPEATED = [7, 3, 9, 4, 1] * 30
Tokens = list[tuple[int, float]]


@functools.cache
def plain_loop(name: str, prompt: tuple[int, ...], max_tokens: int, seed: int) -> Tokens:
    """Return tokens and their log-probabilities, up to the first logits that are not finite."""
    model = MODELS[name]
    params = SamplingParams(max_tokens=max_tokens, seed=seed, temperature=0.8)
    cache, pages = model.new_cache(8, 1), list(range(8))
    found: Tokens = []
    length, ids = 0, list(prompt)
    while len(found) < max_tokens:
        packed = Packed.of(
            [ids], context_lens=[length], block_tables=[pages], slots=[0], only_last_logits=True
        )
        top_k = num_candidates(params, VOCAB)
        with torch.inference_mode():
            head = model.next_tokens(packed, cache, targets=torch.zeros(1).long(), top_k=top_k)
        if not head.logsumexp.isfinite():
            return found
        best = Candidates(float(head.logsumexp[0]), head.top_logits[0], head.top_ids[0])
        sampled = sample(best, params, seed=seed, draw=len(found))
        found.append((sampled.token_id, sampled.logprob))
        length, ids = length + len(ids), [sampled.token_id]
    return found


class Fault(Script):
    """A steering that is at fault after so many tokens."""

    def __init__(self, kind: str, after: int) -> None:
        super().__init__()
        self.kind = kind
        self.after = after

    def ask(self, draft_ids: Sequence[int]) -> list[Choice]:
        if len(self.outputs) < self.after:  # the fault's place is no guess
            return super().ask(draft_ids[: self.after - len(self.outputs) - 1])
        if self.kind == "raises when asked":
            raise LookupError(self.kind)
        return {
            "answers nothing": [],
            "answers too much": [Choice()] * (2 + len(draft_ids)),
            "forces an unknown id": [Choice(forced_id=VOCAB)],
            "forces a negative id": [Choice(forced_id=-1)],
            "biases an unknown id": [Choice(logit_bias=(10**9, 1.0))],
            "biases by NaN": [Choice(logit_bias=(1, math.nan))],
            "allows no id": [Choice(Mask(np.zeros(VOCAB, dtype=np.bool_)))],
            "has a mask of another size": [Choice(Mask(np.ones(VOCAB - 1, dtype=np.bool_)))],
        }.get(self.kind, [Choice()])

    def take(self, output: TokenOutput) -> bool:
        if len(self.outputs) == self.after and self.kind == "raises when told":
            raise LookupError(self.kind)
        return super().take(output)


FAULTS = (
    "raises when asked",
    "raises when told",
    "answers nothing",
    "answers too much",
    "forces an unknown id",
    "forces a negative id",
    "biases an unknown id",
    "biases by NaN",
    "allows no id",
    "has a mask of another size",
)
ARRIVAL = st.tuples(
    st.sampled_from([*STREAMS, REPEATED]),
    st.integers(0, 150),  # tokens of it
    st.sampled_from([[1], [2, 3], [BROKEN, 1], [1, BROKEN]]),  # ids that follow
    st.integers(1, 40),  # new tokens
    st.integers(0, 1),  # seed
    st.integers(0, 20),  # steps until the next arrives
    st.none() | st.tuples(st.sampled_from(FAULTS), st.integers(0, 12)),
)


def new_engine(name: str, **changes: int) -> Engine:
    options = {"max_num_seqs": 3, "max_num_batched_tokens": 96, "max_model_len": 256} | changes
    return Engine(MODELS[name], EngineConfig(**options))  # type: ignore[arg-type]


@every_model
@given(
    load=st.lists(ARRIVAL, min_size=1, max_size=6),
    pages=st.integers(5, 9),
    drafts=st.sampled_from([0, 15]),
)
@settings(max_examples=examples(15), deadline=None)
def test_each_request_equals_a_plain_loop_up_to_its_own_fault(
    name: str,
    load: list[tuple[list[int], int, list[int], int, int, int, tuple[str, int] | None]],
    pages: int,
    drafts: int,
) -> None:
    engine = new_engine(
        name, kv_cache_bytes=pages * MODELS[name].page_bytes(), num_draft_tokens=drafts
    )
    outputs: dict[int, list[TokenOutput | RequestFailed]] = {}

    def step() -> None:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)

    steerings: dict[int, Script] = {}
    expected: dict[int, tuple[Tokens, bool]] = {}
    for stream, length, rest, max_tokens, seed, pause, fault in load:
        prompt = (*stream[:length], *rest)
        params = SamplingParams(max_tokens=max_tokens, seed=seed, temperature=0.8, logprobs=3)
        steering = Script() if fault is None else Fault(*fault)
        request_id = engine.add_request(prompt, params, steering=steering)
        steerings[request_id] = steering
        found = plain_loop(name, prompt, max_tokens, seed)
        count = len(found) if fault is None else min(fault[1], len(found))
        expected[request_id] = found[:count], count < max_tokens
        for _ in range(pause):
            step()
    for _ in range(3000):
        if engine.has_unfinished:
            step()
    assert not engine.has_unfinished
    for request_id, (tokens, fails) in expected.items():
        last, steering = outputs[request_id][-1], steerings[request_id]
        made = new_tokens(outputs[request_id][: -1 if fails else None])
        assert [(output.token_id, output.logprob) for output in made] == tokens
        assert made == steering.outputs
        assert all(math.isfinite(value) for out in made for _, value in out.top_logprobs)
        assert isinstance(last, RequestFailed) == fails
        assert steering.errors == ([last.error] if isinstance(last, RequestFailed) else [])
    assert_nothing_is_owned(engine)


def test_logits_that_are_not_finite_are_named_with_their_place() -> None:
    for name, sentence in (
        ("m1 nan", "the model gave NaN logits after 3 tokens in float32: a weight is not finite"),
        ("m2 nan packed", "the model gave NaN logits after 3 tokens in float32"),
    ):
        engine = new_engine(name)
        engine.add_request([1, BROKEN, 2], SamplingParams(temperature=0))
        (failed,) = engine.step()
        assert isinstance(failed, RequestFailed)
        assert isinstance(failed.error, ValueError)
        assert sentence in str(failed.error)


@every_model
def test_logits_that_are_not_finite_after_a_right_guess_end_what_follows_it(name: str) -> None:
    engine = new_engine(name, num_draft_tokens=15)
    # The prompt repeats itself, so its ids are guessed; the model is made to say them, and then
    # the broken one, which was never fed before.
    forced = dict(enumerate([7, 3, 9, 4, 1] * 2))
    forced[10] = BROKEN
    steering = Script(forced)
    engine.add_request(REPEATED, SamplingParams(temperature=0), steering=steering)
    outputs: list[TokenOutput | RequestFailed] = []
    while engine.has_unfinished:
        outputs += engine.step()
    assert isinstance(outputs[-1], RequestFailed)
    assert [out.token_id for out in new_tokens(outputs[:-1])] == list(forced.values())
    assert engine.stats.num_accepted_tokens > 0
    assert_nothing_is_owned(engine)


@every_model
@given(
    after=st.integers(1, 12),
    error=st.sampled_from([RuntimeError("no memory"), KeyboardInterrupt()]),
    num_requests=st.integers(1, 5),
)
@settings(max_examples=examples(10), deadline=None)
def test_a_pass_that_fails_ends_those_who_took_part(
    name: str, after: int, error: BaseException, num_requests: int
) -> None:
    engine = new_engine(name, max_num_seqs=2)
    prompts = [tuple(STREAMS[n % 2][: 50 + 9 * n]) for n in range(num_requests)]
    params = SamplingParams(max_tokens=5, seed=1, temperature=0.8)
    steerings = {engine.add_request(p, params, steering=(s := Script())): s for p in prompts}

    def fail(*_: object, **__: object) -> None:
        raise error

    def is_ended(steering: Script) -> bool:
        return any(isinstance(one, type(error)) for one in steering.errors)

    num_steps = 0
    while engine.has_unfinished:
        num_steps += 1
        if num_steps == after:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(engine.model, "hidden_states", fail)
                patch.setattr(Program, "replay", fail)
                with pytest.raises(type(error)):
                    engine.step()
            ended = [request_id for request_id, one in steerings.items() if is_ended(one)]
            assert 1 <= len(ended) <= 2
            assert not any(map(engine.is_unfinished, ended))
        else:
            engine.step()
    for steering, prompt in zip(steerings.values(), prompts, strict=True):
        made = [(output.token_id, output.logprob) for output in steering.outputs]
        plain = plain_loop(name, prompt, 5, 1)
        assert made == plain[: len(made)]
        assert is_ended(steering) or len(made) == len(plain)
        assert len(steering.errors) == (len(made) < 5)
    assert_nothing_is_owned(engine)


class Watched(Script):
    """Allows ids by the last one taken, and checks that each id taken was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: list[Choice] = []
        self.answers: dict[int, Choice] = {}

    def ask(self, draft_ids: Sequence[int]) -> list[Choice]:
        first = len(self.outputs)
        taken = [output.token_id for output in self.outputs]
        choices = []
        for place in range(1 + len(draft_ids)):
            before = [0, *taken, *draft_ids[:place]]
            allowed = (np.arange(VOCAB) + before[-1]) % 3 == 0
            allowed[BROKEN] = False
            choices.append(Choice(Mask(allowed)))
            if place < len(draft_ids) and not allowed[draft_ids[place]]:
                break
        if first in self.answers:  # asked again before it was told
            mask = self.answers[first].mask
            assert mask is not None
            assert choices[0].mask is not None
            assert (mask.allowed == choices[0].mask.allowed).all()
        self.answers[first] = choices[0]
        self.pending = choices
        return list(choices)

    def take(self, output: TokenOutput) -> bool:
        mask = self.pending.pop(0).mask
        assert mask is not None
        assert mask.allowed[output.token_id]
        return super().take(output)


@every_model
def test_each_token_was_asked_for_and_preemption_changes_none(name: str) -> None:
    answers = []
    for pages, drafts in ((20, 0), (5, 0), (5, 15)):
        engine = new_engine(
            name, kv_cache_bytes=pages * MODELS[name].page_bytes(), num_draft_tokens=drafts
        )
        steerings = [Watched() for _ in range(3)]
        for n, steering in enumerate(steerings):
            params = SamplingParams(max_tokens=90, seed=n, temperature=0.8)
            engine.add_request(REPEATED[: 60 + n], params, steering=steering)
        while engine.has_unfinished:
            engine.step()
        answers.append(
            [[(out.token_id, out.logprob) for out in steering.outputs] for steering in steerings]
        )
        assert (engine.stats.num_preemptions > 0) == (pages == 5)
    assert answers[0] == answers[1] == answers[2]


@every_model
@given(
    place=st.integers(0, 199),
    length=st.integers(0, 60),
    budget=st.integers(8, 128),
    stream=st.sampled_from(STREAMS),
)
@settings(max_examples=examples(15), deadline=None)
def test_no_page_or_state_that_is_not_finite_becomes_known(
    name: str, place: int, length: int, budget: int, stream: list[int]
) -> None:
    engine = new_engine(name, max_num_batched_tokens=budget)
    prompt = [*stream[:place], BROKEN, *stream[: min(length, 199 - place)]]
    engine.add_request(prompt, SamplingParams(max_tokens=3))
    while engine.has_unfinished:
        engine.step()
    known = engine.prefixes.known(prompt)
    assert sum(len(node.ids) for node in known) <= place
    cache = engine.prefixes.cache
    for part in cache.read_pages([node.page for node in known]).values():
        assert part.isfinite().all()
    for node in known:
        for part in node.state.tensors().values() if node.state is not None else ():
            assert part.isfinite().all()
    assert_nothing_is_owned(engine)
