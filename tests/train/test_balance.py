"""Balance of experts: the loss's own definition, and a bias that evens loads out."""

import math
from typing import Any

import pytest
import torch

from fulmen.models import M2Config, Model, Packed, SparseMoE, Trace, router_aux_loss
from fulmen.train import Balance, BalanceConfig
from fulmen.train.lm.balance import sigmoid_aux_loss
from tests.models.helpers import random_model, tiny_m1, tiny_m2

PACKED = Packed.of([[3, 5, 7, 11], [2, 4, 8, 16, 32]])


def traced(model: Model) -> Trace:
    trace = Trace()
    model.target_logprobs(PACKED, PACKED.input_ids, trace=trace)
    return trace


def test_m1_adds_its_own_loss_weighted_by_the_tokens_of_each_group() -> None:
    model = random_model(tiny_m1(router_aux_loss_coef=0.01))
    trace = traced(model)
    balance = Balance(model, BalanceConfig())
    whole = balance.loss(trace, ((0, 9),), 9)
    assert whole is not None
    expected = 0.01 * router_aux_loss(trace.router_logits, 2)
    assert float(whole.detach()) == pytest.approx(float(expected.detach()))
    parts = balance.loss(trace, ((0, 4), (4, 9)), 18)
    assert parts is not None
    by_hand = sum(
        0.01
        * (stop - start)
        / 18
        * router_aux_loss([each[start:stop] for each in trace.router_logits], 2)
        for start, stop in ((0, 4), (4, 9))
    )
    assert float(parts.detach()) == pytest.approx(float(torch.as_tensor(by_hand).detach()))


@pytest.mark.parametrize("config", [tiny_m1(), tiny_m2()])
def test_layers_that_lean_on_different_experts_are_even_only_jointly(config: M2Config) -> None:
    model = random_model(config)
    trace = Trace()
    for first in (0, 2):  # each layer sends all tokens to two experts of four
        logits = torch.full((9, 4), -20.0)
        logits[:, first : first + 2] = 20.0
        trace.router_logits.append(logits)
        trace.topk_ids.append(torch.tensor([[first, first + 1]] * 9))
    losses = {}
    for scope in ("model", "layer"):
        balance = Balance(model, BalanceConfig(kind="loss", coefficient=1.0, scope=scope))
        loss = balance.loss(trace, ((0, 9),), 9)
        assert loss is not None
        losses[scope] = float(loss)
    assert losses == pytest.approx({"model": 2.0, "layer": 4.0}, rel=1e-3)


def test_a_sigmoid_router_that_is_even_has_the_loss_of_its_choices() -> None:
    topk = torch.tensor([[0, 1], [2, 3]])
    assert float(sigmoid_aux_loss([torch.zeros(2, 4)], [topk])) == pytest.approx(2.0)
    skewed = torch.tensor([[math.log(3), math.log(3), -9.0, -9.0]] * 2)
    both = torch.tensor([[0, 1], [0, 1]])
    assert float(sigmoid_aux_loss([skewed], [both])) == pytest.approx(4.0, rel=1e-3)


def test_the_bias_of_m2_evens_out_the_loads_of_its_experts() -> None:
    model = random_model(tiny_m2())
    for layer in model.modules():
        if isinstance(layer, SparseMoE):
            assert layer.e_score_correction_bias is not None
            layer.e_score_correction_bias.copy_(torch.tensor([0.5, 0.0, -0.5, 0.0]))
    balance = Balance(model, BalanceConfig(bias_rate=0.05))
    assert balance.moves_bias
    loads = []
    with torch.no_grad():
        for _ in range(20):
            assert balance.loss(traced(model), ((0, 9),), 9) is None
            loads.append(balance.finish_step())
    assert loads[0] > 1.7
    assert loads[-1] < loads[0] - 0.3


def test_loads_of_a_step_do_not_depend_on_its_micro_batches() -> None:
    model = random_model(tiny_m2())
    one, many = (Balance(model, BalanceConfig(kind="none")) for _ in range(2))
    one.loss(traced(model), ((0, 9),), 9)
    for ids in ([3, 5, 7, 11], [2, 4, 8, 16, 32]):
        trace = Trace()
        packed = Packed.of([ids])
        model.target_logprobs(packed, packed.input_ids, trace=trace)
        many.loss(trace, ((0, len(ids)),), 9)
    assert one.finish_step() == many.finish_step()


@pytest.mark.parametrize(
    ("config", "kind", "moves", "adds"),
    [
        (tiny_m1(), "auto", False, True),
        (tiny_m2(), "auto", True, False),
        (tiny_m2(), "loss", False, True),
        (tiny_m2(use_routing_bias=False), "auto", False, True),
        (tiny_m2(num_local_experts=1, num_experts_per_tok=1), "auto", False, False),
        (tiny_m1(), "none", False, False),
    ],
)
def test_each_kind_does_one_thing(config: M2Config, kind: str, moves: bool, adds: bool) -> None:
    model = random_model(config)
    balance = Balance(model, BalanceConfig(kind=kind))  # type: ignore[arg-type]
    assert balance.moves_bias is moves
    assert (balance.loss(traced(model), ((0, 9),), 9) is not None) is adds


def test_a_bias_that_a_model_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^kind is bias, this model's experts are chosen without"):
        Balance(random_model(tiny_m1()), BalanceConfig(kind="bias"))


@pytest.mark.parametrize(
    ("model", "fields", "sentence"),
    [
        (
            tiny_m2(),
            {"coefficient": 0.1},
            "coefficient is 0.1, .* balanced by a bias, see kind",
        ),
        (tiny_m2(), {"group_tokens": 9}, "group_tokens is 9, .* are balanced by a bias, see kind"),
        (tiny_m2(), {"scope": "layer"}, "scope is layer, .* are balanced by a bias, see kind"),
        (tiny_m1(), {"scope": "all"}, "scope is 'all', it must be model or layer"),
        (tiny_m1(), {"bias_rate": 0.1}, "bias_rate is 0.1, .* are balanced by a loss, see kind"),
        (tiny_m2(), {"kind": "loss", "bias_rate": 0.1}, "bias_rate is 0.1, .* by a loss, see kind"),
        (tiny_m1(), {"kind": "none", "coefficient": 1.0}, "coefficient is 1.0, .* by nothing, see"),
    ],
)
def test_a_value_that_a_kind_does_not_use_is_refused(
    model: M2Config, fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        Balance(random_model(model), BalanceConfig(**fields))


def test_groups_are_made_only_where_something_is_computed_in_them() -> None:
    for config, group_tokens in (
        (tiny_m1(), 4096),
        (tiny_m2(), None),
        (tiny_m1(router_aux_loss_coef=0.0), None),
        (tiny_m2(router_jitter_noise=0.1), 4096),
    ):
        assert Balance(random_model(config), BalanceConfig()).group_tokens == group_tokens
