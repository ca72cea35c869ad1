"""What both models are built of: norm, partial rotation, softmax attention, experts, outer model.

    input_ids -> embed_tokens -> layers (attention, then experts) -> norm -> lm_head -> logits

A model's forward pass gets all it needs as arguments: a Packed batch, a Cache or none, a Trace for
those who want to see what happened on the way. Router, norms, softmax, lightning state and head
work in float32 (float64 for float64). The angles of the rotation and the slope rates of lightning
attention are float32 in every model, as in the reference implementations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from fulmen.kernels import (
    Activation,
    ExpertWeights,
    HeadOutput,
    KVPages,
    PackedExperts,
    PackedMatrix,
    Scoring,
    attend,
    concatenate,
    embed,
    head,
    linear,
    mixture_of_experts,
    native_for,
    pack,
    rms_norm,
    rotary_angles,
    rotate,
    route,
    softmax_attention,
    target_logprobs,
    write_pages,
)
from fulmen.models.config import AttentionConfig
from fulmen.models.packed import Cache, LightningStates, Packed

LayerCache = KVPages | LightningStates
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
        if isinstance(self.weight, Tensor) and native_for(self.weight) is not None:
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


class Expert(nn.Module):
    """One gated expert: w2(silu(w1 x) * (w3 x))."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.w1 = Linear(hidden_size, intermediate_size)
        self.w2 = Linear(intermediate_size, hidden_size)
        self.w3 = Linear(hidden_size, intermediate_size)

    def weights(self) -> ExpertWeights:
        """The three matrices, as the kernel takes them."""
        return ExpertWeights(self.w1.weight, self.w2.weight, self.w3.weight)


