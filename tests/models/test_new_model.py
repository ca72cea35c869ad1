"""New weights: their dtypes, their seed, and their size at the start of training."""

import pytest
import torch

from fulmen.checkpoints import load_model, save_model
from fulmen.models import M1Config, M2Config, Packed, new_model
from tests.models.helpers import tiny_m1, tiny_m2

every_config = pytest.mark.parametrize("config", [tiny_m1(), tiny_m2()], ids=["m1", "m2"])


@every_config
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64], ids=str)
def test_dtypes_are_those_of_a_model_loaded_for_training(
    config: M1Config | M2Config,
    dtype: torch.dtype | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model = new_model(config, dtype=dtype)
    folder = tmp_path_factory.mktemp("model")
    save_model(model, folder)
    loaded = load_model(folder, dtype=dtype, trainable=True)
    expected = {name: weight.dtype for name, weight in loaded.state_dict().items()}
    assert {name: weight.dtype for name, weight in model.state_dict().items()} == expected
    assert all(parameter.requires_grad for parameter in model.parameters())
    ids = torch.arange(9)
    logprobs = model.target_logprobs(Packed.of([ids]), ids)
    logprobs.sum().backward()  # type: ignore[no-untyped-call]
    assert model.get_parameter("model.embed_tokens.weight").grad is not None


@every_config
def test_a_seed_gives_the_same_weights_and_leaves_the_generator_alone(
    config: M1Config | M2Config,
) -> None:
    torch.manual_seed(11)
    one = new_model(config, seed=5)
    drawn = torch.rand(3)
    torch.manual_seed(11)
    assert torch.equal(drawn, torch.rand(3))
    other = new_model(config, seed=5).state_dict()
    different = new_model(config, seed=6).state_dict()
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other[name])
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    assert not torch.equal(other[name], different[name])
    half = new_model(config, dtype=torch.bfloat16, seed=5).state_dict()
    assert torch.equal(half[name], other[name].bfloat16())


@every_config
def test_on_the_meta_device_nothing_is_drawn(config: M1Config | M2Config) -> None:
    before = torch.get_rng_state()
    with torch.device("meta"):
        model = new_model(config, dtype=torch.bfloat16, seed=3)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_branches_of_m2_start_small_and_those_of_m1_do_not() -> None:
    """A branch's last matrix is scaled by 1/sqrt(2 L) where no norm brings the stream back."""
    names = ("self_attn.o_proj", "block_sparse_moe.experts.2.w2")
    for config, layer, scale in ((tiny_m1(), 2, 1.0), (tiny_m2(), 2, 6**-0.5)):
        state = new_model(config, seed=2).state_dict()
        for name in names:
            weight = state[f"model.layers.{layer}.{name}.weight"]
            bound = scale * weight.shape[1] ** -0.5  # of kaiming_uniform_(a=sqrt(5))
            assert 0.8 * bound < float(weight.abs().max()) <= bound


def test_a_dtype_that_holds_no_weights_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype is torch\.int64, weights need a floating-point"):
        new_model(tiny_m1(), dtype=torch.int64)
