"""Map the family that a config.json names to its config class and its module."""

from collections.abc import Mapping
from typing import Final

from fulmen.families import KNOWN_ARCHITECTURES, family_of, names_in
from fulmen.models.m1 import M1, M1Config
from fulmen.models.m2 import M2, M2Config

Config = M1Config | M2Config
"""Config of either model."""
Model = M1 | M2
"""Either model."""

_CONFIGS: Final[Mapping[str, type[M1Config] | type[M2Config]]] = {
    "minimax_m1": M1Config,
    "minimax_m2": M2Config,
}


def config_from_dict(values: Mapping[str, object], where: str = "config.json") -> Config:
    """Return the config of either model that these fields of a config.json give."""
    family = family_of(values)
    if family is None:
        found = ", ".join(name[:80] for name in names_in(values)[:3]) or "none"
        known = " and ".join((", ".join(KNOWN_ARCHITECTURES[:-1]), KNOWN_ARCHITECTURES[-1]))
        raise ValueError(f"unknown architecture {found} in {where}, known are {known}")
    return _CONFIGS[family].from_dict(values, where)


def new_model(config: Config) -> Model:
    """Return a module of the config's kind, on torch's current default device."""
    return M1(config) if isinstance(config, M1Config) else M2(config)
