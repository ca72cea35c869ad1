"""CausalLM: what both models share around their blocks.

    input_ids -> embed_tokens -> layers (attention, then experts) -> norm -> lm_head

The head gives all logits (`forward`), the best next tokens or drawn ones (`next_tokens`), or the
log-probabilities of given tokens (`target_logprobs`, and with the entropy `target_scores`): the
same numbers, of which all but the first keep only what is wanted.
"""

from collections.abc import Callable, Sequence
from operator import add
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from fulmen.kernels import (
    Draws,
    HeadOutput,
    KVPages,
    PackedMatrix,
    TargetScores,
    backend_for,
    copy_matrix,
    embed,
    head,
    linear,
    pack,
    rotary_angles,
    target_logprobs,
    target_scores,
)
from fulmen.models.cache import Cache, LightningStates
from fulmen.models.copying import check_configs, copy_weights
from fulmen.models.experts import Experts
from fulmen.models.layers import (
    Context,
    LayerCache,
    Linear,
    RMSNorm,
    SoftmaxAttention,
    Trace,
    full_precision,
)
from fulmen.models.model_config import ModelConfig
from fulmen.models.packed import Packed

ConfigT = TypeVar("ConfigT", bound=ModelConfig)


class Layer(Protocol):
    """One block of a model: attention, then experts."""

    def __call__(
        self, hidden_states: Tensor, context: Context, cache: LayerCache | None
    ) -> Tensor: ...


