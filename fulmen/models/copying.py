"""Weights of one model into another of the same config, in place.

    trainer's model -> copy_weights -> engine's model: packed, its programs recorded

Nothing moves: a plain weight is copied, a packed matrix is packed again where it lies.
"""

from collections.abc import Iterator
from dataclasses import fields
from itertools import chain
from typing import Final

from torch import Tensor, nn

from fulmen.kernels import PackedMatrix, copy_matrix, plain_dtype
from fulmen.models.experts import Experts
from fulmen.models.layers import Linear
from fulmen.models.model_config import ModelConfig

_MAY_DIFFER: Final = frozenset(("torch_dtype", "quantization_config", "router_jitter_noise"))
"""Fields of a config that say how weights are stored, or how they are trained"""


def copy_weights(target: nn.Module, source: nn.Module) -> None:
    """Copy all weights between models of one config, rounded to the target's dtypes.

    Raises ValueError, and has changed nothing, if the target is quantised.
    """
    given = dict(_weights(source))
    own = list(_weights(target))
    for name, weight in own:
        if isinstance(weight, PackedMatrix) and plain_dtype(weight.format) is None:
            raise ValueError(
                f"{name} is rounded to {weight.format.name.lower()}, new weights fit only a model "
                "in float32 or bfloat16"
            )
    if target is not source:
        for name, weight in own:
            copy_matrix(weight, given[name])


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor | PackedMatrix]]:
    """Yield every parameter, packed matrix and buffer of a model under its official name."""
    for prefix, part in module.named_modules():
        if isinstance(part, Experts):
            for expert, matrices in enumerate(part.weights()):
                for name, weight in matrices._asdict().items():
                    yield f"{prefix}.{expert}.{name}.weight", weight
        elif isinstance(part, Linear):
            yield f"{prefix}.weight", part.weight
        else:
            own = chain(part.named_parameters(recurse=False), part.named_buffers(recurse=False))
            for name, weight in own:
                yield f"{prefix}.{name}", weight


def check_configs(own: ModelConfig, given: ModelConfig) -> None:
    """Raise ValueError unless weights of a model of one config fit a model of the other."""
    if type(own) is not type(given):
        raise ValueError(
            f"the new weights are those of {type(given).__name__.removesuffix('Config')}, this "
            f"model is {type(own).__name__.removesuffix('Config')}"
        )
    for name in (field.name for field in fields(own)):
        here, there = getattr(own, name), getattr(given, name)
        if here != there and name not in _MAY_DIFFER:
            raise ValueError(
                f"the new weights are of a model whose {name} is {there}, this one's is {here}"
            )
