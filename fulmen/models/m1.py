"""MiniMax-M1 (and Text-01): lightning attention in seven layers of eight, softmax in the eighth.

    input_ids -> embedding -> layers -> norm -> head -> logits, and in a layer

    h = norm(x);   x = alpha_attention * h + beta_attention * attention(h)
    g = norm(x);   x = alpha_mlp * g + beta_mlp * experts(g)

So in the released models, whose `postnorm` is true: the residual is the normalised tensor. Without
it the residual is x. A lightning layer has no rotation, no 1/sqrt(D) and no denominator; the state
of each head decays at its own rate, slower the later the layer. Source: arXiv:2506.13585 and
arXiv:2501.08313; field and tensor names are the checkpoint's.
"""

import functools
import math
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fulmen.kernels import (
    add_residual,
    gated_norm,
    lightning_attention,
    residual_norm,
    split_qkv,
)
from fulmen.models.cache import LightningStates
from fulmen.models.causal_lm import CausalLM
from fulmen.models.experts import SparseMoE
from fulmen.models.layers import (
    Context,
    LayerCache,
    Linear,
    RMSNorm,
    SoftmaxAttention,
    project_each,
)
from fulmen.models.model_config import ModelConfig, check_config, checked, to_dict
from fulmen.models.spellings import read_m1
from fulmen.models.tensors import (
    TensorSpec,
    layer_tensors,
    outer_tensors,
    softmax_attention_tensors,
    stored,
)

LIGHTNING_NORM_EPS: Final = 1e-6
"""Epsilon of the norm inside lightning attention: the official code leaves its class default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class M1Config(ModelConfig):
    """Fields of an M1 config.json, in the official spelling: those of both models, and M1's own."""

    # field(): a plain annotation would take ModelConfig's property of this name as its default.
    attn_type_list: tuple[int, ...] = field()
    """One entry a layer: 0 lightning attention, 1 softmax attention."""
    rope_theta: float = 10_000_000.0
    rms_norm_eps: float = 1e-5
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
    """Function of one logit that is the shared expert's share: sigmoid, or softmax (always 1)."""

    model_type: ClassVar[str] = "minimax_m1"

    def __post_init__(self) -> None:
        check_config(self)
        for kind in self.attn_type_list:
            if type(kind) is not int or kind not in (0, 1):
                raise ValueError(
                    f"attn_type_list holds {reprlib.repr(kind)}, only 0 (lightning) and 1 "
                    "(softmax) are known"
                )
        if self.shared_intermediate_size < 0:
            raise ValueError(
                f"shared_intermediate_size is {self.shared_intermediate_size}, it must be 0 (no "
                "shared expert) or more"
            )
        if self.shared_moe_mode not in ("sigmoid", "softmax"):
            raise ValueError(
                f"shared_moe_mode is {reprlib.repr(self.shared_moe_mode)}, it must be 'sigmoid' or "
                "'softmax'"
            )

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, object],
        where: str = "config.json",
        *,
        ignore_config_fields: Collection[str] = (),
    ) -> "M1Config":
        """Read the fields of a config.json, official or as transformers spells them."""
        return checked(cls, read_m1(values, where, ignore_config_fields), where)

    def to_dict(self) -> dict[str, object]:
        """Return the config.json of this model, in the official spelling."""
        return {
            "architectures": ["MiniMaxM1ForCausalLM"],
            "model_type": self.model_type,
            **to_dict(self),
        }

    def is_lightning(self, layer: int) -> bool:
        """Return whether a layer is lightning attention."""
        return self.attn_type_list[layer] == 0

    def tensors(self) -> Iterator[TensorSpec]:
        """Return every tensor of a checkpoint: official name, shape, stored dtype."""
        return stored(_tensors(self), self.quantization_config)


def slope_rates(num_heads: int, layer: int, num_layers: int) -> list[float]:
    """Return the decay rate of each head: at each token its state shrinks by exp(-slope).

    ALiBi's slopes times 1 - layer / (L - 1) + 1e-5, so that early layers forget fast and late ones
    hardly; layer counts all layers of the model, from 0.
    """
    factor = (1 - layer / (num_layers - 1) if num_layers > 1 else 1.0) + 1e-5
    return [slope * factor for slope in alibi_slopes(num_heads)]


def alibi_slopes(num_heads: int) -> list[float]:
    """Return ALiBi's slopes, 2^(-8 (h + 1) / H) for head h of H, where H is a power of two.

    For 6 heads: the slopes of 4 heads, then the first and the third of 8 (and so on for others).
    """
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
        rows, gate_logits = project_each(
            hidden_states, self.qkv_proj, self.output_gate, activations=("silu", "none")
        )
        q, k, v = split_qkv(rows, self.head_dim)  # (T, H, D) each
        assert cache is None or isinstance(cache, LightningStates)
        packed = context.packed
        out = lightning_attention(
            q,
            k,
            v,
            _slope_rate(self.slope_rates, q.device),
            lengths=packed.lengths,
            states=None if cache is None else cache.carry,
        )
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
        self.shared_mlp: SharedMLP | None = None
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
        # the sum of residual and attention, and its norm
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
        if self.shared_mlp is None:
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
    """Return the load-balancing loss of all layers jointly: E * sum over k and e of f_ke P_e.

    router_logits holds (T, E) a layer (`Trace.router_logits`); P_e is the mean probability of
    expert e, f_ke the share of rows whose k-th choice is e. Perfect balance gives top_k. The
    caller multiplies it by router_aux_loss_coef.
    """
    probabilities = torch.cat(tuple(router_logits)).softmax(-1)  # (layers * T, E)
    num_experts = probabilities.shape[-1]
    chosen = F.one_hot(probabilities.topk(top_k).indices, num_experts).to(probabilities.dtype)
    frequency = chosen.mean(0)  # (K, E)
    return num_experts * (frequency * probabilities.mean(0)).sum()


def _tensors(config: M1Config) -> Iterator[TensorSpec]:
    hidden, heads_width = config.hidden_size, config.num_attention_heads * config.head_dim
    yield from outer_tensors(config)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        if config.is_lightning(layer):
            for name, shape in (
                ("qkv_proj.weight", (3 * heads_width, hidden)),
                ("output_gate.weight", (heads_width, hidden)),
                ("out_proj.weight", (hidden, heads_width)),
                ("norm.weight", (heads_width,)),
            ):
                yield TensorSpec(f"{prefix}.self_attn.{name}", shape, config.torch_dtype)
        else:
            yield from softmax_attention_tensors(config, prefix)
        yield from layer_tensors(config, prefix)
        if config.shared_intermediate_size:
            width = config.shared_intermediate_size
            for name, shape in (
                ("shared_mlp.gate_proj.weight", (width, hidden)),
                ("shared_mlp.up_proj.weight", (width, hidden)),
                ("shared_mlp.down_proj.weight", (hidden, width)),
                ("coefficient.weight", (1, hidden)),
            ):
                yield TensorSpec(f"{prefix}.{name}", shape, config.torch_dtype)
