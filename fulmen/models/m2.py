"""MiniMax-M2 (and M2.1, M2.5): softmax attention with QK-norm, sigmoid router with a choice bias.

    x = x + attention(norm(x));   x = x + experts(norm(x))

One RMSNorm spans all query heads together and one all key heads, before rotation; only the first
rotary_dim dimensions of a head rotate. The bias helps to choose experts and never enters their
weights. A Llama block is the same block with one expert, no QK-norm and full rotation, which is how
`gguf.py` runs small free-form models.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fulmen.kernels import add_residual, residual_norm
from fulmen.models.causal_lm import CausalLM
from fulmen.models.config import Fields, check_numbers, to_dict
from fulmen.models.experts import SparseMoE
from fulmen.models.layers import Context, LayerCache, RMSNorm, SoftmaxAttention
from fulmen.models.quantization import QuantizationConfig
from fulmen.models.tensors import (
    TensorSpec,
    layer_tensors,
    outer_tensors,
    softmax_attention_tensors,
    stored,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class M2Config:
    """The fields of an M2 config.json, in the official spelling."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    """Width of one expert."""
    num_local_experts: int
    num_experts_per_tok: int
    rotary_dim: int
    """How many of a head's dimensions rotate; 64 of 128 in the released models."""
    rope_theta: float = 5_000_000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 196_608
    use_qk_norm: bool = True
    """One RMSNorm over all query heads together and one over all key heads, before rotation."""
    use_routing_bias: bool = True
    """`e_score_correction_bias` takes part in the choice of experts, never in their weights."""
    tie_word_embeddings: bool = False
    router_aux_loss_coef: float = 0.001
    router_jitter_noise: float = 0.0
    """In training the router and experts see their input times uniform(1 - noise, 1 + noise)."""
    torch_dtype: torch.dtype = torch.bfloat16
    quantization_config: QuantizationConfig | None = None

    model_type: ClassVar[str] = "minimax_m2"

    def __post_init__(self) -> None:
        check_numbers(self)

    @property
    def attn_type_list(self) -> tuple[int, ...]:
        """Softmax attention in every layer; 0 was lightning attention in the M1 line."""
        return (1,) * self.num_hidden_layers

    @classmethod
    def from_dict(cls, values: Mapping[str, object], where: str = "config.json") -> "M2Config":
        """Reads a config.json: the official file, a re-export, or what transformers 5 writes."""
        fields = Fields(values, where)
        hidden_size = fields.take("hidden_size", int)
        num_heads = fields.take("num_attention_heads", int)
        num_layers = fields.take("num_hidden_layers", int)
        head_dim = fields.take("head_dim", int, hidden_size // max(num_heads, 1))
        rope_theta, rotary_dim = fields.take_rope(head_dim, 5_000_000.0)
        for name, needed in _ONLY.items():
            fields.require(name, needed)
        # A shared expert's width and mixing, which some releases name; shared_intermediate_size,
        # required to be 0 above, says that there is none.
        fields.take_optional("mlp_intermediate_size", int)
        fields.take_optional("shared_moe_mode", str)
        fields.require("attn_type_list", [1] * num_layers)
        fields.require("layer_types", ["full_attention"] * num_layers)
        config = cls(
            vocab_size=fields.take("vocab_size", int),
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=fields.take("num_key_value_heads", int, num_heads),
            head_dim=head_dim,
            intermediate_size=fields.take("intermediate_size", int),
            num_local_experts=fields.take("num_local_experts", int, also=("num_experts",)),
            num_experts_per_tok=fields.take("num_experts_per_tok", int),
            rotary_dim=head_dim if rotary_dim is None else rotary_dim,
            rope_theta=rope_theta,
            rms_norm_eps=fields.take("rms_norm_eps", float, 1e-6),
            max_position_embeddings=fields.take("max_position_embeddings", int, 196_608),
            use_qk_norm=fields.take("use_qk_norm", bool, True),
            use_routing_bias=fields.take("use_routing_bias", bool, True),
            tie_word_embeddings=fields.take("tie_word_embeddings", bool, False),
            router_aux_loss_coef=fields.take("router_aux_loss_coef", float, 0.001),
            router_jitter_noise=fields.take("router_jitter_noise", float, 0.0),
            torch_dtype=fields.take_dtype(),
            quantization_config=fields.take_quantization(),
        )
        fields.finish()
        return config

    def to_dict(self) -> dict[str, object]:
        """The config.json of this model, in the official spelling; `from_dict` reads it back."""
        return {
            "architectures": ["MiniMaxM2ForCausalLM"],
            "model_type": self.model_type,
            "attn_type_list": list(self.attn_type_list),
            **to_dict(self),
        }

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor of a checkpoint with this config: official name, shape, stored dtype."""
        return stored(self._tensors(), self.quantization_config)

    def _tensors(self) -> Iterator[TensorSpec]:
        yield from outer_tensors(self)
        for layer in range(self.num_hidden_layers):
            prefix = f"model.layers.{layer}"
            yield from softmax_attention_tensors(self, prefix)
            if self.use_qk_norm:
                for name, heads in (
                    ("q_norm", self.num_attention_heads),
                    ("k_norm", self.num_key_value_heads),
                ):
                    width = (heads * self.head_dim,)
                    yield TensorSpec(f"{prefix}.self_attn.{name}.weight", width, self.torch_dtype)
            yield from layer_tensors(self, prefix)
            if self.use_routing_bias:
                bias = f"{prefix}.block_sparse_moe.e_score_correction_bias"
                yield TensorSpec(bias, (self.num_local_experts,), torch.float32)


_ONLY: dict[str, object] = {
    "sliding_window": None,
    "attention_dropout": 0.0,
    "attention_bias": False,
    "hidden_act": "silu",
    "scoring_func": "sigmoid",
    "qk_norm_type": "per_layer",
    "shared_intermediate_size": 0,
    "postnorm": False,
    # M1's gains of residual and branch, which M2's blocks do not have.
    "layernorm_full_attention_alpha": 1.0,
    "layernorm_full_attention_beta": 1.0,
    "layernorm_linear_attention_alpha": 1.0,
    "layernorm_linear_attention_beta": 1.0,
    "layernorm_mlp_alpha": 1.0,
    "layernorm_mlp_beta": 1.0,
}


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
