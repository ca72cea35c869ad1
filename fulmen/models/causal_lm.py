"""Embedding, layers, last norm and head: what both models share around their blocks."""

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from fulmen.kernels import (
    HeadOutput,
    KVPages,
    PackedMatrix,
    backend_for,
    embed,
    head,
    linear,
    pack,
    rotary_angles,
    target_logprobs,
)
from fulmen.models.cache import Cache, LightningStates
from fulmen.models.config import AttentionConfig
from fulmen.models.experts import SparseMoE
from fulmen.models.layers import (
    Context,
    LayerCache,
    Linear,
    RMSNorm,
    SoftmaxAttention,
    Trace,
    full_precision,
)
from fulmen.models.packed import Packed

ConfigT = TypeVar("ConfigT", bound=AttentionConfig)


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
        if self.lm_head is None and backend_for(weight) is not None:
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
