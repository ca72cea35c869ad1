"""What both models are built of: norm, partial rotation, softmax attention, experts, outer model.

    input_ids -> embed_tokens -> layers (attention, then experts) -> norm -> lm_head -> logits

A model's forward pass gets all it needs as arguments: a Packed batch, a Cache or none, a Trace for
those who want to see what happened on the way. Router, norms, softmax, lightning state and head
work in float32 (float64 for float64). The angles of the rotation and the slope rates of lightning
attention are float32 in every model, as in the reference implementations.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fulmen.kernels import ExpertWeights, mixture_of_experts, softmax_attention, write_pages
from fulmen.models.config import AttentionConfig
from fulmen.models.packed import Cache, LightningStates, Packed, PagedKV

LayerCache = PagedKV | LightningStates
ConfigT = TypeVar("ConfigT", bound=AttentionConfig)


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
    slot_mapping: Tensor | None
    """(T,) int64: where new keys and values go in the pages; None without a cache"""
    rotary: "Rotary"
    trace: Trace | None
    generator: torch.Generator | None


def full_precision(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64: the dtype of sums and statistics."""
    return torch.promote_types(dtype, torch.float32)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), cast back, times the weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C); the mean of squares is in float32."""
        wide = x.to(full_precision(x.dtype))
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(x.dtype)


@dataclass(frozen=True, slots=True)
class Rotary:
    """cos and sin of every token of a batch, for the first rotary_dim dimensions of a head."""

    cos: Tensor
    """(T, 1, rotary_dim / 2) float32"""
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, rotary_dim: int, rope_theta: float) -> "Rotary":
        """Angles position * rope_theta^(-2j / rotary_dim); never a table of the whole context.

        They are made in float32 also for a float64 model, as in the reference implementations.
        """
        exponents = torch.arange(0, rotary_dim, 2, device=positions.device).float() / rotary_dim
        angles = positions.float()[:, None] * (1.0 / rope_theta**exponents)
        return cls(angles.cos()[:, None], angles.sin()[:, None])

    def rotate(self, x: Tensor) -> Tensor:
        """(T, H, D) -> (T, H, D): dimension j turns with j + rotary_dim / 2, the rest passes
        through."""
        half = self.cos.shape[-1]
        wide = x[..., : 2 * half].to(full_precision(x.dtype))
        a, b = wide[..., :half], wide[..., half:]
        turned = torch.cat((a * self.cos - b * self.sin, b * self.cos + a * self.sin), -1)
        return torch.cat((turned.to(x.dtype), x[..., 2 * half :]), -1)


class SoftmaxAttention(nn.Module):
    """Causal attention with grouped queries and partial rotation; M2 norms q and k first
    (`normalise`)."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        query = config.num_attention_heads * config.head_dim
        key_value = config.num_key_value_heads * config.head_dim
        self.q_proj = linear(config.hidden_size, query)
        self.k_proj = linear(config.hidden_size, key_value)
        self.v_proj = linear(config.hidden_size, key_value)
        self.o_proj = linear(query, config.hidden_size)

    def normalise(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """What happens to (T, H * D) queries and (T, Hkv * D) keys before they become heads:
        nothing in M1."""
        return q, k

    def forward(self, hidden_states: Tensor, context: Context, cache: LayerCache | None) -> Tensor:
        """(T, C) -> (T, C)"""
        q, k = self.normalise(self.q_proj(hidden_states), self.k_proj(hidden_states))
        q, k, v = (
            split_heads(x, self.head_dim) for x in (q, k, self.v_proj(hidden_states))
        )  # (T, H, D), (T, Hkv, D), (T, Hkv, D)
        q, k = context.rotary.rotate(q), context.rotary.rotate(k)
        packed = context.packed
        if cache is None:
            out = softmax_attention(q, k, v, cu_seqlens=packed.cu_seqlens)
        else:
            assert isinstance(cache, PagedKV)
            out = softmax_attention(
                q,
                k,
                v,
                cu_seqlens=packed.cu_seqlens,
                context_lens=packed.context_lens,
                k_pages=cache.k_pages,
                v_pages=cache.v_pages,
                block_table=packed.block_table,
            )
            assert context.slot_mapping is not None
            write_pages(k, v, cache.k_pages, cache.v_pages, context.slot_mapping)
        projected: Tensor = self.o_proj(out.flatten(-2))
        return projected


class Expert(nn.Module):
    """One gated expert: w2(silu(w1 x) * (w3 x))."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.w1 = linear(hidden_size, intermediate_size)
        self.w2 = linear(intermediate_size, hidden_size)
        self.w3 = linear(hidden_size, intermediate_size)

    def weights(self) -> ExpertWeights:
        """The three matrices, as the kernel takes them."""
        return ExpertWeights(self.w1.weight, self.w2.weight, self.w3.weight)


class SparseMoE(nn.Module, ABC):
    """A router in float32 and the experts it chooses; `route` is where the two models differ."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.num_experts_per_tok = config.num_experts_per_tok
        self.router_jitter_noise = config.router_jitter_noise
        self.gate = linear(config.hidden_size, config.num_local_experts)
        self.experts = nn.ModuleList(
            Expert(config.hidden_size, config.intermediate_size)
            for _ in range(config.num_local_experts)
        )

    @abstractmethod
    def route(self, router_logits: Tensor) -> tuple[Tensor, Tensor]:
        """(T, E) float32 -> weights (T, K) float32 and expert ids (T, K)"""

    def forward(self, hidden_states: Tensor, context: Context) -> Tensor:
        """(T, C) -> (T, C)"""
        if self.training and self.router_jitter_noise:
            noise = torch.empty_like(hidden_states).uniform_(
                1 - self.router_jitter_noise,
                1 + self.router_jitter_noise,
                generator=context.generator,
            )
            hidden_states = hidden_states * noise
        router_logits = linear_full_precision(hidden_states, self.gate.weight)
        topk_weights, topk_ids = self.route(router_logits)
        if context.trace is not None:
            context.trace.router_logits.append(router_logits)
            context.trace.topk_weights.append(topk_weights)
            context.trace.topk_ids.append(topk_ids)
        experts = [expert.weights() for expert in self.experts if isinstance(expert, Expert)]
        return mixture_of_experts(hidden_states, topk_weights, topk_ids, experts)


class Layer(Protocol):
    """One block of a model: attention, then experts."""

    def __call__(
        self, hidden_states: Tensor, context: Context, cache: LayerCache | None
    ) -> Tensor: ...


class Decoder(nn.Module):
    """Embedding, layers and last norm, under the names the checkpoints use."""

    def __init__(self, config: AttentionConfig, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class CausalLM(nn.Module, Generic[ConfigT]):
    """A decoder and its head; one module for training and inference."""

    def __init__(self, config: ConfigT, make_layer: Callable[[ConfigT, int], nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(
            config, [make_layer(config, layer) for layer in range(config.num_hidden_layers)]
        )
        self.lm_head: nn.Linear | None = None
        if not config.tie_word_embeddings:
            self.lm_head = linear(config.hidden_size, config.vocab_size)

    def forward(
        self,
        batch: Tensor | Packed,
        cache: Cache | None = None,
        *,
        trace: Trace | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Logits of the next token at every position.

        batch      (B, T) int64 ids of equally long sequences from position 0, or a Packed batch
        cache      what came before, written as well as read; only with a Packed batch
        generator  for the router's jitter in training

        Returns float32 logits: (B, T, V) for a tensor; for Packed (T, V), or (L, V) at its
        logits_indices.
        """
        if isinstance(batch, Packed):
            hidden_states = self.hidden_states(batch, cache, trace=trace, generator=generator)
            if batch.logits_indices is not None:
                hidden_states = hidden_states[batch.logits_indices]
            return self.logits(hidden_states)
        if batch.ndim != 2 or batch.dtype != torch.int64 or batch.numel() == 0:
            raise ValueError(
                f"input_ids have shape {tuple(batch.shape)} and type {batch.dtype}, "
                "they must be (B, T) int64 with at least one token"
            )
        packed = Packed.of(list(batch), device=batch.device)
        hidden_states = self.hidden_states(packed, cache, trace=trace, generator=generator)
        return self.logits(hidden_states).view(*batch.shape, -1)

    def hidden_states(
        self,
        packed: Packed,
        cache: Cache | None = None,
        *,
        trace: Trace | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The output of the last norm, (T, C)."""
        self._check(packed, cache)
        rotary = Rotary.at(packed.positions, self.config.rotary_dim, self.config.rope_theta)
        slot_mapping = None if cache is None else packed.slot_mapping()
        context = Context(packed, slot_mapping, rotary, trace, generator)
        hidden_states: Tensor = self.model.embed_tokens(packed.input_ids)
        layer: Layer
        for index, layer in enumerate(self.model.layers):
            if trace is not None:
                trace.hidden_states.append(hidden_states)
            hidden_states = layer(hidden_states, context, cache and cache.layers[index])
        hidden_states = self.model.norm(hidden_states)
        if trace is not None:
            trace.hidden_states.append(hidden_states)
        return hidden_states

    def _check(self, packed: Packed, cache: Cache | None) -> None:
        low, high = packed.input_ids.min(), packed.input_ids.max()
        if low < 0 or high >= self.config.vocab_size:
            wrong = int(low if low < 0 else high)
            raise ValueError(f"token id {wrong} is outside the {self.config.vocab_size} ids known")
        longest = int(packed.positions.max()) + 1
        if longest > self.config.max_position_embeddings:
            raise ValueError(
                f"a sequence of {longest} tokens is longer than the model's context of "
                f"{self.config.max_position_embeddings} (max_position_embeddings)"
            )
        if cache is None and packed.context_lens.any():
            raise ValueError("context_lens is not zero, so a cache is needed")
        if cache is not None and (packed.block_table is None or packed.slots is None):
            raise ValueError("this batch has no block_table and slots, a cache needs both")

    def logits(self, hidden_states: Tensor) -> Tensor:
        """(..., C) -> (..., V) float32; the head multiplies in float32 (arXiv:2506.13585)."""
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return linear_full_precision(hidden_states, head.weight)

    def new_cache(self, num_pages: int, num_slots: int) -> Cache:
        """An empty cache: pages of 64 tokens, shared by all sequences, and one slot a sequence."""
        like = self.model.embed_tokens.weight.detach()
        config = self.config
        layers = tuple(
            PagedKV(num_pages, config.num_key_value_heads, config.head_dim, like)
            if kind
            else LightningStates(num_slots, config.num_attention_heads, config.head_dim, like)
            for kind in config.attn_type_list
        )
        return Cache(layers, num_pages, num_slots)


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """(T, H * D) -> (T, H, D)"""
    return x.view(len(x), -1, head_dim)


def linear(in_features: int, out_features: int) -> nn.Linear:
    """A matrix without bias, as everywhere in both models."""
    return nn.Linear(in_features, out_features, bias=False)


def linear_full_precision(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T in float32 (float64 for float64), for router and head."""
    dtype = full_precision(x.dtype)
    return F.linear(x.to(dtype), weight.to(dtype))
