"""New weights in an old model: it is then the new one to the bit, and nothing of it has moved."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fulmen.checkpoints import load_model, save_model
from fulmen.models import Linear, M1Config, M2Config, Model, Packed, new_model
from fulmen.quantize import quantize_checkpoint
from tests.kernels.helpers import needs_native
from tests.models.helpers import random_model, tiny_m1, tiny_m2
from tests.quantize.helpers import settings

CONFIGS = {
    "m1": tiny_m1(),
    "m1 with a shared expert": tiny_m1(shared_intermediate_size=8),
    "m2": tiny_m2(num_attention_heads=4, head_dim=16),  # whose projections become one matrix
    "m2 tied": tiny_m2(tie_word_embeddings=True),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
BATCH = Packed.of([list(range(50)), [3, 1, 4]])


def trained(config: M1Config | M2Config, dtype: torch.dtype, seed: int) -> Model:
    """Return a model to train whose every part changes the logits."""
    model = new_model(config, dtype=dtype)
    model.load_state_dict(random_model(config, seed).state_dict())
    return model.eval()


def served(model: Model) -> Model:
    """Return a packed copy."""
    served = copy.deepcopy(model)
    served.pack()
    return served


def logits_of(model: Model) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(BATCH)
    return logits


@every_config
@every_dtype
@pytest.mark.parametrize("is_packed", [True, False])
def test_a_model_with_new_weights_is_the_new_one_to_the_bit(
    config: M1Config | M2Config, dtype: torch.dtype, is_packed: bool
) -> None:
    new = trained(config, dtype, seed=1)
    model = trained(config, dtype, seed=2)
    if is_packed:
        model.pack()
    assert not torch.equal(logits_of(model), logits_of(new))
    model.copy_weights(new)
    assert torch.equal(logits_of(model), logits_of(new))
    model.copy_weights(served(trained(config, dtype, seed=3)))  # packed weights are weights too
    assert torch.equal(logits_of(model), logits_of(trained(config, dtype, seed=3)))


@every_config
def test_float32_masters_round_to_a_bfloat16_model_once(config: M1Config | M2Config) -> None:
    masters = trained(config, torch.float32, seed=1)
    model = served(trained(config, torch.bfloat16, seed=2))
    model.copy_weights(masters)
    expected = new_model(config, dtype=torch.bfloat16)
    expected.load_state_dict(masters.state_dict())
    assert torch.equal(logits_of(model), logits_of(expected.eval()))


def test_weights_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    model = served(trained(tiny_m2(), torch.float32, seed=2))
    before = logits_of(model)
    for config, sentence in (
        (tiny_m1(), "the new weights are those of M1, this model is M2"),
        (tiny_m2(hidden_size=32), "of a model whose hidden_size is 32, this one's is 24"),
        (tiny_m2(rope_theta=7.0), "of a model whose rope_theta is 7.0, this one's is 5000000.0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model.copy_weights(random_model(config))
    assert torch.equal(logits_of(model), before)
    config = replace(tiny_m2(), torch_dtype=torch.bfloat16, router_jitter_noise=0.1)
    model.copy_weights(random_model(config, seed=9))  # what is not the function may differ


@needs_native
def test_a_quantised_model_takes_no_new_weights(tmp_path: Path) -> None:
    config = tiny_m2(hidden_size=64, intermediate_size=64, head_dim=32)
    save_model(random_model(config), tmp_path / "whole")
    quantize_checkpoint(tmp_path / "whole", tmp_path / "int8", settings("8"))
    model = load_model(tmp_path / "int8")
    before = logits_of(model)
    with pytest.raises(ValueError, match="is rounded to int8, new weights fit only a model in"):
        model.copy_weights(random_model(config, seed=3))
    assert torch.equal(logits_of(model), before)
    back = load_model(tmp_path / "whole")
    back.copy_weights(model)  # as the floats they stand for
    trainable = load_model(tmp_path / "int8", trainable=True)
    assert torch.equal(logits_of(back), logits_of(trainable))


def test_a_packed_head_keeps_its_place() -> None:
    model = served(trained(tiny_m1(), torch.float32, seed=2))
    heads = [part.weight for part in model.modules() if isinstance(part, Linear)]
    model.copy_weights(trained(tiny_m1(), torch.float32, seed=1))
    now = [part.weight for part in model.modules() if isinstance(part, Linear)]
    assert all(one is other for one, other in zip(heads, now, strict=True))
