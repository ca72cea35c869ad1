"""One sequence fed to a model piece by piece, and configs small enough for every test."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fulmen.catalog.download import cache_folder
from fulmen.models import M1Config, M2Config, Model, Packed, Trace, new_model
from fulmen.models.cache import LightningStates
from fulmen.models.m1 import slope_rates
from tests.kernels.helpers import kv_state_at


class Session:
    """One sequence and its cache: feed any number of tokens at a time."""

    def __init__(self, model: Model, max_tokens: int = 1024) -> None:
        self.model = model
        self.pages = list(range(max_tokens // 64))
        self.cache = model.new_cache(len(self.pages), 1)
        self.length = 0

    def feed(self, ids: Sequence[int], trace: Trace | None = None) -> Tensor:
        """(t,) ids -> (t, V) logits"""
        packed = Packed.of([ids], context_lens=[self.length], block_tables=[self.pages], slots=[0])
        with torch.no_grad():
            logits: Tensor = self.model(packed, self.cache, trace=trace)
        self.length += len(ids)
        return logits

    def kv_state(self, layer: int) -> Tensor:
        """The recurrent state (H, D, D) of a lightning layer after all tokens fed."""
        states = self.cache.layers[layer]
        assert isinstance(states, LightningStates)
        context_lens = torch.tensor([self.length])
        carry = states.read(0)
        config = self.model.config
        rates = slope_rates(config.num_attention_heads, layer, config.num_hidden_layers)
        return kv_state_at(carry, torch.tensor(rates), context_lens)[0]


def tiny_m1(**changes: object) -> M1Config:
    """Two lightning layers and a softmax layer."""
    values: dict[str, object] = {
        "model_type": "minimax_m1",
        "vocab_size": 61,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rotary_dim": 4,
        "attn_type_list": [0, 0, 1],
        "intermediate_size": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "postnorm": True,
        "layernorm_linear_attention_alpha": 1.5,
        "layernorm_full_attention_alpha": 1.25,
        "layernorm_mlp_alpha": 1.75,
        "layernorm_mlp_beta": 0.75,
        "max_position_embeddings": 1024,
        "torch_dtype": "float32",
    }
    return M1Config.from_dict(values | changes)


def tiny_m2(**changes: object) -> M2Config:
    """Three softmax layers."""
    values: dict[str, object] = {
        "model_type": "minimax_m2",
        "vocab_size": 61,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rotary_dim": 4,
        "intermediate_size": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 1024,
        "torch_dtype": "float32",
    }
    return M2Config.from_dict(values | changes)


def random_model(config: M1Config | M2Config, seed: int = 0) -> Model:
    """Random weights in which every part changes the logits: norms around one, a choice bias."""
    model = new_model(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        buffers = dict(model.named_buffers())
        for name, parameter in model.state_dict().items():  # official names, each expert's own
            if name in buffers:
                continue
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
            else:
                scale = parameter.shape[-1] ** -0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        for buffer in buffers.values():
            buffer.copy_(0.25 * torch.randn(buffer.shape, generator=generator))
    return model.eval()


def packed_model(config: M1Config | M2Config, seed: int = 0) -> Model:
    """Return `random_model`, its weights laid out for inference as those of a loaded checkpoint."""
    model = random_model(config, seed)
    model.pack()
    return model


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute value."""
    return float((found - expected).abs().max() / expected.abs().max())


def smollm2_folder() -> Path:
    """Return where SmolLM2 was pulled to; skips the test where it was not."""
    found = cache_folder() / "smollm2"
    if not (found / "model.gguf").exists():
        pytest.skip("smollm2 is not here, `fulmen models pull smollm2` brings it")
    return found