class Decoder(nn.Module):
    """Embedding, layers and last norm, under the names the checkpoints use."""

    def __init__(self, config: ModelConfig, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        weight = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=weight)
        if not weight.is_meta:  # where there is nothing to draw, drawing loads torch's compiler
            self.embed_tokens.reset_parameters()
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
        """Return logits of the next token at every position.

        batch      (B, T) int64 ids of equally long sequences from position 0, or a Packed batch
        cache      earlier tokens, written as well as read; only with a Packed batch
        generator  for the router's jitter in training

        Returns float32 logits: (B, T, V) for a tensor; for Packed (T, V), or (L, V) at its
        logits_indices.
        """
        if isinstance(batch, Packed):
            self.check(batch, cache)
            return self.logits(self._wanted(batch, cache, trace, generator))
        if batch.ndim != 2 or batch.dtype != torch.int64 or batch.numel() == 0:
            raise ValueError(
                f"input_ids have shape {tuple(batch.shape)} and type {batch.dtype}, "
                "they must be (B, T) int64 with at least one token"
            )
        packed = Packed.of(list(batch), device=batch.device)
        self.check(packed, cache)
        logits = self.logits(self._wanted(packed, cache, trace, generator))
        return logits.view(*batch.shape, -1)

    def hidden_states(
        self,
        packed: Packed,
        cache: Cache | None = None,
        *,
        trace: Trace | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the output of the last norm, (T, C), for a batch that was checked."""
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
        """Raise ValueError for ids and positions the model does not have, or a missing cache."""
        low, high = packed.input_ids.min(), packed.input_ids.max()
        if low < 0 or high >= self.config.vocab_size:
            wrong = int(low if low < 0 else high)
            raise ValueError(f"token id {wrong} is outside the {self.config.vocab_size} ids known")
        lengths = packed.lengths
        longest = max(map(add, lengths.host_context_lens, lengths.host_seqlens))
        if longest > self.config.max_position_embeddings:
            raise ValueError(
                f"a sequence of {longest} tokens is longer than the model's context of "
                f"{self.config.max_position_embeddings} (max_position_embeddings)"
            )
        if cache is None and any(lengths.host_context_lens):
            raise ValueError("context_lens is not zero, so a cache is needed")
        if cache is not None and (packed.block_table is None or lengths.slots is None):
            raise ValueError("this batch has no block_table and slots, a cache needs both")

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Return logits (..., V) float32 of (..., C).

        The head sums in float32 (arXiv:2506.13585), and in bfloat16 its products are exact.
        """
        weight, input_bits = self._head()
        out_dtype = full_precision(hidden_states.dtype)
        return linear(hidden_states, weight, out_dtype=out_dtype, input_bits=input_bits)

    def next_tokens(
        self, packed: Packed, cache: Cache, *, targets: Tensor | None = None, top_k: int = 1
    ) -> HeadOutput:
        """Return the top_k best next tokens at the batch's logits_indices (all tokens if None), and
        the logits of targets (L,).

        The other logits are not written. The batch is one that was checked.
        """
        return self.next_tokens_of(self._wanted(packed, cache), targets=targets, top_k=top_k)

    def next_tokens_of(
        self,
        hidden_states: Tensor,
        *,
        targets: Tensor | None = None,
        top_k: int = 1,
        draws: Draws | None = None,
    ) -> HeadOutput:
        """Return `next_tokens` for the last norm's output at L positions, (L, C), and drawn ids for
        those rows that draw from the whole vocabulary."""
        weight, input_bits = self._head()
        return head(
            hidden_states,
            weight,
            targets=targets,
            top_k=top_k,
            draws=draws,
            input_bits=input_bits,
        )

    def target_logprobs(
        self,
        packed: Packed,
        targets: Tensor,
        *,
        trace: Trace | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return log-probabilities (L,) float32 of targets (L,) int64 at the batch's logits_indices
        (all tokens if None).

        They are those of decoding, to the bit. Differentiable unless the weights are packed.
        Logits are held only for the gradient, and only while all of them take 64 MiB or less.
        """
        hidden_states = self._before(targets, packed, trace, generator)
        weight, input_bits = self._head()
        return target_logprobs(hidden_states, weight, targets, input_bits=input_bits)

    def target_scores(
        self,
        packed: Packed,
        targets: Tensor,
        *,
        trace: Trace | None = None,
        generator: torch.Generator | None = None,
    ) -> TargetScores:
        """Return `target_logprobs`, and from the same pass the entropy (L,) float32 of the next
        token there, which has no gradient."""
        hidden_states = self._before(targets, packed, trace, generator)
        weight, input_bits = self._head()
        return target_scores(hidden_states, weight, targets, input_bits=input_bits)

    def _before(
        self,
        targets: Tensor,
        packed: Packed,
        trace: Trace | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Return the last norm's output (L, C) before targets (L,)."""
        self.check(packed, None)
        hidden_states = self._wanted(packed, None, trace, generator)
        if len(targets) != len(hidden_states):
            raise ValueError(
                f"there are {len(targets)} targets for {len(hidden_states)} positions, each needs "
                "one"
            )
        return hidden_states

    def _wanted(
        self,
        packed: Packed,
        cache: Cache | None,
        trace: Trace | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the last norm's output (L, C) where the batch wants logits."""
        hidden_states = self.hidden_states(packed, cache, trace=trace, generator=generator)
        if packed.logits_indices is None:
            return hidden_states
        return hidden_states[packed.logits_indices]

    def _head(self) -> tuple[Tensor | PackedMatrix, int]:
        if self.lm_head is not None:
            return self.lm_head.weight, self.lm_head.input_bits
        return self._tied_head or self.model.embed_tokens.weight, 16

    def pack(self) -> None:
        """Pack all matrices for inference, where the kernels can use them.

        The parameters go, so the model cannot be trained any more. Its logits keep their bits.
        """
        for module in self.modules():
            if isinstance(module, Linear | Experts):
                module.pack()
        for module in self.modules():
            if isinstance(module, SoftmaxAttention):
                module.combine()
        weight = self.model.embed_tokens.weight
        if self.lm_head is None and backend_for(weight) is not None:
            self._tied_head = pack(weight)

    @property
    def is_packed(self) -> bool:
        """True when every matrix is packed, as `pack` leaves it; then none moves any more."""
        has_head = self.lm_head is not None or self._tied_head is not None
        return has_head and all(
            module.is_packed for module in self.modules() if isinstance(module, Linear | Experts)
        )

    def copy_weights(self, source: "CausalLM[Any]") -> None:
        """Take the weights of a model of this config, in place: this one may be packed, and what
        was recorded on it stays valid. They are rounded where this model's dtype needs it.

        Raises ValueError, and has changed nothing, for a model of another config, or if this one's
        weights are quantised.
        """
        check_configs(self.config, source.config)
        copy_weights(self, source)
        if self._tied_head is not None:
            copy_matrix(self._tied_head, self.model.embed_tokens.weight)

    def new_cache(
        self, num_pages: int, num_slots: int, *, kv_dtype: torch.dtype | None = None
    ) -> Cache:
        """Return an empty cache: pages of 64 tokens that sequences share, and one slot a sequence.

        kv_dtype  torch.int8 stores keys and values as codes; None keeps the model's dtype
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
        """Return the memory that 64 tokens take in all softmax layers of a cache."""
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
