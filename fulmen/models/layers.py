"""What both models are built of: norm, partial rotation, softmax attention, experts, outer model.

    input_ids -> embed_tokens -> layers (attention, then experts) -> norm -> lm_head -> logits

A model's forward pass gets all it needs as arguments: a Packed batch, a Cache or none, a Trace for
those who want to see what happened on the way. Router, norms, softmax, lightning state and head
work in float32 (float64 for float64). The angles of the rotation and the slope rates of lightning
attention are float32 in every model, as in the reference implementations.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fulmen.kernels import (
    Activation,
    KVPages,
    PackedMatrix,
    attend,
    backend_for,
    concatenate,
    linear,
    pack,
    rms_norm,
    rotate,
    softmax_attention,
    write_pages,
)
from fulmen.models.cache import LightningStates
from fulmen.models.config import AttentionConfig
from fulmen.models.packed import Packed

LayerCache = KVPages | LightningStates


@dataclass(slots=True)
class Trace:
    """What a forward pass saw on the way, one entry a layer; filled when it is passed in."""

    hidden_states: list[Tensor] = field(default_factory=list)
    """(T, C) each: the input of every layer, then the output of the last norm."""
    attention_outputs: list[Tensor] = field(default_factory=list)
    """(T, C) each: what attention added, before the residual."""
    router_logits: list[Tensor] = field(default_factory=list)
    """(T, E) float32 each."""
    topk_weights: list[Tensor] = field(default_factory=list)
    """(T, K) float32 each."""
    topk_ids: list[Tensor] = field(default_factory=list)
    """(T, K) int64 each: which experts every token took."""


@dataclass(frozen=True, slots=True)
class Context:
    """What every layer of one forward pass needs besides its hidden states."""

    packed: Packed
    cos: Tensor
    """(T, rotary_dim / 2) float32, of `rotary_angles`"""
    sin: Tensor
    trace: Trace | None
    generator: torch.Generator | None


def full_precision(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64: the dtype of sums and statistics."""
    return torch.promote_types(dtype, torch.float32)


class Linear(nn.Module):
    """A matrix without bias, as everywhere in both models: a parameter, or packed for inference."""

    weight: nn.Parameter | PackedMatrix

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.input_bits = 16
        """How finely inputs are rounded for int8 and int4 weights; 8 or 16."""

    def assign(self, weight: Tensor | PackedMatrix) -> None:
        """Replaces the weight; a packed one cannot be trained."""
        del self.weight
        self.weight = nn.Parameter(weight) if isinstance(weight, Tensor) else weight

    def pack(self) -> None:
        """Packs a plain weight for inference, where the kernels can use it."""
        if isinstance(self.weight, Tensor) and backend_for(self.weight) is not None:
            self.assign(pack(self.weight))

    def forward(
        self,
        x: Tensor,
        *,
        activation: Activation = "none",
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """(..., in) -> (..., out); summed in float32, rounded once"""
        return linear(
            x,
            self.weight,
            activation=activation,
            out_dtype=out_dtype,
            input_bits=self.input_bits,
        )


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), cast back, times the weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C); the mean of squares is in float32."""
        return rms_norm(x, self.weight, self.eps)


class SoftmaxAttention(nn.Module):
    """Causal attention with grouped queries and partial rotation; M2 has norms of q and k over all
    heads together, before the rotation."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        self.head_dim = config.head_dim
        self.widths = (
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        )
        query, key, value = self.widths
        self.q_proj = Linear(config.hidden_size, query)
        self.k_proj = Linear(config.hidden_size, key)
        self.v_proj = Linear(config.hidden_size, value)
        self.o_proj = Linear(query, config.hidden_size)
        self._qkv: PackedMatrix | None = None

    def combine(self) -> None:
        """Makes one matrix of the three projections for inference, once each is packed."""
        matrices = [proj.weight for proj in (self.q_proj, self.k_proj, self.v_proj)]
        if all(isinstance(matrix, PackedMatrix) for matrix in matrices):
            self._qkv = concatenate([m for m in matrices if isinstance(m, PackedMatrix)])
        if self._qkv is not None:
            for proj in (self.q_proj, self.k_proj, self.v_proj):
                del proj.weight

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T, C) -> (T, H * D), (T, Hkv * D), (T, Hkv * D)"""
        if self._qkv is None:
            q, k = self.q_proj(hidden_states), self.k_proj(hidden_states)
            return q, k, self.v_proj(hidden_states)
        rows = linear(hidden_states, self._qkv, input_bits=self.q_proj.input_bits)
        q, k, v = torch.split(rows, list(self.widths), -1)
        return q, k, v

    def forward(self, hidden_states: Tensor, context: Context, cache: LayerCache | None) -> Tensor:
        """(T, C) -> (T, C)"""
        q, k, v = self.project(hidden_states)
        q, k = rotate(
            q,
            k,
            context.cos,
            context.sin,
            head_dim=self.head_dim,
            q_norm=None if self.q_norm is None else self.q_norm.weight,
            k_norm=None if self.k_norm is None else self.k_norm.weight,
            eps=0.0 if self.q_norm is None else self.q_norm.eps,
        )  # (T, H, D), (T, Hkv, D)
        v = split_heads(v, self.head_dim)
        packed = context.packed
        if cache is None:
            out = attend(q, k, v, cu_seqlens=packed.cu_seqlens)
        else:
            assert isinstance(cache, KVPages)
            assert packed.block_table is not None
            assert packed.slot_mapping is not None
            write_pages(k, v, cache, packed.slot_mapping)
            out = softmax_attention(
                q,
                cache,
                cu_seqlens=packed.cu_seqlens,
                context_lens=packed.context_lens,
                block_table=packed.block_table,
            )
        projected: Tensor = self.o_proj(out.flatten(-2))
        return projected


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """(T, H * D) -> (T, H, D)"""
    return x.view(len(x), -1, head_dim)
