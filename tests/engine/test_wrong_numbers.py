"""Numbers that an engine cannot use: one sentence that names them, at once."""

import dataclasses
import math
import time
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.engine import Engine, EngineConfig
from fulmen.models import Model
from fulmen.sampling import SamplingParams
from tests.engine.helpers import new_tokens
from tests.examples import examples
from tests.models.helpers import packed_model, tiny_m1, tiny_m2

MODELS: dict[str, Model] = {
    "m1": packed_model(tiny_m1()),
    "m2": packed_model(tiny_m2()),
    "lightning alone": packed_model(tiny_m1(attn_type_list=[0, 0, 0])),
}
ENGINE_FIELDS = [
    field.name for field in dataclasses.fields(EngineConfig) if field.name != "kv_cache_dtype"
]
SAMPLING_NUMBERS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "max_tokens",
    "logprobs",
    "prompt_logprobs",
    "repetition_window",
    "repetition_probability",
    "thinking_budget",
    "thinking_soft_end",
)
HUGE = [10**30, 10**400, 10**5000, -(10**30), -(10**5000)]
NO_NUMBERS: list[object] = [
    "8",
    b"8",
    True,
    False,
    [1],
    (1,),
    {1: 1},
    object(),
    1j,
    Fraction(1, 2),
    np.array([1]),
    math.nan,
    math.inf,
    -math.inf,
]


def assert_refused(call: Callable[[], object], *names: str) -> None:
    """Check that a call raises one short sentence that names the field, at once."""
    start = time.perf_counter()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its sentence is checked below
        call()
    assert time.perf_counter() - start < 5
    sentence = str(caught.value)
    assert any(name in sentence for name in names), sentence
    assert len(sentence) < 400
    assert "\n" not in sentence
    assert not sentence.endswith(".")


@pytest.mark.parametrize("name", ENGINE_FIELDS)
@pytest.mark.parametrize("value", [*HUGE, *NO_NUMBERS, 1.5, 8.0, -1], ids=lambda _: "")
def test_a_wrong_number_in_an_engine_config_is_refused(name: str, value: object) -> None:
    if name == "max_token_gap_seconds" and value in (1.5, 8.0):
        return  # is a number of seconds
    assert_refused(lambda: EngineConfig(**{name: value}), name)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["int4", "", 8, None, ["auto"], 10**5000], ids=lambda _: "")
def test_a_wrong_dtype_in_an_engine_config_is_refused(value: object) -> None:
    assert_refused(lambda: EngineConfig(kv_cache_dtype=value), "kv_cache_dtype")  # type: ignore[arg-type]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
@given(
    name=st.sampled_from(ENGINE_FIELDS),
    value=st.one_of(st.integers(), st.integers(0, 60).map(lambda power: 2**power)),
)
@settings(max_examples=examples(30), deadline=None)
def test_any_whole_number_makes_an_engine_that_runs_or_is_refused(
    model: Model, name: str, value: int
) -> None:
    try:
        engine = Engine(model, EngineConfig(**{name: value}))  # type: ignore[arg-type]
    except ValueError as error:
        assert name in str(error)  # noqa: PT017
        return
    engine.add_request([1, 2, 3], SamplingParams(max_tokens=1))
    assert len(new_tokens(engine.step())) == 1


@pytest.mark.parametrize("name", SAMPLING_NUMBERS)
@pytest.mark.parametrize("value", [*HUGE, *NO_NUMBERS], ids=lambda _: "")
def test_a_wrong_number_in_sampling_params_is_refused(name: str, value: object) -> None:
    if name == "temperature" and value == 10**30:
        return  # is a number, however hot
    assert_refused(lambda: SamplingParams(**{name: value}), name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"top_k": 1.5},
        {"seed": 0.0},
        {"ignore_eos": 1},
        {"strict_tools": "no"},
        {"stop": ["END"]},
        {"stop": (1,)},
        {"stop_token_ids": [1]},
        {"stop_token_ids": (True,)},
        {"stop_token_ids": (1.0,)},
        {"choice": "yes"},
        {"regex": 3},
        {"json_schema": {}},
        {"json_schema": "[" * 100_000},
        {"json_schema": '{"a":' * 100_000},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_kind_in_sampling_params_is_refused(wrong: dict[str, object]) -> None:
    (name,) = wrong
    assert_refused(lambda: SamplingParams(**wrong), name)  # type: ignore[arg-type]


