"""New weights in a live engine: from then on it is a new engine on them, token for token and
log-probability for log-probability, and every token says which weights gave it."""

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.engine import Engine, EngineConfig, TokenOutput
from fulmen.kernels import native
from fulmen.models import Config, Model, Packed, new_model
from fulmen.sampling import SamplingParams
from tests.engine.helpers import Script, assert_nothing_is_owned, new_tokens
from tests.examples import examples
from tests.models.helpers import random_model, tiny_m1, tiny_m2

CONFIGS: Final[Mapping[str, Config]] = {"m1": tiny_m1(), "m2": tiny_m2()}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
every_config = pytest.mark.parametrize("kind", CONFIGS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
LIMITS = EngineConfig(
    max_num_seqs=3, max_num_batched_tokens=80, max_model_len=512, max_token_gap_seconds=None
)
PROMPTS = torch.randint(61, (4, 150), generator=torch.Generator().manual_seed(3)).tolist()
FREE = SamplingParams(temperature=1.0, top_p=1.0, top_k=None, seed=4, max_tokens=20)
Tokens = list[tuple[int, float]]


@functools.cache
def trained(kind: str, dtype: str, seed: int) -> Model:
    model = new_model(CONFIGS[kind], dtype=DTYPES[dtype])
    model.load_state_dict(random_model(CONFIGS[kind], seed).state_dict())
    return model.eval()


def served(model: Model, *, is_packed: bool = True) -> Model:
    model = copy.deepcopy(model)
    if is_packed:
        model.pack()
    return model


def tokens_of(outputs: Sequence[TokenOutput]) -> Tokens:
    return [(output.token_id, output.logprob) for output in outputs]


def finish(engine: Engine) -> dict[int, list[TokenOutput]]:
    """Run to the end and return all outputs by request."""
    found: dict[int, list[TokenOutput]] = {}
    while engine.has_unfinished:
        for output in new_tokens(engine.step()):
            found.setdefault(output.request_id, []).append(output)
    return found


def answers(engine: Engine, params: Sequence[SamplingParams]) -> list[list[TokenOutput]]:
    """Answer every prompt with each of the params, one after the other."""
    ids = [
        engine.add_request(prompt[: 30 + 35 * place], one)
        for one in params
        for place, prompt in enumerate(PROMPTS)
    ]
    found = finish(engine)
    return [found[request_id] for request_id in ids]


@every_config
@every_dtype
@pytest.mark.parametrize("is_packed", [True, False], ids=["packed", "plain"])
def test_an_engine_with_new_weights_is_a_new_engine_on_them(
    kind: str, dtype: str, is_packed: bool
) -> None:
    params = [
        FREE,
        SamplingParams(temperature=0, max_tokens=12),
        SamplingParams(temperature=0.8, seed=7, max_tokens=12, logprobs=2),
    ]
    old, new = trained(kind, dtype, 1), trained(kind, dtype, 2)
    engine = Engine(served(old, is_packed=is_packed), LIMITS)
    before = answers(engine, params)  # programs are recorded, and the prompts known
    if is_packed and native() is not None:
        assert any(engine._runner._steps.values())
    assert {output.policy_version for one in before for output in one} == {0}
    assert engine.load_weights(new) == 1
    assert_nothing_is_owned(engine)
    found = answers(engine, params)
    assert {output.policy_version for one in found for output in one} == {1}
    assert [tokens_of(one) for one in found] != [tokens_of(one) for one in before]
    expected = answers(Engine(served(new, is_packed=is_packed), LIMITS), params)
    assert list(map(tokens_of, found)) == list(map(tokens_of, expected))
    assert [one[0].num_hit_tokens for one in found] == [one[0].num_hit_tokens for one in expected]
    assert [one[0].top_logprobs for one in found] == [one[0].top_logprobs for one in expected]
    for prompt, one in zip(PROMPTS, found, strict=False):  # FREE: as the trainer finds them
        ids = [output.token_id for output in one]
        prompt = prompt[: 30 + 35 * PROMPTS.index(prompt)]
        wanted = range(len(prompt) - 1, len(prompt) + len(ids) - 1)
        batch = Packed.of([[*prompt, *ids]], wanted=[wanted])
        logprobs = new.target_logprobs(batch, torch.tensor(ids)).detach()
        assert torch.equal(logprobs, torch.tensor([output.logprob for output in one]))


@every_config
@every_dtype
@given(data=st.data())
@settings(max_examples=examples(15), deadline=None)
def test_what_continues_goes_on_as_if_it_were_asked_anew(
    kind: str, dtype: str, data: st.DataObject
) -> None:
    old, new = trained(kind, dtype, 1), trained(kind, dtype, 2)
    drafts = data.draw(st.sampled_from([0, 4]))
    limits = EngineConfig(
        max_num_seqs=2, max_num_batched_tokens=24, max_model_len=512, num_draft_tokens=drafts
    )
    engine = Engine(served(old), limits)
    lengths = [data.draw(st.integers(1, 140)) for _ in range(3)]
    params = data.draw(st.sampled_from([FREE, SamplingParams(seed=5, max_tokens=20)]))
    ids = [
        engine.add_request(prompt[:n], params) for prompt, n in zip(PROMPTS, lengths, strict=False)
    ]
    said: dict[int, list[TokenOutput]] = {request_id: [] for request_id in ids}
    for version in (1, 2):
        for _ in range(data.draw(st.integers(0, 15))):
            for output in new_tokens(engine.step()):
                said[output.request_id].append(output)
        still = [request_id for request_id in ids if engine.is_unfinished(request_id)]
        known = {request_id: len(said[request_id]) for request_id in still}
        policy = new if version == 1 else old
        assert engine.load_weights(policy, running="continue") == version
        assert all(map(engine.is_unfinished, still))
    for request_id, outputs in finish(engine).items():
        said[request_id] += outputs
    fresh = Engine(served(old), limits)
    for request_id, prompt, n in zip(ids, PROMPTS, lengths, strict=False):
        outputs = said[request_id]
        versions = [output.policy_version for output in outputs]
        assert versions == sorted(versions)  # type: ignore[type-var]
        if request_id not in known:
            continue
        count = known[request_id]
        assert versions[count:] == [2] * (len(outputs) - count)
        first = [output.token_id for output in outputs[:count]]
        fresh.add_request([*prompt[:n], *first], params, num_prefix_ids=count)
        (expected,) = finish(fresh).values()
        assert tokens_of(outputs[count:]) == tokens_of(expected)
    assert_nothing_is_owned(engine)


@every_config
def test_what_runs_and_waits_ends_and_is_told(kind: str) -> None:
    engine = Engine(served(trained(kind, "float32", 1)), LIMITS)
    scripts = [Script() for _ in range(5)]
    ids = [engine.add_request(PROMPTS[0][:40], FREE, steering=script) for script in scripts]
    for _ in range(4):
        engine.step()
    assert engine.stats.num_running == 3
    assert engine.stats.num_waiting == 2
    engine.load_weights(trained(kind, "float32", 2))
    assert not any(map(engine.is_unfinished, ids))
    assert all(script.was_aborted and not script.errors for script in scripts)
    assert engine.stats.num_finished["abort"] == 5
    assert not engine.has_unfinished
    assert_nothing_is_owned(engine)


@every_config
def test_prompt_logprobs_that_nobody_saw_are_those_of_the_new_weights(kind: str) -> None:
    old, new = trained(kind, "float32", 1), trained(kind, "float32", 2)
    params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=1)
    engine = Engine(served(old), LIMITS)
    engine.add_request(PROMPTS[0], params)
    engine.step()  # a piece of the prompt
    engine.load_weights(new, running="continue")
    (found,) = finish(engine).values()
    (expected,) = answers_to(Engine(served(new), LIMITS), params)
    assert found[0].prompt_logprobs == expected[0].prompt_logprobs
    assert len(found[0].prompt_logprobs) == len(PROMPTS[0]) - 1


