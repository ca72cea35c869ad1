"""MiniMax-M1 (and Text-01): lightning attention in seven layers of eight, softmax in the eighth.

    h = norm(x);   x = alpha_attention * h + beta_attention * attention(h)
    g = norm(x);   x = alpha_mlp * g + beta_mlp * experts(g)

The residual branch is the normalised tensor, scaled (`postnorm`); the raw stream is not carried. A
lightning layer has no rotation, no 1/sqrt(D) and no denominator; its heads fade at their own pace,
slower the later the layer. Source: arXiv:2506.13585 and arXiv:2501.08313; field and tensor names
are the checkpoint's.
"""

import functools
import logging
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fulmen.kernels import add_residual, gated_norm, lightning_attention, residual_norm
from fulmen.models.cache import LightningStates
from fulmen.models.causal_lm import CausalLM
from fulmen.models.config import Fields, check_numbers, to_dict
from fulmen.models.experts import SparseMoE
from fulmen.models.layers import Context, LayerCache, Linear, RMSNorm, SoftmaxAttention, split_heads
from fulmen.models.quantization import QuantizationConfig
from fulmen.models.tensors import (
    TensorSpec,
    layer_tensors,
    outer_tensors,
    softmax_attention_tensors,
    stored,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

LIGHTNING_NORM_EPS = 1e-6
"""Of the norm inside lightning attention: the official code leaves its class default, not
rms_norm_eps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class M1Config:
    """The fields of an M1 config.json, in the official spelling."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    """Of the softmax layers; lightning layers have num_attention_heads keys and values."""
    head_dim: int
    attn_type_list: tuple[int, ...]
    """One entry a layer: 0 lightning attention, 1 softmax attention."""
    intermediate_size: int
    """Width of one expert."""
    num_local_experts: int
    num_experts_per_tok: int
    rotary_dim: int
    """How many of a head's dimensions rotate in the softmax layers; 64 of 128 in the released
    models."""
    rope_theta: float = 10_000_000.0
    rms_norm_eps: float = 1e-5
    """Of the block norms and the last norm; the norm inside lightning attention uses 1e-6."""
    max_position_embeddings: int = 10_240_000
    postnorm: bool = False
    """The residual is taken after the norm, as in the released models."""
    layernorm_linear_attention_alpha: float = 1.0
    layernorm_linear_attention_beta: float = 1.0
    layernorm_full_attention_alpha: float = 1.0
    layernorm_full_attention_beta: float = 1.0
    layernorm_mlp_alpha: float = 1.0
    layernorm_mlp_beta: float = 1.0
    shared_intermediate_size: int = 0
    """Width of the shared expert; 0 means none, as in the released models."""
    shared_moe_mode: str = "sigmoid"
    """How the shared expert's coefficient is made of one logit: sigmoid, or softmax (then it is 1).
    """
    tie_word_embeddings: bool = False
    router_aux_loss_coef: float = 0.001
    router_jitter_noise: float = 0.0
    """In training the router and experts see their input times uniform(1 - noise, 1 + noise)."""
    torch_dtype: torch.dtype = torch.bfloat16
    quantization_config: QuantizationConfig | None = None

    model_type: ClassVar[str] = "minimax_m1"

    def __post_init__(self) -> None:
        check_numbers(self)
        for kind in self.attn_type_list:
            if type(kind) is not int or kind not in (0, 1):
                raise ValueError(
                    f"attn_type_list holds {reprlib.repr(kind)}, only 0 (lightning) and 1 "
                    "(softmax) are known, see config.json"
                )
        if self.shared_intermediate_size < 0:
            raise ValueError(
                f"shared_intermediate_size is {self.shared_intermediate_size}, it must be 0 (no "
                "shared expert) or more, see config.json"
            )
        if self.shared_moe_mode not in ("sigmoid", "softmax"):
            raise ValueError(
                f"shared_moe_mode is {self.shared_moe_mode!r}, it must be 'sigmoid' or 'softmax', "
                "see config.json"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, object], where: str = "config.json") -> "M1Config":
        """Reads a config.json, official or as transformers (-hf) spells it."""
        fields = Fields(values, where)
        hidden_size = fields.take("hidden_size", int)
        num_heads = fields.take("num_attention_heads", int)
        num_layers = fields.take("num_hidden_layers", int)
        head_dim = fields.take("head_dim", int, hidden_size // max(num_heads, 1))
        is_hf = _is_hf(values)
        rope_theta, rotary_dim = fields.take_rope(head_dim, 1_000_000.0 if is_hf else 10_000.0)
        num_experts = _one_number(fields, "num_local_experts", num_layers)
        shared_size = _one_number(fields, "shared_intermediate_size", num_layers, 0)
        if (
            rotary_dim is None
            and is_hf
            and (hidden_size, num_layers, num_experts) == (6144, 80, 32)
        ):
            # transformers has no such field, the released weights were trained with 64.
            logger.warning(
                "%s names no rotary_dim; using 64, which the released weights need", where
            )
            rotary_dim = 64
        for name in ("sliding_window", "attention_dropout", "attention_bias", "mlp_bias"):
            fields.require(name, _ONLY[name])
        fields.require("hidden_act", "silu")
        # The canonical chunk is 64 tokens whatever the file says; the result does not depend on it.
        fields.take("block_size", int, 256, also=("block",))
        scales = {
            f"layernorm_{kind}_{gain}": _take_scale(
                fields, f"layernorm_{kind}_{gain}", f"{hf_kind}_{gain}_factor"
            )
            for kind, hf_kind in _SCALES.items()
            for gain in ("alpha", "beta")
        }
        config = cls(
            vocab_size=fields.take("vocab_size", int),
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=fields.take("num_key_value_heads", int, num_heads),
            head_dim=head_dim,
            attn_type_list=_attention_types(fields, num_layers, is_hf),
            intermediate_size=fields.take("intermediate_size", int),
            num_local_experts=num_experts,
            num_experts_per_tok=fields.take("num_experts_per_tok", int, 2),
            rotary_dim=head_dim if rotary_dim is None else rotary_dim,
            rope_theta=rope_theta,
            rms_norm_eps=fields.take("rms_norm_eps", float, 1e-5),
            max_position_embeddings=fields.take("max_position_embeddings", int, 10_240_000),
            postnorm=fields.take("postnorm", bool, is_hf),
            **scales,
            shared_intermediate_size=shared_size,
            shared_moe_mode=fields.take("shared_moe_mode", str, "sigmoid"),
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
            "architectures": ["MiniMaxM1ForCausalLM"],
            "model_type": self.model_type,
            **to_dict(self),
        }

    def is_lightning(self, layer: int) -> bool:
        """Whether a layer is lightning attention."""
        return self.attn_type_list[layer] == 0

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor of a checkpoint with this config: official name, shape, stored dtype."""
        return stored(self._tensors(), self.quantization_config)

    def _tensors(self) -> Iterator[TensorSpec]:
        hidden, heads_width = self.hidden_size, self.num_attention_heads * self.head_dim
        yield from outer_tensors(self)
        for layer in range(self.num_hidden_layers):
            prefix = f"model.layers.{layer}"
            if self.is_lightning(layer):
                for name, shape in (
                    ("qkv_proj.weight", (3 * heads_width, hidden)),
                    ("output_gate.weight", (heads_width, hidden)),
                    ("out_proj.weight", (hidden, heads_width)),
                    ("norm.weight", (heads_width,)),
                ):
                    yield TensorSpec(f"{prefix}.self_attn.{name}", shape, self.torch_dtype)
            else:
                yield from softmax_attention_tensors(self, prefix)
            yield from layer_tensors(self, prefix)
            if self.shared_intermediate_size:
                width = self.shared_intermediate_size
                for name, shape in (
                    ("shared_mlp.gate_proj.weight", (width, hidden)),
                    ("shared_mlp.up_proj.weight", (width, hidden)),
                    ("shared_mlp.down_proj.weight", (hidden, width)),
                    ("coefficient.weight", (1, hidden)),
                ):
                    yield TensorSpec(f"{prefix}.{name}", shape, self.torch_dtype)


_ONLY = {
    "sliding_window": None,
    "attention_dropout": 0.0,
    "attention_bias": False,
    "mlp_bias": False,
}
_SCALES = {"linear_attention": "linear_attn", "full_attention": "full_attn", "mlp": "mlp"}


def _is_hf(values: Mapping[str, object]) -> bool:
    return values.get("model_type") == "minimax" or values.get("architectures") == [
        "MiniMaxForCausalLM"
    ]


def _one_number(fields: Fields, name: str, num_layers: int, default: int | None = None) -> int:
    """A count that some configs give once a layer; all entries must be equal."""
    if not isinstance(fields.peek(name), list):
        return fields.take(name, int, default)
    values = fields.take(name, list)
    if len(values) != num_layers:
        problem = f"has {len(values)} entries, num_hidden_layers is {num_layers}"
    elif any(type(value) is not int for value in values):
        problem = f"is {reprlib.repr(values)}, it must be one integer or one for each layer"
    elif len(set(values)) > 1:
        problem = "differs from layer to layer, only one value for all is implemented"
    else:
        return int(values[0])
    raise ValueError(f"{name} {problem}, see {fields.where}")


def _take_scale(fields: Fields, name: str, hf_name: str) -> float:
    """A gain of residual or branch, 1 where no spelling names it."""
    official, hf = fields.take_optional(name, float), fields.take_optional(hf_name, float)
    scale = _of_both(fields.where, name, official, hf_name, hf)
    return 1.0 if scale is None else scale


def _attention_types(fields: Fields, num_layers: int, is_hf: bool) -> tuple[int, ...]:
    official = fields.take_optional("attn_type_list", list, also=("decoder_attention_types",))
    names = fields.take_optional("layer_types", list)
    hf = [_attention_type(name, fields.where) for name in names] if names else None
    kinds = _of_both(fields.where, "attn_type_list", official, "layer_types", hf)
    if kinds is not None:
        return tuple(kinds)
    if not is_hf:
        raise ValueError(f"attn_type_list is missing and has no default, see {fields.where}")
    # transformers' default for an absent list: softmax at even layers, lightning at odd ones.
    return tuple(1 - layer % 2 for layer in range(num_layers))


def _attention_type(name: object, where: str) -> int:
    if name == "linear_attention":
        return 0
    if name == "full_attention":
        return 1
    raise ValueError(
        f"layer_types holds {reprlib.repr(name)}, only linear_attention and full_attention are "
        f"known, see {where}"
    )


def _of_both(where: str, name: str, official: T | None, hf_name: str, hf: T | None) -> T | None:
    """What a config says in the official spelling, in that of transformers, or in both alike.

    transformers 5 keeps the official fields of a config it read and writes its own defaults beside
    them: wrong ones, which must not be taken for the model's.
    """
    if official is None or hf is None:
        return hf if official is None else official
    if official != hf:
        raise ValueError(
            f"{name} says {reprlib.repr(official)} and {hf_name} says {reprlib.repr(hf)}: {where} "
            "looks like a damaged re-save by transformers, the published config.json is needed"
        )
    return official


def slope_rates(num_heads: int, layer: int, num_layers: int) -> list[float]:
    """The fading of each head of a layer: a token's trace shrinks by exp(-slope) a step.

    ALiBi slopes 2^(-8 (h + 1) / H), interpolated where H is no power of two, times 1 - layer / (L -
    1) + 1e-5, so that early layers forget fast and late ones hardly; layer counts all layers of the
    model, from 0.
    """
    factor = (1 - layer / (num_layers - 1) if num_layers > 1 else 1.0) + 1e-5
    return [slope * factor for slope in alibi_slopes(num_heads)]


def alibi_slopes(num_heads: int) -> list[float]:
    """ALiBi's slopes; for H heads that are no power of two, those of the next lower power, then
    every other of the next."""
    lower = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (head + 1) / lower) for head in range(lower)]
    if lower == num_heads:
        return slopes
    return slopes + alibi_slopes(2 * lower)[0::2][: num_heads - lower]


