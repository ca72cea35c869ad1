"""One answer two ways: one pass, any chunking, token by token, any company; and exact
gradients."""

import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.models import M1, M1Config, M2Config, Packed, Trace, router_aux_loss
from fulmen.models.layers import RMSNorm
from fulmen.models.m1 import LightningAttention, alibi_slopes, slope_rates
from tests.examples import examples
from tests.models.helpers import Session, random_model, tiny_m1, tiny_m2
from tests.tolerances import (
    BFLOAT16_MODEL,
    BFLOAT16_ONCE,
    FLOAT32_MODEL,
    FLOAT32_OP,
    assert_close,
)

CONFIGS = {
    "m1": tiny_m1(),
    "m1-prenorm": tiny_m1(postnorm=False),
    "m1-shared-sigmoid": tiny_m1(shared_intermediate_size=12),
    "m1-shared-softmax": tiny_m1(shared_intermediate_size=12, shared_moe_mode="softmax"),
    "m1-tied": tiny_m1(tie_word_embeddings=True),
    "m2": tiny_m2(),
    "m2-llama": tiny_m2(
        use_qk_norm=False,
        use_routing_bias=False,
        rotary_dim=8,
        num_local_experts=1,
        num_experts_per_tok=1,
        tie_word_embeddings=True,
    ),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
ids_of_length = st.integers(1, 150).flatmap(
    lambda length: st.lists(st.integers(0, 60), min_size=length, max_size=length)
)


@every_config
@given(ids=ids_of_length, data=st.data())
@settings(max_examples=examples(12), deadline=None)
def test_chunked_prefill_equals_one_pass(
    config: M1Config | M2Config, ids: list[int], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(ids) - 1, 1)), max_size=6)))
    model = random_model(config)
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0]
    session = Session(model)
    bounds = [0, *(cut for cut in cuts if cut < len(ids)), len(ids)]
    pieces = [session.feed(ids[a:b]) for a, b in pairwise(bounds)]
    assert_close(torch.cat(pieces), expected, FLOAT32_MODEL)


@every_config
def test_decode_token_by_token_equals_one_pass(config: M1Config | M2Config) -> None:
    ids = torch.randint(0, 61, (140,), generator=torch.Generator().manual_seed(1)).tolist()
    model = random_model(config)
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0]
    session = Session(model)
    decoded = torch.cat([session.feed([token]) for token in ids])
    assert_close(decoded, expected, FLOAT32_MODEL)


@every_config
def test_packed_sequences_of_one_cache_do_not_disturb_each_other(
    config: M1Config | M2Config,
) -> None:
    generator = torch.Generator().manual_seed(2)
    sequences = [torch.randint(0, 61, (n,), generator=generator).tolist() for n in (100, 3, 70)]
    model = random_model(config)
    cache = model.new_cache(num_pages=6, num_slots=4)
    tables, slots = [[5, 0], [3], [1, 4]], [3, 0, 2]
    halves = [len(ids) // 2 for ids in sequences]
    outs = []
    with torch.no_grad():
        for part in (0, 1):
            spans = [
                (0, h) if part == 0 else (h, len(s)) for h, s in zip(halves, sequences, strict=True)
            ]
            packed = Packed.of(
                [ids[a:b] for ids, (a, b) in zip(sequences, spans, strict=True)],
                context_lens=[a for a, _ in spans],
                block_tables=tables,
                slots=slots,
            )
            outs.append(model(packed, cache).split([b - a for a, b in spans]))
        for n, ids in enumerate(sequences):
            expected = model(torch.tensor([ids]))[0]
            assert_close(torch.cat((outs[0][n], outs[1][n])), expected, FLOAT32_MODEL)


@every_config
def test_gradients_equal_float64_finite_differences(config: M1Config | M2Config) -> None:
    model = random_model(config).double()
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 61, (2, 70), generator=generator)

    def loss() -> torch.Tensor:
        logits = model(ids)
        assert logits.dtype == torch.float64
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss(), list(parameters.values()), materialize_grads=True)
    kinds: dict[str, list[tuple[torch.nn.Parameter, torch.Tensor, torch.Tensor]]] = {}
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        kinds.setdefault(re.sub(r"\d+", "N", name), []).append((parameter, gradient, direction))
    step = 1e-6

    for kind, members in kinds.items():  # those of all layers and experts at once

        def move(by: float, members: Any = members) -> None:
            for parameter, _, direction in members:
                parameter.add_(by * direction)

        with torch.no_grad():
            move(step)
            above = loss()
            move(-2 * step)
            below = loss()
            move(step)
        numeric = float((above - below) / (2 * step))
        analytic = sum(float((gradient * direction).sum()) for _, gradient, direction in members)
        assert numeric == pytest.approx(analytic, rel=1e-4, abs=1e-8), kind


def test_only_the_wanted_logits_are_made() -> None:
    model = random_model(tiny_m2())
    rows = [[1, 2, 3], [4, 5]]
    with torch.no_grad():
        last = model(Packed.of(rows, only_last_logits=True))
        every = model(Packed.of(rows))
    assert_close(last, every[[2, 4]], FLOAT32_MODEL)


