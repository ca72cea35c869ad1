"""Map the family that a config.json names to its config class and its module."""

from collections.abc import Collection, Mapping
from itertools import chain
from typing import Final

import torch

from fulmen.families import KNOWN_ARCHITECTURES, family_of, names_in, refusal_of
from fulmen.files import shorten
from fulmen.models.m1 import M1, M1Config
from fulmen.models.m2 import M2, M2Config
from fulmen.models.tensors import dtype_in_memory

Config = M1Config | M2Config
"""Config of either model."""
Model = M1 | M2
"""Either model."""

_CONFIGS: Final[Mapping[str, type[M1Config] | type[M2Config]]] = {
    "minimax_m1": M1Config,
    "minimax_m2": M2Config,
}


def config_from_dict(
    values: Mapping[str, object],
    where: str = "config.json",
    *,
    ignore_config_fields: Collection[str] = (),
) -> Config:
    """Return the config of either model that these fields of a config.json give.

    ignore_config_fields  names of fields that count as absent; one inside another as
                          rope_scaling.factor. ValueError for one that the model needs.
    """
    if isinstance(ignore_config_fields, str):
        raise ValueError("ignore_config_fields is one text, it must be a list of names")
    names = names_in(values)
    inner = values.get("text_config")  # where models of pictures keep what is a model of text
    for name in (*names, *(names_in(inner) if isinstance(inner, Mapping) else ())):
        if (refusal := refusal_of(name)) is not None:
            raise ValueError(f"{where} is of {shorten(name, 80)}: {refusal}")
    family = family_of(values)
    if family is None:
        found = ", ".join(shorten(name, 80) for name in names[:3]) or "none"
        known = " and ".join((", ".join(KNOWN_ARCHITECTURES[:-1]), KNOWN_ARCHITECTURES[-1]))
        raise ValueError(f"unknown architecture {found} in {where}, known are {known}")
    return _CONFIGS[family].from_dict(
        values, where, ignore_config_fields=frozenset(ignore_config_fields)
    )


def new_model(
    config: Config, *, dtype: torch.dtype | None = None, seed: int | None = None
) -> Model:
    """Return a model of the config's kind with new weights to train, on torch's current default
    device. On the meta device nothing is drawn.

    dtype  of weights and activations; None is torch's default, float32. Router, choice bias and
           head are float32 at least
    seed   of the weights: one seed gives the same ones on any device, and torch's own generators
           stay as they are. None draws from those
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}, weights need a floating-point type")
    device = torch.empty(0).device
    if seed is None or device.type == "meta":
        model = _new(config)
    else:
        with torch.random.fork_rng(devices=()), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            model = _new(config)
        model.to(device)
    if dtype is not None:
        for name, weight in chain(model.named_parameters(), model.named_buffers()):
            weight.data = weight.data.to(dtype_in_memory(name, dtype, trainable=True))
    return model


def _new(config: Config) -> Model:
    return M1(config) if isinstance(config, M1Config) else M2(config)