class LightningAttention(nn.Module):
    """silu(x Wqkv) -> lightning attention -> norm over all heads -> sigmoid gate -> output."""

    def __init__(self, config: M1Config, layer: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.slope_rates = tuple(
            slope_rates(config.num_attention_heads, layer, config.num_hidden_layers)
        )
        width = config.num_attention_heads * config.head_dim
        self.qkv_proj = Linear(config.hidden_size, 3 * width)
        self.output_gate = Linear(config.hidden_size, width)
        self.out_proj = Linear(width, config.hidden_size)
        self.norm = RMSNorm(width, LIGHTNING_NORM_EPS)

    def forward(self, hidden_states: Tensor, context: Context, cache: LayerCache | None) -> Tensor:
        """(T, C) -> (T, C)"""
        # Rows of qkv_proj are grouped by head: q, k, v of head 0, then of head 1, and so on.
        rows = self.qkv_proj(hidden_states, activation="silu")
        q, k, v = split_heads(rows, 3 * self.head_dim).chunk(3, -1)  # (T, H, D) each
        assert cache is None or isinstance(cache, LightningStates)
        packed = context.packed
        out = lightning_attention(
            q,
            k,
            v,
            _slope_rate(self.slope_rates, q.device),
            cu_seqlens=packed.cu_seqlens,
            context_lens=packed.context_lens,
            states=None if cache is None else cache.carry,
            slots=None if cache is None else packed.slots,
        )
        gate_logits = self.output_gate(hidden_states)
        normed = gated_norm(out.flatten(-2), self.norm.weight, gate_logits, self.norm.eps)
        projected: Tensor = self.out_proj(normed)
        return projected


@functools.lru_cache(maxsize=1024)
def _slope_rate(slope_rates: tuple[float, ...], device: torch.device) -> Tensor:
    """(H,) float32, also in a float64 model, as in the official code."""
    return torch.tensor(slope_rates, dtype=torch.float32, device=device)


class M1SparseMoE(SparseMoE):
    """Softmax over all experts in float32, the best few, renormalised."""

    scoring = "softmax"


class SharedMLP(nn.Module):
    """The shared expert of configs that have one; the released models have none."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(T, C) -> (T, C)"""
        out: Tensor = self.down_proj(self.gate_proj(x, activation="silu") * self.up_proj(x))
        return out


class M1Layer(nn.Module):
    """One block: attention of its kind, then experts, with scaled residuals."""

    def __init__(self, config: M1Config, layer: int) -> None:
        super().__init__()
        self.postnorm = config.postnorm
        self.shared_moe_mode = config.shared_moe_mode
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn: LightningAttention | SoftmaxAttention
        if config.is_lightning(layer):
            self.self_attn = LightningAttention(config, layer)
            self.attention_alpha = config.layernorm_linear_attention_alpha
            self.attention_beta = config.layernorm_linear_attention_beta
        else:
            self.self_attn = SoftmaxAttention(config)
            self.attention_alpha = config.layernorm_full_attention_alpha
            self.attention_beta = config.layernorm_full_attention_beta
        self.mlp_alpha = config.layernorm_mlp_alpha
        self.mlp_beta = config.layernorm_mlp_beta
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.block_sparse_moe = M1SparseMoE(config)
        if config.shared_intermediate_size:
            self.shared_mlp = SharedMLP(config.hidden_size, config.shared_intermediate_size)
            self.coefficient = Linear(config.hidden_size, 1)

    def forward(self, hidden_states: Tensor, context: Context, cache: LayerCache | None) -> Tensor:
        """(T, C) -> (T, C)"""
        normed = self.input_layernorm(hidden_states)
        residual = normed if self.postnorm else hidden_states
        attended = self.self_attn(normed, context, cache)
        if context.trace is not None:
            context.trace.attention_outputs.append(attended)
        norm = self.post_attention_layernorm
        hidden_states, normed = residual_norm(
            residual,
            attended,
            norm.weight,
            norm.eps,
            alpha=self.attention_alpha,
            beta=self.attention_beta,
        )
        residual = normed if self.postnorm else hidden_states
        experts = self._experts(normed, context)
        return add_residual(residual, experts, alpha=self.mlp_alpha, beta=self.mlp_beta)

    def _experts(self, normed: Tensor, context: Context) -> Tensor:
        routed: Tensor = self.block_sparse_moe(normed, context)
        if not hasattr(self, "shared_mlp"):
            return routed
        share = self.coefficient(normed, activation="sigmoid")  # (T, 1)
        if self.shared_moe_mode == "softmax":  # over one logit: 1; configs name it
            share = torch.ones_like(share)
        mixed: Tensor = (1 - share) * routed + share * self.shared_mlp(normed)
        return mixed


class M1(CausalLM[M1Config]):
    """MiniMax-M1 as one module for training and inference."""

    def __init__(self, config: M1Config) -> None:
        super().__init__(config, M1Layer)


def router_aux_loss(router_logits: Sequence[Tensor], top_k: int) -> Tensor:
    """The load-balancing loss E * sum over choices k and experts e of f_ke P_e, all layers jointly.

    router_logits holds (T, E) a layer (`Trace.router_logits`); P_e is the mean probability of
    expert e, f_ke the share of rows whose k-th choice is e. Perfect balance gives top_k. To be
    multiplied by router_aux_loss_coef.
    """
    probabilities = torch.cat(tuple(router_logits)).softmax(-1)  # (layers * T, E)
    num_experts = probabilities.shape[-1]
    chosen = F.one_hot(probabilities.topk(top_k).indices, num_experts).to(probabilities.dtype)
    frequency = chosen.mean(0)  # (K, E)
    return num_experts * (frequency * probabilities.mean(0)).sum()