def answers_to(engine: Engine, params: SamplingParams) -> list[list[TokenOutput]]:
    engine.add_request(PROMPTS[0], params)
    return list(finish(engine).values())


@every_config
def test_a_model_that_was_changed_in_place_is_taken_as_it_is(kind: str) -> None:
    model = served(trained(kind, "float32", 1), is_packed=False)
    engine = Engine(model, LIMITS)
    answers(engine, [FREE])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert engine.load_weights(model) == 1
    expected = answers(Engine(model, LIMITS), [FREE])
    assert list(map(tokens_of, answers(engine, [FREE]))) == list(map(tokens_of, expected))


def test_weights_that_do_not_fit_leave_the_engine_as_it_was() -> None:
    model = served(trained("m2", "float32", 1))
    engine, other = Engine(model, LIMITS), Engine(model, LIMITS)
    for one in (engine, other):
        one.add_request(PROMPTS[0], FREE)
        one.step()
    with pytest.raises(ValueError, match="whose hidden_size is 32, this one's is 24"):
        engine.load_weights(random_model(tiny_m2(hidden_size=32)))
    with pytest.raises(ValueError, match="running is 'go on', it must be end or continue"):
        engine.load_weights(model, running="go on")  # type: ignore[arg-type]
    assert engine.policy_version == 0
    assert finish(engine) == finish(other)
