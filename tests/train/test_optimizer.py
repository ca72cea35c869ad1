"""Optimizers: against torch's own, against formulas, and the bits of states that go out and in."""

import copy
import gc

import pytest
import torch
from torch import Tensor, nn

from fulmen.models import Model, Packed
from fulmen.train import Optimizer, OptimizerConfig
from fulmen.train.optimizer import orthogonalized
from tests.models.helpers import random_model, tiny_m1, tiny_m2

CONFIGS = [tiny_m1(), tiny_m2()]
IDS = [[3, 5, 7, 11, 13, 17], [2, 4, 8, 16]]


def plain(config: object = CONFIGS[0], dtype: torch.dtype = torch.float32) -> Model:
    """A model with plain parameters in `dtype`, its head and routers in float32."""
    model = random_model(config)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if not name.endswith(("gate.weight", "lm_head.weight")) or "output_gate" in name:
            parameter.data = parameter.data.to(dtype)
    return model


def backward(model: Model, *, scale: float = 1.0) -> None:
    packed = Packed.of(IDS)
    targets = packed.input_ids.roll(-1)
    loss = -scale * model.target_logprobs(packed, targets).mean()
    loss.backward()  # type: ignore[no-untyped-call]


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def test_adamw_moves_as_torchs_does() -> None:
    ours, theirs = plain(), plain()
    config = OptimizerConfig(learning_rate=0.01, eps=1e-8, clip_norm=0.5, weight_decay=0.1)
    optimizer = Optimizer(ours, config)
    named = list(theirs.named_parameters())
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    for scale in (1.0, 0.5, 0.25):
        backward(ours)
        backward(theirs)
        norm = optimizer.step(scale)
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        for group in reference.param_groups:
            group["lr"] = 0.01 * scale
        reference.step()
        optimizer.zero_grad()
        reference.zero_grad()
        assert norm == pytest.approx(float(expected), rel=1e-5)
    for name, parameter in ours.named_parameters():
        other = dict(theirs.named_parameters())[name]
        assert torch.allclose(parameter, other, atol=2e-5), name


def test_an_orthogonal_update_has_singular_values_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 24, 16), (2, 16, 24), (1, 8, 8)):
        found = orthogonalized(torch.randn(shape, generator=generator)).float()
        singular = torch.linalg.svdvals(found)
        assert found.shape == shape
        assert 0.5 < float(singular.min()) < float(singular.max()) < 1.4


def test_muon_moves_a_stack_of_experts_as_its_slices_and_leaves_tables_to_adamw() -> None:
    model, other = plain(), plain()
    config = OptimizerConfig(kind="muon", learning_rate=0.01, muon_learning_rate=0.02)
    optimizer, adamw = (
        Optimizer(model, config),
        Optimizer(other, OptimizerConfig(learning_rate=0.01)),
    )
    before = values(model)
    backward(model)
    backward(other)
    gradient = optimizer.gradients()["model.layers.0.block_sparse_moe.experts.w1"].clone()
    norm = optimizer.step()
    adamw.step()
    after, by_adamw = values(model), values(other)
    for name in after:
        is_adamw = name.endswith(("embed_tokens.weight", "lm_head.weight", ".gate.weight"))
        is_adamw |= after[name].ndim < 2
        assert torch.equal(after[name], by_adamw[name]) == is_adamw, name
    name = "model.layers.0.block_sparse_moe.experts.w1"
    gradient *= min(1.0, 1.0 / norm)
    gradient = gradient.lerp(0.05 * gradient, 0.95)  # Nesterov's, after the first step
    for expert in range(4):
        alone = orthogonalized(gradient[expert][None])[0].float()
        moved = (after[name] - before[name])[expert]
        expected = -0.02 * 0.2 * 24**0.5 * alone
        assert torch.allclose(moved, expected, atol=1e-5), expert


def test_muon_follows_the_schedule_and_decays_matrices() -> None:
    config = OptimizerConfig(
        kind="muon", muon_learning_rate=0.02, weight_decay=0.1, clip_norm=None, learning_rate=0.01
    )
    model = plain()
    optimizer = Optimizer(model, config)
    name = "model.layers.2.self_attn.o_proj.weight"
    expected = values(model)[name]
    average = torch.zeros_like(expected)
    for scale in (1.0, 0.5):
        backward(model)
        gradient = optimizer.gradients()[name].clone()
        optimizer.step(scale)
        optimizer.zero_grad()
        rate = 0.02 * scale
        average = 0.95 * average + 0.05 * gradient
        update = orthogonalized((0.05 * gradient + 0.95 * average)[None])[0]
        expected = expected * (1 - rate * 0.1) - rate * 0.2 * 24**0.5 * update
        assert torch.allclose(values(model)[name], expected, atol=1e-5), scale


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_updates_below_a_bfloat16_step_add_up_in_the_masters(kind: str) -> None:
    model = plain(dtype=torch.bfloat16)
    rates = {"learning_rate": 1e-6} | ({"muon_learning_rate": 1e-6} if kind == "muon" else {})
    config = OptimizerConfig(kind=kind, **rates)  # type: ignore[arg-type]
    optimizer = Optimizer(model, config)
    name = "model.layers.0.self_attn.qkv_proj.weight"
    before, master = values(model)[name], optimizer.state()[f"master.{name}"].clone()
    backward(model)
    optimizer.step()
    moved = optimizer.state()[f"master.{name}"] - master
    assert 0 < float(moved.abs().max()) < 1e-5
    assert float((values(model)[name] != before).float().mean()) < 0.01
    assert torch.equal(values(model)[name], optimizer.state()[f"master.{name}"].bfloat16())