class SparseMoE(nn.Module):
    """A router in float32 and the experts it chooses."""

    scoring: Scoring
    """Where the two models differ: how logits become scores."""
    e_score_correction_bias: Tensor | None
    """(E,) float32: takes part in the choice of experts, never in their weights."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.num_experts_per_tok = config.num_experts_per_tok
        self.router_jitter_noise = config.router_jitter_noise
        self.gate = Linear(config.hidden_size, config.num_local_experts)
        self.experts = nn.ModuleList(
            Expert(config.hidden_size, config.intermediate_size)
            for _ in range(config.num_local_experts)
        )
        self.register_buffer("e_score_correction_bias", None)
        self._packed: PackedExperts | None = None

    def weights(self) -> list[ExpertWeights]:
        """The matrices of every expert."""
        return [expert.weights() for expert in self.experts if isinstance(expert, Expert)]

    def combine(self) -> None:
        """Stands the experts side by side for inference, once each is packed."""
        experts = self.weights()
        if all(isinstance(w, PackedMatrix) for expert in experts for w in expert):
            self._packed = PackedExperts(experts)

    def forward(self, hidden_states: Tensor, context: Context) -> Tensor:
        """(T, C) -> (T, C)"""
        if self.training and self.router_jitter_noise:
            noise = torch.empty_like(hidden_states).uniform_(
                1 - self.router_jitter_noise,
                1 + self.router_jitter_noise,
                generator=context.generator,
            )
            hidden_states = hidden_states * noise
        router_logits = self.gate(hidden_states, out_dtype=full_precision(hidden_states.dtype))
        topk_weights, topk_ids = route(
            router_logits,
            self.num_experts_per_tok,
            scoring=self.scoring,
            choice_bias=self.e_score_correction_bias,
        )
        if context.trace is not None:
            context.trace.router_logits.append(router_logits)
            context.trace.topk_weights.append(topk_weights)
            context.trace.topk_ids.append(topk_ids)
        experts = self.weights() if self._packed is None else self._packed
        bits = self.input_bits
        return mixture_of_experts(hidden_states, topk_weights, topk_ids, experts, input_bits=bits)

    @property
    def input_bits(self) -> int:
        """How finely the experts' inputs are rounded, if they are int8 or int4."""
        first = self.experts[0]
        assert isinstance(first, Expert)
        return first.w1.input_bits


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
        self.lm_head: Linear | None = None
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self._tied_head: PackedMatrix | None = None

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
            self.check(batch, cache)
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
        self.check(packed, cache)
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
        """The output of the last norm, (T, C), for a batch that was checked."""
        config = self.config
        cos, sin = rotary_angles(packed.positions, config.rotary_dim, config.rope_theta)
        context = Context(packed, cos, sin, trace, generator)
        hidden_states = embed(packed.input_ids, self.model.embed_tokens.weight)
        layer: Layer
        for index, layer in enumerate(self.model.layers):
            if trace is not None:
                trace.hidden_states.append(hidden_states)
            hidden_states = layer(hidden_states, context, cache and cache.layers[index])
        hidden_states = self.model.norm.forward(hidden_states)
        if trace is not None:
            trace.hidden_states.append(hidden_states)
        return hidden_states

    def check(self, packed: Packed, cache: Cache | None) -> None:
        """Raises ValueError for ids and positions the model does not have, or a missing cache."""
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
        """(..., C) -> (..., V) float32; the head sums in float32 (arXiv:2506.13585), and in
        bfloat16 its products are exact."""
        weight, input_bits = self._head()
        out_dtype = full_precision(hidden_states.dtype)
        return linear(hidden_states, weight, out_dtype=out_dtype, input_bits=input_bits)

    def next_tokens(
        self, packed: Packed, cache: Cache, *, targets: Tensor | None = None, top_k: int = 1
    ) -> HeadOutput:
        """What is known of the next token at the batch's logits_indices (all tokens if None): the
        top_k best of the vocabulary, and the logits of targets (L,); the rest is not written. For a
        batch that was checked."""
        hidden_states = self.hidden_states(packed, cache)
        if packed.logits_indices is not None:
            hidden_states = hidden_states[packed.logits_indices]
        return self.next_tokens_of(hidden_states, targets=targets, top_k=top_k)

    def next_tokens_of(
        self, hidden_states: Tensor, *, targets: Tensor | None = None, top_k: int = 1
    ) -> HeadOutput:
        """The same of the last norm's output at L positions, (L, C)."""
        weight, input_bits = self._head()
        return head(hidden_states, weight, targets=targets, top_k=top_k, input_bits=input_bits)

    def target_logprobs(
        self,
        packed: Packed,
        targets: Tensor,
        *,
        trace: Trace | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Log-probabilities (L,) float32 of targets (L,) int64 at the batch's logits_indices (all
        tokens if None). Differentiable unless the weights are packed; the logits of all tokens are
        never held at once. They are those that decoding gives, to the bit."""
        self.check(packed, None)
        hidden_states = self.hidden_states(packed, trace=trace, generator=generator)
        if packed.logits_indices is not None:
            hidden_states = hidden_states[packed.logits_indices]
        if len(targets) != len(hidden_states):
            raise ValueError(
                f"there are {len(targets)} targets for {len(hidden_states)} positions, each needs "
                "one"
            )
        weight, input_bits = self._head()
        return target_logprobs(hidden_states, weight, targets, input_bits=input_bits)

    def _head(self) -> tuple[Tensor | PackedMatrix, int]:
        if self.lm_head is not None:
            return self.lm_head.weight, self.lm_head.input_bits
        return self._tied_head or self.model.embed_tokens.weight, 16

    def pack(self) -> None:
        """Packs all matrices for inference, where the kernels can use them; the parameters go, so
        the model cannot be trained any more. Its logits stay the same to the bit."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.pack()
        for module in self.modules():  # made of packed matrices
            if isinstance(module, SparseMoE | SoftmaxAttention):
                module.combine()
        weight = self.model.embed_tokens.weight
        if self.lm_head is None and native_for(weight) is not None:
            self._tied_head = pack(weight)

    @property
    def is_packed(self) -> bool:
        """Whether every matrix is packed, as `pack` leaves it; then none moves any more."""
        weights = (
            m.weight for m in self.modules() if isinstance(m, Linear) and hasattr(m, "weight")
        )
        has_head = self.lm_head is not None or self._tied_head is not None
        return has_head and all(isinstance(weight, PackedMatrix) for weight in weights)

    def new_cache(
        self, num_pages: int, num_slots: int, *, kv_dtype: torch.dtype | None = None
    ) -> Cache:
        """An empty cache: pages of 64 tokens, shared by all sequences, and one slot a sequence.

        kv_dtype  torch.int8 stores keys and values as codes; None in the model's dtype
        """
        like = self.model.embed_tokens.weight.detach()
        config = self.config
        layers = tuple(
            self._new_pages(num_pages, kv_dtype)
            if kind
            else LightningStates(num_slots, config.num_attention_heads, config.head_dim, like)
            for kind in config.attn_type_list
        )
        return Cache(layers, num_pages, num_slots)

    def page_bytes(self, kv_dtype: torch.dtype | None = None) -> int:
        """Memory that 64 tokens take in all softmax layers of a cache."""
        return self._new_pages(1, kv_dtype).page_bytes * sum(self.config.attn_type_list)

    def _new_pages(self, num_pages: int, kv_dtype: torch.dtype | None) -> KVPages:
        like, config = self.model.embed_tokens.weight, self.config
        return KVPages(
            num_pages,
            config.num_key_value_heads,
            config.head_dim,
            dtype=like.dtype,
            stored=kv_dtype,
            device=like.device,
        )


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """(T, H * D) -> (T, H, D)"""
    return x.view(len(x), -1, head_dim)