@given(
    temperature=st.floats(0, allow_infinity=False, allow_nan=False) | st.integers(0, 10**300),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    top_k=st.none() | st.integers(1, 2**31 - 1),
    seed=st.integers(-(2**63), 2**64 - 1),
)
@settings(max_examples=examples(40), deadline=None)
def test_any_sampling_params_that_are_taken_sample(
    temperature: float, top_p: float, min_p: float, top_k: int | None, seed: int
) -> None:
    params = SamplingParams(
        temperature=temperature, top_p=top_p, min_p=min_p, top_k=top_k, seed=seed, max_tokens=1
    )
    engine = Engine(MODELS["m2"], EngineConfig(max_model_len=64))
    engine.add_request([1, 2, 3], params)
    assert len(new_tokens(engine.step())) == 1


@pytest.mark.parametrize(
    "prompt",
    [
        [1.5],
        [1, 2.0],
        [True],
        [1, np.True_],
        [None],
        ["1"],
        [[1, 2]],
        [torch.tensor(1.5)],
        [np.float64(1)],
        "abc",
        b"abc",
        5,
        None,
        [10**30],
        [-(10**5000)],
        [1, -1],
        [61],
        np.array([1.0, 2.0]),
        np.array([[1, 2]]),
        np.array([True]),
        np.array([61]),
        np.array(1),
        torch.tensor([1.0]),
        torch.tensor([[1]]),
        torch.tensor([True]),
        torch.tensor([-1]),
        torch.tensor(3),
    ],
    ids=lambda _: "",
)
def test_prompts_that_are_no_known_ids_are_refused(prompt: object) -> None:
    engine = Engine(MODELS["m2"], EngineConfig(max_model_len=64))
    call = lambda: engine.add_request(prompt, SamplingParams())  # type: ignore[arg-type]  # noqa: E731
    assert_refused(call, "prompt_ids", "token id")
    assert not engine.has_unfinished


@pytest.mark.parametrize(
    "prompt",
    [
        (1, 2, 3),
        range(1, 4),
        [np.int64(1), np.uint8(2), 3],
        np.array([1, 2, 3], dtype=np.uint16),
        torch.tensor([1, 2, 3], dtype=torch.int32),
    ],
    ids=lambda _: "",
)
def test_whole_numbers_of_any_library_are_ids(prompt: object) -> None:
    answers = []
    for ids in (prompt, [1, 2, 3]):
        engine = Engine(MODELS["m2"], EngineConfig(max_model_len=64))
        engine.add_request(ids, SamplingParams(seed=1, max_tokens=1))  # type: ignore[arg-type]
        (output,) = new_tokens(engine.step())
        answers.append((output.token_id, output.logprob))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", ["num_prefix_ids", "num_repetitive", "priority"])
@pytest.mark.parametrize("value", [*HUGE, *NO_NUMBERS, None, 1.5], ids=lambda _: "")
def test_a_wrong_number_given_with_a_request_is_refused(name: str, value: object) -> None:
    engine = Engine(MODELS["m2"], EngineConfig(max_model_len=64))
    params = SamplingParams()
    call = lambda: engine.add_request([1, 2], params, **{name: value})  # type: ignore[arg-type]  # noqa: E731
    assert_refused(call, name)
    assert not engine.has_unfinished


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_prefix_ids": 3}, "num_prefix_ids"),
        ({"num_prefix_ids": -1}, "num_prefix_ids"),
        ({"num_prefix_ids": 1, "num_repetitive": 2}, "num_repetitive"),
        ({"params": SamplingParams(stop_token_ids=(10**9,))}, "stop_token_ids"),
        ({"params": SamplingParams(stop_token_ids=(-1,))}, "stop_token_ids"),
        ({"params": SamplingParams(stop_token_ids=(10**5000,))}, "stop_token_ids"),
    ],
)
def test_a_number_that_a_prompt_or_model_cannot_have_is_refused(
    options: dict[str, object], name: str
) -> None:
    engine = Engine(MODELS["m2"], EngineConfig(max_model_len=64))
    options = {"params": SamplingParams()} | options
    assert_refused(lambda: engine.add_request([1, 2], **options), name)  # type: ignore[arg-type]
    assert not engine.has_unfinished


@pytest.mark.parametrize("ids", [[1.5], [True], "abc", 3, [None]])
def test_wrong_ends_of_sequence_are_refused(ids: object) -> None:
    assert_refused(lambda: Engine(MODELS["m2"], eos_token_ids=ids), "eos_token_ids")  # type: ignore[arg-type]
