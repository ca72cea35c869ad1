"""MiniMax-M2 (and M2.1, M2.5): softmax attention with QK-norm, sigmoid router with a choice bias.

    x = x + attention(norm(x));   x = x + experts(norm(x))

One RMSNorm spans all query heads together and one all key heads, before rotation; only the first
rotary_dim dimensions of a head rotate. The bias helps to choose experts and never enters their
weights. A Llama block is the same block with one expert, no QK-norm and full rotation, which is how
`gguf.py` runs small free-form models.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fulmen.kernels import add_residual, residual_norm
from fulmen.models.causal_lm import CausalLM
from fulmen.models.experts import SparseMoE
from fulmen.models.layers import Context, LayerCache, RMSNorm, SoftmaxAttention
from fulmen.models.model_config import ModelConfig, check_config, checked, to_dict
from fulmen.models.spellings import read_m2
from fulmen.models.tensors import (
    TensorSpec,
    layer_tensors,
    outer_tensors,
    softmax_attention_tensors,
    stored,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class M2Config(ModelConfig):
    """Fields of an M2 config.json, in the official spelling: those of both models, and M2's own."""

    rope_theta: float = 5_000_000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 196_608
    use_qk_norm: bool = True
    """One RMSNorm over all query heads together and one over all key heads, before rotation."""
    use_routing_bias: bool = True
    """`e_score_correction_bias` takes part in the choice of experts, never in their weights."""

    model_type: ClassVar[str] = "minimax_m2"

    def __post_init__(self) -> None:
        check_config(self)

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, object],
        where: str = "config.json",
        *,
        ignore_config_fields: Collection[str] = (),
    ) -> "M2Config":
        """Read the fields of a config.json: the official one, a re-export, or transformers 5's."""
        return checked(cls, read_m2(values, where, ignore_config_fields), where)

    def to_dict(self) -> dict[str, object]:
        """Return the config.json of this model, in the official spelling."""
        return {
            "architectures": ["MiniMaxM2ForCausalLM"],
            "model_type": self.model_type,
            "attn_type_list": list(self.attn_type_list),
            "scoring_func": "sigmoid",  # vLLM reads it, and knows no default
            **to_dict(self),
        }

    def tensors(self) -> Iterator[TensorSpec]:
        """Return every tensor of a checkpoint: official name, shape, stored dtype."""
        return stored(_tensors(self), self.quantization_config)


class M2Attention(SoftmaxAttention):
    """Softmax attention whose queries and keys are normed over all heads before rotation."""

    def __init__(self, config: M2Config) -> None:
        super().__init__(config)
        if config.use_qk_norm:
            query, key, _ = self.widths
            self.q_norm = RMSNorm(query, config.rms_norm_eps)
            self.k_norm = RMSNorm(key, config.rms_norm_eps)


class M2SparseMoE(SparseMoE):
    """Sigmoid scores in float32; bias for the choice, scores alone for the weights."""

    scoring = "sigmoid"

    def __init__(self, config: M2Config) -> None:
        super().__init__(config)
        # A buffer: training moves it by the load of each expert, never by a gradient.
        if config.use_routing_bias:
            self.e_score_correction_bias = torch.zeros(config.num_local_experts)


class M2Layer(nn.Module):
    """One block: attention, then experts, each added to the stream."""

    def __init__(self, config: M2Config, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = M2Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.block_sparse_moe = M2SparseMoE(config)
        # 2 L branches are added to a stream that no norm brings back: a new model scales each, so
        # that the stream leaves the last layer as large as one of them.
        experts = self.block_sparse_moe.experts
        with torch.no_grad():
            for weight in (self.self_attn.o_proj.weight, experts.get_parameter("w2")):
                assert isinstance(weight, Tensor)
                weight.mul_((2 * config.num_hidden_layers) ** -0.5)

    def forward(self, hidden_states: Tensor, context: Context, cache: LayerCache | None) -> Tensor:
        """(T, C) -> (T, C)"""
        attended = self.self_attn(self.input_layernorm(hidden_states), context, cache)
        if context.trace is not None:
            context.trace.attention_outputs.append(attended)
        norm = self.post_attention_layernorm
        hidden_states, normed = residual_norm(hidden_states, attended, norm.weight, norm.eps)
        return add_residual(hidden_states, self.block_sparse_moe(normed, context))


class M2(CausalLM[M2Config]):
    """MiniMax-M2 as one module for training and inference."""

    def __init__(self, config: M2Config) -> None:
        super().__init__(config, M2Layer)


def _tensors(config: M2Config) -> Iterator[TensorSpec]:
    yield from outer_tensors(config)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        yield from softmax_attention_tensors(config, prefix)
        if config.use_qk_norm:
            for name, heads in (
                ("q_norm", config.num_attention_heads),
                ("k_norm", config.num_key_value_heads),
            ):
                width = (heads * config.head_dim,)
                yield TensorSpec(f"{prefix}.self_attn.{name}.weight", width, config.torch_dtype)
        yield from layer_tensors(config, prefix)
        if config.use_routing_bias:
            bias = f"{prefix}.block_sparse_moe.e_score_correction_bias"
            yield TensorSpec(bias, (config.num_local_experts,), torch.float32)
