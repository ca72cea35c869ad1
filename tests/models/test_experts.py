"""A layer's experts are one object whose slices have the official names."""

from collections.abc import Callable
from typing import Any, TypeGuard

import pytest
import torch

from fulmen.kernels import ExpertWeights, PackedMatrix, mixture_of_experts, native, pack
from fulmen.models import M2, M1Config, M2Config, new_model
from fulmen.models.experts import Experts
from fulmen.models.layers import Linear
from tests.models.helpers import random_model, tiny_m1, tiny_m2

needs_kernels = pytest.mark.skipif(native() is None, reason="the C++ kernels are not built")
E, C, F, T, K = 5, 24, 16, 40, 2


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden_states = torch.randn(T, C, generator=generator).to(dtype)
    scores = torch.rand(T, E, generator=generator)
    weights, ids = scores.topk(K)
    return hidden_states, weights, ids


def is_plain(weight: torch.Tensor | PackedMatrix) -> TypeGuard[torch.Tensor]:
    return isinstance(weight, torch.Tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_stacked_experts_have_the_bits_of_separate_matrices(dtype: torch.dtype) -> None:
    """Outputs and gradients, those of experts that no token chose included."""
    torch.manual_seed(0)
    experts = Experts(E, C, F).to(dtype)
    hidden_states, weights, ids = inputs(dtype)
    ids[ids == 3] = 4  # nobody chooses expert 3
    ids[:, 1] = (ids[:, 0] + 1).where(ids[:, 0] != 2, torch.tensor(0)) % E
    alone = [
        ExpertWeights(*(w.detach().clone().requires_grad_() for w in matrices if is_plain(w)))
        for matrices in experts.weights()
    ]
    found = experts(hidden_states, weights, ids)
    expected = mixture_of_experts(hidden_states, weights, ids, alone)
    assert torch.equal(found, expected)
    for out in (found, expected):
        out.float().square().sum().backward()
    for name in ("w1", "w2", "w3"):
        gradient = experts.get_parameter(name).grad
        assert gradient is not None
        for expert, matrices in enumerate(alone):
            weight = getattr(matrices, name)
            assert isinstance(weight, torch.Tensor)
            wanted = torch.zeros_like(weight) if weight.grad is None else weight.grad
            assert torch.equal(gradient[expert], wanted)


@pytest.mark.parametrize("config", [tiny_m1(), tiny_m2()], ids=["m1", "m2"])
def test_a_state_dict_has_the_official_names_and_loads_back(config: M1Config | M2Config) -> None:
    model = random_model(config)
    state = model.state_dict()
    assert set(state) == {spec.name for spec in model.config.tensors()}
    other = new_model(model.config)
    other.load_state_dict({name: tensor.clone() for name, tensor in state.items()})
    ids = torch.arange(50)[None]
    with torch.no_grad():
        assert torch.equal(other(ids), model(ids))


def test_slices_of_a_state_dict_are_the_parameters_themselves() -> None:
    model = random_model(tiny_m2())
    name = "model.layers.0.block_sparse_moe.experts.2.w2.weight"
    model.state_dict()[name].fill_(7)
    assert (model.get_parameter("model.layers.0.block_sparse_moe.experts.w2")[2] == 7).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("1.w2.weight"), r"Missing key\(s\) in state_dict: \"1\.w2\.weight\""),
        (lambda s: s.update({"9.w1.weight": torch.zeros(F, C)}), r"Unexpected .*\"9\.w1\.weight\""),
        (lambda s: s.update({"0.w3.weight": torch.zeros(C, F)}), r"0\.w3\.weight has shape \(24"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_a_state_dict_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    experts = Experts(E, C, F)
    state = experts.state_dict()
    change(state)
    with pytest.raises(RuntimeError, match=sentence):
        experts.load_state_dict(state)


@needs_kernels
def test_packed_experts_keep_the_bits_and_give_the_parameters_up() -> None:
    torch.manual_seed(0)
    experts = Experts(E, C, F)
    hidden_states, weights, ids = inputs(torch.float32)
    with torch.no_grad():
        before = experts(hidden_states, weights, ids)
        first = pack(experts.get_parameter("w1")[0].detach())
        experts.assign(0, "w1", first)
        assert not experts.is_packed
        assert torch.equal(experts(hidden_states, weights, ids), before)
        experts.pack()
        assert experts.is_packed
        assert experts.weights()[0].w1 is first
        assert list(experts.parameters()) == []
        assert torch.equal(experts(hidden_states, weights, ids), before)


@needs_kernels
def test_projections_made_one_keep_their_weights_as_views() -> None:
    model = random_model(tiny_m2(head_dim=16, rotary_dim=8))
    weights = {
        name: module.weight.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, Linear) and isinstance(module.weight, torch.Tensor)
    }
    model.pack()
    assert model.is_packed
    attention = model.get_submodule("model.layers.0.self_attn")
    storages = set()
    for name in ("q_proj", "k_proj", "v_proj"):
        projection = attention.get_submodule(name)
        assert isinstance(projection, Linear)
        packed = projection.weight
        assert isinstance(packed, PackedMatrix)
        assert torch.equal(packed.unpack(), weights[f"model.layers.0.self_attn.{name}"])
        storages.add(packed.data.untyped_storage().data_ptr())
    assert len(storages) == 1


def test_a_layer_of_many_experts_is_few_modules() -> None:
    with torch.device("meta"):
        model = M2(tiny_m2(num_local_experts=256))
    assert sum(1 for _ in model.modules()) < 100
    assert sum(1 for _ in model.parameters()) < 100
