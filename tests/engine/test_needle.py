"""Needles in a long prompt: a model that finds them by construction, through the whole engine."""

from dataclasses import replace
from typing import Literal

import pytest

from benchmarks.needle import Needles, needle_model
from fulmen.engine import Engine, EngineConfig, TokenOutput
from fulmen.models import M1, M1Config
from fulmen.sampling import SamplingParams
from tests.engine.helpers import new_tokens

NEEDLES = Needles(num_fillers=256, num_keys=4, num_values=4)
NUM_TOKENS = 8192
DEPTHS = (0.01, 0.5, 0.99)


@pytest.fixture(scope="module")
def model() -> M1:
    config = M1Config(
        vocab_size=NEEDLES.vocab_size,
        hidden_size=64,
        num_hidden_layers=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        rotary_dim=16,
        attn_type_list=(0,) * 7 + (1,),
        intermediate_size=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        postnorm=True,
        layernorm_linear_attention_alpha=2.0,
        layernorm_full_attention_alpha=2.0,
        layernorm_mlp_alpha=2.0,
    )
    model = needle_model(config, NEEDLES)
    model.pack()
    return model


def make_engine(model: M1, kv_cache_dtype: Literal["auto", "int8"] = "auto") -> Engine:
    config = EngineConfig(
        max_num_seqs=2,
        max_num_batched_tokens=1024,
        max_model_len=NUM_TOKENS + 64,
        kv_cache_bytes=2**24,
        kv_cache_dtype=kv_cache_dtype,
    )
    return Engine(model, config)


def haystack(values: tuple[int, ...]) -> list[int]:
    """Return a prompt with value n for key n, at depth n."""
    planted = {
        int(NUM_TOKENS * depth): NEEDLES.needle(key, value)
        for key, (depth, value) in enumerate(zip(DEPTHS, values, strict=True))
    }
    return NEEDLES.haystack(NUM_TOKENS, planted)


def ask(engine: Engine, prompt: list[int], key: int) -> int | None:
    """Return the value that the model names for a key; None if it says something else."""
    engine.add_request(
        [*prompt, NEEDLES.question(key)], SamplingParams(temperature=0.0, max_tokens=1)
    )
    outputs: list[TokenOutput] = []
    while engine.has_unfinished:
        outputs += new_tokens(engine.step())
    (token,) = (output.token_id for output in outputs)
    return token - NEEDLES.answer(0) if NEEDLES.is_answer(token) else None


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_needles_anywhere_in_a_long_prompt_are_found(
    model: M1, kv_cache_dtype: Literal["auto", "int8"]
) -> None:
    engine = make_engine(model, kv_cache_dtype)
    prompt = haystack((3, 1, 2))
    assert [ask(engine, prompt, key) for key in range(4)] == [3, 1, 2, None]
    # Only the first question read the haystack; the others read none of it again.
    assert engine.stats.num_hit_tokens == 3 * NUM_TOKENS


def test_another_needle_changes_the_answer_and_only_that(model: M1) -> None:
    engine = make_engine(model)
    first, second = haystack((3, 1, 2)), haystack((3, 0, 2))
    assert ask(engine, first, 1) == 1
    assert ask(engine, second, 1) == 0
    assert engine.stats.num_hit_tokens > 0  # what came before the needle that differs
    assert [ask(engine, prompt, 1) for prompt in (first, second)] == [1, 0]
    assert [ask(engine, second, key) for key in (0, 2)] == [3, 2]


def test_without_its_needle_a_question_has_no_answer(model: M1) -> None:
    engine = make_engine(model)
    prompt = NEEDLES.haystack(NUM_TOKENS, {})
    assert [ask(engine, prompt, key) for key in range(4)] == [None] * 4


def test_a_config_that_does_not_fit_the_needles_is_refused(model: M1) -> None:
    with pytest.raises(ValueError, match="the needles need 104 ids"):
        needle_model(model.config, Needles(num_fillers=24))
    narrow = replace(model.config, hidden_size=16)
    with pytest.raises(ValueError, match="need a hidden_size of 32 or more"):
        needle_model(narrow, NEEDLES)
