"""Both models against their formulas, written a second time (reference.py), in float64."""

import pytest
import torch

from fulmen.models import M1Config, M2Config
from tests.models.helpers import random_model, tiny_m1, tiny_m2
from tests.models.reference import m1_logits, m2_logits
from tests.tolerances import FORMULA, assert_close


def m1(**changes: object) -> M1Config:
    """Return an M1 of which no two gains are equal, so none can stand for another."""
    values: dict[str, object] = {
        "num_hidden_layers": 5,
        "attn_type_list": [0, 1, 0, 1, 0],
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "rms_norm_eps": 0.05,
        "rope_theta": 50.0,
        "layernorm_linear_attention_alpha": 1.5,
        "layernorm_linear_attention_beta": 0.9,
        "layernorm_full_attention_alpha": 1.2,
        "layernorm_full_attention_beta": 0.8,
        "layernorm_mlp_alpha": 1.4,
        "layernorm_mlp_beta": 0.7,
    }
    return tiny_m1(**(values | changes))


def m2(**changes: object) -> M2Config:
    """A choice of three among eight, so that the bias of the choice matters."""
    values: dict[str, object] = {
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "rms_norm_eps": 0.05,
        "rope_theta": 50.0,
    }
    return tiny_m2(**(values | changes))


CONFIGS = {
    "m1": m1(),
    "m1-prenorm": m1(postnorm=False),
    "m1-shared-sigmoid": m1(shared_intermediate_size=12),
    "m1-shared-softmax": m1(shared_intermediate_size=12, shared_moe_mode="softmax"),
    "m1-prenorm-shared": m1(shared_intermediate_size=12, postnorm=False),
    "m1-3-heads": m1(num_attention_heads=3, num_key_value_heads=1),
    "m1-4-heads": m1(num_attention_heads=4),
    "m1-5-heads-tied": m1(num_attention_heads=5, num_key_value_heads=5, tie_word_embeddings=True),
    "m1-whole-rotation": m1(rotary_dim=8),
    "m2": m2(),
    "m2-no-qk-norm": m2(use_qk_norm=False),
    "m2-no-bias": m2(use_routing_bias=False),
    "m2-llama": m2(
        use_qk_norm=False,
        use_routing_bias=False,
        rotary_dim=8,
        num_local_experts=1,
        num_experts_per_tok=1,
        tie_word_embeddings=True,
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_equal_the_formulas(config: M1Config | M2Config) -> None:
    ids = torch.randint(0, 61, (140,), generator=torch.Generator().manual_seed(4))
    model = random_model(config).double()
    with torch.no_grad():
        found = model(ids[None])[0]
        if isinstance(config, M1Config):
            expected = m1_logits(config, model.state_dict(), ids)
        else:
            expected = m2_logits(config, model.state_dict(), ids)
    assert_close(found, expected, FORMULA)
