"""From the family of a config.json to its config class and its module."""

from collections.abc import Mapping

from fulmen.models.m1 import M1, M1Config
from fulmen.models.m2 import M2, M2Config

Config = M1Config | M2Config


Model = M1 | M2


_CONFIGS: dict[str, type[M1Config] | type[M2Config]] = {
    "minimaxm1forcausallm": M1Config,
    "minimaxtext01forcausallm": M1Config,
    "minimaxforcausallm": M1Config,
    "minimaxm2forcausallm": M2Config,
    "minimaxm1": M1Config,
    "minimaxtext01": M1Config,
    "minimax": M1Config,
    "minimaxm2": M2Config,
}
"""architectures and model_type, in lower case without underscores."""


def config_from_dict(values: Mapping[str, object], where: str = "config.json") -> Config:
    """The config of either model; `architectures` decides, then `model_type`."""
    architectures = values.get("architectures")
    names = [*architectures] if isinstance(architectures, list) else []
    names.append(values.get("model_type"))
    for name in names:
        kind = _CONFIGS.get(str(name).replace("_", "").lower())
        if kind is not None:
            return kind.from_dict(values, where)
    found = ", ".join(str(name) for name in names if name is not None) or "none"
    raise ValueError(
        f"unknown architecture {found} in {where}, known are MiniMaxM1ForCausalLM, "
        "MiniMaxText01ForCausalLM, MiniMaxForCausalLM and MiniMaxM2ForCausalLM"
    )


def new_model(config: Config) -> Model:
    """A module of the config's kind, on torch's current default device."""
    return M1(config) if isinstance(config, M1Config) else M2(config)
