"""ModelConfig: the fields that both models have, and what must hold between them."""

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch

from fulmen.models.config import LIMITS, MAX_EXPERTS, Fields, check_limit
from fulmen.models.quantization import QuantizationConfig, take_quantization

_MAY_BE_ZERO = frozenset({"shared_intermediate_size"})


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Fields that an M1 and an M2 config.json share, in the official spelling."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    """Heads of the softmax layers' keys and values; lightning layers have num_attention_heads."""
    head_dim: int
    intermediate_size: int
    """Width of one expert."""
    num_local_experts: int
    num_experts_per_tok: int
    rotary_dim: int
    """Dimensions of a head that rotate in softmax layers; 64 of 128 in the released models."""
    rope_theta: float
    rms_norm_eps: float
    """Epsilon of the block norms and the last norm."""
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    router_aux_loss_coef: float = 0.001
    router_jitter_noise: float = 0.0
    """Noise in training: router and experts see x times uniform(1 - noise, 1 + noise)."""
    torch_dtype: torch.dtype = torch.bfloat16
    quantization_config: QuantizationConfig | None = None

    @property
    def attn_type_list(self) -> tuple[int, ...]:
        """Softmax attention (1) in every layer; 0 is lightning attention in the M1 line."""
        return (1,) * self.num_hidden_layers


def take_shared(
    given: Fields, *, rope_theta: float, rms_norm_eps: float, max_position_embeddings: int
) -> dict[str, object]:
    """Take the fields of a `ModelConfig` by name; the three arguments are a model's defaults.

    rotary_dim is None where no field names it.
    """
    hidden_size = given.take("hidden_size", int)
    num_heads = given.take("num_attention_heads", int)
    head_dim = given.take("head_dim", int, hidden_size // max(num_heads, 1))
    theta, rotary_dim = given.take_rope(head_dim, rope_theta)
    vocab_size = given.take("vocab_size", int)
    given.check_token_ids(vocab_size)
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": given.take("num_hidden_layers", int),
        "num_attention_heads": num_heads,
        "num_key_value_heads": given.take("num_key_value_heads", int, num_heads),
        "head_dim": head_dim,
        "intermediate_size": given.take("intermediate_size", int),
        "rotary_dim": rotary_dim,
        "rope_theta": theta,
        "rms_norm_eps": given.take("rms_norm_eps", float, rms_norm_eps),
        "max_position_embeddings": given.take(
            "max_position_embeddings", int, max_position_embeddings
        ),
        "tie_word_embeddings": given.take("tie_word_embeddings", bool, False),
        "router_aux_loss_coef": given.take("router_aux_loss_coef", float, 0.001),
        "router_jitter_noise": given.take("router_jitter_noise", float, 0.0),
        "torch_dtype": given.take_dtype(),
        "quantization_config": take_quantization(given),
    }


def check_config(config: ModelConfig) -> None:
    """Raise unless the numbers of a config are finite, within their limits, and fit together."""
    for name in (field.name for field in fields(config)):
        _check_number(name, getattr(config, name))
    num_experts = config.num_local_experts * config.num_hidden_layers
    for holds, sentence in (
        (
            num_experts <= MAX_EXPERTS,
            f"num_local_experts ({config.num_local_experts}) in num_hidden_layers "
            f"({config.num_hidden_layers}) are {num_experts} experts, at most {MAX_EXPERTS} are "
            "read",
        ),
        (
            len(config.attn_type_list) == config.num_hidden_layers,
            f"attn_type_list has {len(config.attn_type_list)} entries, "
            f"num_hidden_layers is {config.num_hidden_layers}",
        ),
        (
            config.num_attention_heads % config.num_key_value_heads == 0,
            f"num_attention_heads ({config.num_attention_heads}) must be a multiple of "
            f"num_key_value_heads ({config.num_key_value_heads})",
        ),
        (
            config.rotary_dim <= config.head_dim and config.rotary_dim % 2 == 0,
            f"rotary_dim ({config.rotary_dim}) must be even and at most "
            f"head_dim ({config.head_dim})",
        ),
        (
            config.num_experts_per_tok <= config.num_local_experts,
            f"num_experts_per_tok ({config.num_experts_per_tok}) is larger than "
            f"num_local_experts ({config.num_local_experts})",
        ),
        (
            config.router_aux_loss_coef >= 0,
            f"router_aux_loss_coef is {config.router_aux_loss_coef}, it must not be negative",
        ),
        (
            0 <= config.router_jitter_noise < 1,
            f"router_jitter_noise is {config.router_jitter_noise}, it must be at least 0 and "
            "below 1",
        ),
    ):
        if not holds:
            raise ValueError(sentence)


def _check_number(name: str, value: object) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}, it must be a finite number")
    if name in LIMITS and type(value) is not int:
        raise ValueError(f"{name} is {reprlib.repr(value)}, it must be an integer")
    check_limit(name, value)
    is_positive = name in LIMITS or name in ("rope_theta", "rms_norm_eps")
    if is_positive and name not in _MAY_BE_ZERO and not value > 0:  # type: ignore[operator]
        raise ValueError(f"{name} is {value}, it must be positive")


C = TypeVar("C")


def checked(make: Callable[..., C], fields: Mapping[str, Any], where: str) -> C:
    """Return the config that fields of a file make; where names the file in a ValueError."""
    try:
        return make(**fields)
    except ValueError as error:
        raise ValueError(f"{error}, see {where}") from None


def to_dict(config: ModelConfig) -> Mapping[str, object]:
    """Return the fields of a config as config.json holds them."""
    values: dict[str, object] = {}
    for name in (field.name for field in fields(config)):
        value = getattr(config, name)
        if isinstance(value, torch.dtype):
            value = str(value).removeprefix("torch.")
        elif isinstance(value, QuantizationConfig):
            value = value.to_dict()
        elif isinstance(value, tuple):
            value = list(value)
        if value is not None:
            values[name] = value
    return values