@pytest.mark.parametrize(
    "config",
    [tiny_m1(num_local_experts=2), tiny_m2(num_local_experts=2)],
    ids=["m1", "m2"],
)
def test_a_bfloat16_model_without_a_choice_of_experts_is_near_float32(
    config: M1Config | M2Config,
) -> None:
    ids = torch.randint(0, 61, (1, 300), generator=torch.Generator().manual_seed(5))
    model = random_model(config).bfloat16()
    with torch.no_grad():
        rounded = model(ids)
        exact = model.float()(ids)  # of the same rounded weights
    assert rounded.dtype == torch.float32
    assert_close(rounded, exact, BFLOAT16_MODEL)


def test_a_tied_bfloat16_head_multiplies_in_float32() -> None:
    model = random_model(tiny_m2(tie_word_embeddings=True)).bfloat16()
    x = torch.randn(9, 24, generator=torch.Generator().manual_seed(6)).bfloat16()
    with torch.no_grad():
        found = model.logits(x)
        expected = x.double() @ model.get_parameter("model.embed_tokens.weight").double().T
    assert found.dtype == torch.float32
    assert_close(found.double(), expected, FLOAT32_OP)


def test_bfloat16_norms_take_their_mean_in_float32_and_round_once() -> None:
    x = torch.randn(20, 300, generator=torch.Generator().manual_seed(7)).bfloat16()
    found = RMSNorm(300, 1e-6).bfloat16()(x)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert_close(found.detach().double(), exact, BFLOAT16_ONCE)


def test_norms_round_before_the_weight() -> None:
    """sqrt(3) is 1.734375 in bfloat16, and 1.375 times that is 2.390625; 1.375 sqrt(3) is 2.375."""
    norm = RMSNorm(3, 1e-6).bfloat16()
    with torch.no_grad():
        norm.weight.fill_(1.375)
        found = norm(torch.tensor([1.0, 0.0, 0.0], dtype=torch.bfloat16))
    assert found.tolist() == [2.390625, 0.0, 0.0]


def test_jitter_acts_in_training_only_and_follows_its_generator() -> None:
    model = random_model(tiny_m1(router_jitter_noise=0.1))
    ids = torch.arange(9)[None]
    with torch.no_grad():
        calm = model(ids)
        assert torch.equal(calm, model(ids))
        model.train()
        runs = [model(ids, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], calm)


def test_aux_loss_is_top_k_at_perfect_balance_and_has_a_gradient() -> None:
    balanced = torch.eye(4).repeat(5, 1) + 0.5 * torch.eye(4).roll(1, 0).repeat(5, 1)
    assert float(router_aux_loss([1e-3 * balanced], 2)) == pytest.approx(2, abs=1e-3)
    model = random_model(tiny_m1())
    trace = Trace()
    model(torch.arange(9)[None], trace=trace)
    loss = router_aux_loss(trace.router_logits, 2)
    assert isinstance(model, M1)
    gate = model.get_parameter("model.layers.0.block_sparse_moe.gate.weight")
    (gradient,) = torch.autograd.grad(loss, [gate])
    assert gradient.abs().max() > 0


def test_slopes_interpolate_where_heads_are_no_power_of_two() -> None:
    assert alibi_slopes(6) == [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]
    assert alibi_slopes(64)[0] == pytest.approx(0.917004, abs=1e-6)
    assert alibi_slopes(64)[-1] == 0.00390625


def test_slopes_shrink_with_the_layer_over_all_layers_but_one() -> None:
    assert slope_rates(1, 0, 80)[0] == pytest.approx((1 + 1e-5) / 256)
    assert slope_rates(1, 79, 80)[0] == pytest.approx(1e-5 / 256)
    assert slope_rates(1, 40, 80)[0] == pytest.approx((1 - 40 / 79 + 1e-5) / 256)
    assert slope_rates(1, 0, 1)[0] == pytest.approx((1 + 1e-5) / 256)


def test_lightning_norm_uses_its_own_eps() -> None:
    model = random_model(tiny_m1(rms_norm_eps=0.125))
    for module in model.modules():
        if isinstance(module, LightningAttention):
            assert module.norm.eps == 1e-6
    assert model.model.norm.eps == 0.125


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        (torch.tensor([[61]]), "token id 61 is outside the 61 ids known"),
        (torch.tensor([[-1]]), "token id -1 is outside the 61 ids known"),
        (torch.zeros(1, 1025, dtype=torch.int64), "1025 tokens is longer than .* 1024"),
        (torch.zeros(1, 0, dtype=torch.int64), "must be \\(B, T\\) int64"),
        (torch.zeros(3, dtype=torch.int64), "must be \\(B, T\\) int64"),
    ],
)
def test_wrong_input_ids_are_refused(ids: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        random_model(tiny_m2())(ids)


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="has no tokens"):
        Packed.of([[1], []])
