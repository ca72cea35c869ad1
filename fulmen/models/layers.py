"""Layers that both models are built of: linear, norm, softmax attention.

A layer's forward pass gets all it needs as arguments: hidden states, a Context with the batch, and
its part of the cache or none. Router, norms, softmax, lightning state and head work in float32
(float64 for float64). The angles of the rotation and the slope rates of lightning attention are
float32 in every model, as in the reference implementations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

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
    linear_each,
    pack,
    rms_norm,
    rotate,
    softmax_attention,
    write_pages,
)
from fulmen.models.cache import LightningStates
from fulmen.models.model_config import ModelConfig
from fulmen.models.packed import Packed

LayerCache = KVPages | LightningStates


@dataclass(slots=True)
class Trace:
    """Record of a forward pass, one entry a layer; filled when it is passed in."""

    hidden_states: list[Tensor] = field(default_factory=list)
    """(T, C) each: the input of every layer, then the output of the last norm."""
    attention_outputs: list[Tensor] = field(default_factory=list)
    """(T, C) each: the output of attention, before the residual."""
    router_logits: list[Tensor] = field(default_factory=list)
    """(T, E) float32 each."""
    topk_weights: list[Tensor] = field(default_factory=list)
    """(T, K) float32 each."""
    topk_ids: list[Tensor] = field(default_factory=list)
    """(T, K) int64 each: the experts that every token chose."""


@dataclass(frozen=True, slots=True)
class Context:
    """Arguments of every layer in one forward pass, besides its hidden states."""

    packed: Packed
    cos: Tensor
    """(T, rotary_dim / 2) float32, from `rotary_angles`"""
    sin: Tensor
    trace: Trace | None
    generator: torch.Generator | None


def full_precision(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums and statistics: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


class Linear(nn.Module):
    """A matrix without bias, as everywhere in both models: a parameter, or packed for inference."""

    weight: nn.Parameter | PackedMatrix

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.input_bits = 16
        """Bits to which inputs are rounded for int8 and int4 weights; 8 or 16."""

    def assign(self, weight: Tensor | PackedMatrix) -> None:
        """Replace the weight; a packed one cannot be trained."""
        del self.weight
        self.weight = nn.Parameter(weight) if isinstance(weight, Tensor) else weight

    @property
    def is_packed(self) -> bool:
        """True when the weight is packed."""
        return isinstance(self.weight, PackedMatrix)

    def pack(self) -> None:
        """Pack a plain weight for inference, where the kernels can use it."""
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


def project_each(
    x: Tensor, *projections: Linear, activations: Sequence[Activation] = ()
) -> list[Tensor]:
    """Return each projection's (..., out) of x (..., in), with activations or without any. With
    gradients all are one op, `linear_each`, and no module is called."""
    plain: list[Activation] = ["none"] * len(projections)
    activations = activations or plain
    if not torch.is_grad_enabled():
        return [
            projection(x, activation=activation)
            for projection, activation in zip(projections, activations, strict=True)
        ]
    return linear_each(
        x,
        [projection.weight for projection in projections],
        activations=activations,
        input_bits=[projection.input_bits for projection in projections],
    )


class RMSNorm(nn.Module):
    """RMSNorm: x / sqrt(mean(x^2) + eps), cast back, times the weight."""

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

    def __init__(self, config: ModelConfig) -> None:
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
        """Make one matrix of the three projections for inference, once each is packed.

        The projections keep their weights, as views of the one.
        """
        projections = (self.q_proj, self.k_proj, self.v_proj)
        matrices = [p.weight for p in projections if isinstance(p.weight, PackedMatrix)]
        if len(matrices) < len(projections):
            return
        self._qkv = concatenate(matrices)
        if self._qkv is None:
            return
        parts = torch.split(self._qkv.data, [matrix.data.numel() for matrix in matrices])
        for projection, matrix, data in zip(projections, matrices, parts, strict=True):
            projection.assign(replace(matrix, data=data))

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T, C) -> (T, H * D), (T, Hkv * D), (T, Hkv * D)"""
        if self._qkv is None:
            q, k, v = project_each(hidden_states, self.q_proj, self.k_proj, self.v_proj)
            return q, k, v
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
            out = attend(q, k, v, lengths=packed.lengths)
        else:
            assert isinstance(cache, KVPages)
            assert packed.block_table is not None
            assert packed.slot_mapping is not None
            write_pages(k, v, cache, packed.slot_mapping)
            out = softmax_attention(
                q,
                cache,
                block_table=packed.block_table,
                lengths=packed.lengths,
            )
        projected: Tensor = self.o_proj(out.flatten(-2))
        return projected


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """(T, H * D) -> (T, H, D)"""
    return x.view(len(x), -1, head_dim)