def test_gradients_of_bfloat16_parameters_add_up_in_float32() -> None:
    model = plain(dtype=torch.bfloat16)
    optimizer = Optimizer(model)
    backward(model)
    once = {name: gradient.clone() for name, gradient in optimizer.gradients().items()}
    for _ in range(3):
        backward(model)
    name = "model.layers.2.self_attn.o_proj.weight"
    assert dict(model.named_parameters())[name].grad is None
    found = optimizer.gradients()[name]
    assert found.dtype == torch.float32
    assert torch.equal(found, once[name] + once[name] + once[name] + once[name])
    optimizer.zero_grad()
    assert optimizer.gradients() == {}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_state_that_goes_out_and_in_continues_with_the_same_bits(
    kind: str, dtype: torch.dtype
) -> None:
    config = OptimizerConfig(kind=kind)  # type: ignore[arg-type]

    def train(model: Model, optimizer: Optimizer, steps: int) -> None:
        for _ in range(steps):
            backward(model)
            optimizer.step()
            optimizer.zero_grad()

    whole = plain(dtype=dtype)
    train(whole, optimizer := Optimizer(whole, config), 4)
    first = plain(dtype=dtype)
    train(first, begun := Optimizer(first, config), 2)
    state = {name: tensor.clone() for name, tensor in begun.state().items()}
    second = plain(dtype=dtype)
    second.load_state_dict(first.state_dict())
    resumed = Optimizer(second, config)
    resumed.load_state(state)
    train(second, resumed, 2)
    assert all(torch.equal(values(whole)[name], each) for name, each in values(second).items())
    assert optimizer.state().keys() == resumed.state().keys()
    for name, tensor in optimizer.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name


def test_parameters_without_gradients_stay_and_frozen_ones_have_no_moments() -> None:
    model = plain()
    model.model.embed_tokens.weight.requires_grad_(False)
    optimizer = Optimizer(model, OptimizerConfig(weight_decay=0.1))
    assert not any("embed_tokens" in name for name in optimizer.state())
    before = values(model)
    assert optimizer.step() == 0
    assert all(torch.equal(before[name], each) for name, each in values(model).items())


def test_a_gradient_that_is_not_finite_is_one_sentence_and_moves_nothing() -> None:
    model = plain()
    optimizer = Optimizer(model)
    backward(model)
    norm = model.model.norm.weight
    assert norm.grad is not None
    norm.grad[3] = torch.nan
    before = values(model)
    with pytest.raises(ValueError, match=r"^the gradient of model\.norm\.weight is not finite, "):
        optimizer.step()
    assert all(torch.equal(before[name], each) for name, each in values(model).items())


def test_the_state_of_another_model_or_kind_is_refused_and_changes_nothing() -> None:
    narrow, muon = torch.bfloat16, OptimizerConfig(kind="muon")
    model = plain(dtype=narrow)
    optimizer = Optimizer(model)
    backward(model)
    optimizer.step()  # moments are not zero, as those of the others are
    before, state = values(model), {name: each.clone() for name, each in optimizer.state().items()}
    for other, match in (
        (Optimizer(plain(CONFIGS[1], narrow)), "another model or kind"),
        (Optimizer(plain(dtype=narrow), muon), "another model or kind"),
        (
            Optimizer(plain(tiny_m1(vocab_size=67), narrow)),
            r"has shape \(67, 24\), needed is \(61, 24\)",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            optimizer.load_state(other.state())
        assert optimizer.state().keys() == state.keys()
        assert all(torch.equal(each, state[name]) for name, each in optimizer.state().items())
        assert all(torch.equal(each, before[name]) for name, each in values(model).items())


def test_a_second_optimizer_may_follow_the_first_on_one_model() -> None:
    model = plain(dtype=torch.bfloat16)
    optimizer = Optimizer(model)
    backward(model)
    expected = optimizer.step()
    optimizer.zero_grad()
    del optimizer
    gc.collect()
    model.load_state_dict(plain(dtype=torch.bfloat16).state_dict())
    optimizer = Optimizer(model)
    backward(model)
    assert optimizer.step() == expected


def test_a_copy_of_a_model_in_training_is_free_of_the_optimizer() -> None:
    model = plain(dtype=torch.bfloat16)
    optimizer = Optimizer(model)
    other = copy.deepcopy(model)
    backward(other)
    assert optimizer.gradients().keys() == {
        name for name, each in model.named_parameters() if each.grad is not None
    }
    assert all(each.grad is not None for each in other.parameters())


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "sgd"}, "kind is 'sgd', it must be adamw or muon"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, it must be above 0, at most 1000"),
        ({"betas": (0.9, 1.0)}, "betas is 1.0, it must be at least 0 and below 1"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0, it must be above 0, at most 1e+09"),
        ({"muon_rounds": 0}, "muon_rounds is 0, it must be from 1 to 100"),
        ({"muon_momentum": 0.5}, "muon_momentum is 0.5, it needs kind muon, found adamw"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence.replace('+', '[+]')}$"):
        OptimizerConfig(**fields)  # type: ignore[arg-type]


def test_a_packed_model_has_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="no parameters to train"):
        Optimizer(nn.Module())
