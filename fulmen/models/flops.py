"""Weights of a model, counted, and the FLOPs and bytes that a token costs.

Generating N tokens from an empty prompt costs

    F(N) = a * N + c * N^2 / 2

a is the cost of every token: two FLOPs a weight, and lightning attention's constant work. c is the
cost that each earlier token adds to it in the softmax layers. Routers and norms are left out, they
come to less than 0.3 %, and an embedding is looked up, not multiplied.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache

from fulmen.models.architectures import Config
from fulmen.models.tensors import TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Numbers of weights of a model, by kind."""

    total: int
    embedding: int
    head: int
    """Weights of the head; 0 when it is the embedding."""
    experts: int
    """Weights of all experts in all layers."""
    chosen_experts: int
    """Weights of the experts that one token visits."""
    routers: int
    vectors: int
    """Weights of norms and biases."""

    @property
    def active(self) -> int:
        """Weights that work on one token, without embedding and head, as the reports count."""
        return self.total - self.embedding - self.head - self.experts + self.chosen_experts


@lru_cache
def count_parameters(config: Config) -> Parameters:
    """Count the weights of a checkpoint, however they are stored."""
    counts: Counter[str] = Counter()
    for spec in replace(config, quantization_config=None).tensors():
        counts[kind_of(spec)] += num_elements(spec)
    return Parameters(
        total=counts.total(),
        embedding=counts["embedding"],
        head=counts["head"],
        experts=counts["experts"],
        chosen_experts=counts["experts"] * config.num_experts_per_tok // config.num_local_experts,
        routers=counts["routers"],
        vectors=counts["vectors"],
    )


@lru_cache
def checkpoint_bytes(config: Config) -> int:
    """Return the bytes of all tensors of a checkpoint, as its config says they are stored."""
    return sum(num_elements(spec) * spec.dtype.itemsize for spec in config.tensors())


@lru_cache
def count_tensors(config: Config) -> int:
    """Count the tensors of a checkpoint."""
    return sum(1 for _ in config.tensors())


def num_elements(spec: TensorSpec) -> int:
    """Count the values of a tensor."""
    return math.prod(spec.shape)


def kind_of(spec: TensorSpec) -> str:
    """Return embedding, head, experts, routers, vectors, or dense for every other matrix."""
    if spec.name == "model.embed_tokens.weight":
        return "embedding"
    if spec.name == "lm_head.weight":
        return "head"
    if ".experts." in spec.name:
        return "experts"
    if spec.name.endswith(".gate.weight"):
        return "routers"
    return "vectors" if len(spec.shape) == 1 else "dense"


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationCost:
    """FLOPs of generating with one model."""

    model: str
    per_token: float
    """a: FLOPs of every token."""
    per_position: float
    """c: FLOPs that one earlier token adds."""

    def at(self, position: int) -> float:
        """Return the FLOPs of the one token that follows `position` others."""
        return self.per_token + self.per_position * position

    def cumulative(self, num_tokens: int) -> float:
        """Return F(N): the FLOPs of generating `num_tokens` from an empty prompt."""
        return self.per_token * num_tokens + self.per_position * num_tokens**2 / 2


def generation_cost(config: Config, model: str = "") -> GenerationCost:
    """Return the cost of generating with any M1 or M2, from first principles.

    a = 2 * (matrices a token visits, and the head) + lightning layers * 4 H D^2
    c = softmax layers * 4 H D

    A softmax layer does a product of length D with each earlier key and one with each earlier
    value; a lightning layer updates a D x D state for each head, and reads it.
    """
    heads, dim = config.num_attention_heads, config.head_dim
    num_softmax = sum(config.attn_type_list)
    num_lightning = config.num_hidden_layers - num_softmax
    return GenerationCost(
        model=model,
        per_token=2 * multiplied_weights(config) + num_lightning * 4 * heads * dim**2,
        per_position=num_softmax * 4 * heads * dim,
    )


def prefill_flops(config: Config, num_tokens: int, *, block_size: int = 256) -> float:
    """Return the most FLOPs that a prompt costs: F(N), and the products in lightning's blocks.

    Within a block of block_size tokens each meets half of the others: 4 H D block_size / 2.
    """
    num_lightning = config.num_hidden_layers - sum(config.attn_type_list)
    within = 4 * config.num_attention_heads * config.head_dim * block_size // 2
    return generation_cost(config).cumulative(num_tokens) + num_lightning * within * num_tokens


def multiplied_weights(config: Config) -> int:
    """Count the matrix weights that one token is multiplied with, the head included."""
    counts = count_parameters(config)
    head = counts.head or counts.embedding
    return counts.active - counts.routers - counts.vectors + head


def decode_bytes(
    config: Config, *, batch: int = 1, depth: float = 0, weight_scale: float = 1.0
) -> float:
    """Return the bytes that one decoding step reads: weights, keys and values, lightning states.

    batch         sequences that each get a token; experts are counted as if every token chose its
                  own at random
    depth         tokens of each sequence that came before
    weight_scale  bytes of a weight over what the config says
    """
    missed = (1 - config.num_experts_per_tok / config.num_local_experts) ** batch
    weights = 0.0
    for spec in config.tensors():
        kind = kind_of(spec)
        if kind != "embedding" or config.tie_word_embeddings:
            share = 1 - missed if kind == "experts" else 1.0
            weights += share * num_elements(spec) * spec.dtype.itemsize
    num_softmax = sum(config.attn_type_list)
    width = 2 * config.num_key_value_heads * config.head_dim
    past = num_softmax * width * config.torch_dtype.itemsize * depth
    num_lightning = config.num_hidden_layers - num_softmax
    states = num_lightning * config.num_attention_heads * config.head_dim**2 * 4
    return weights * weight_scale + batch * (past + states)
