"""The one table of model names: architectures and model_type, however spelled -> a family.

A family is what the rooms pick a config, a module or a prompt format by: "minimax_m1" (which
Text-01 belongs to) or "minimax_m2". Case, hyphens and underscores do not count.
"""

from collections.abc import Mapping
from typing import Final

KNOWN_ARCHITECTURES: Final = (
    "MiniMaxM1ForCausalLM",
    "MiniMaxText01ForCausalLM",
    "MiniMaxForCausalLM",
    "MiniMaxM2ForCausalLM",
)
"""The spellings of published configs, for a sentence that says what is known."""

_FAMILIES: Final = {
    "minimaxm1forcausallm": "minimax_m1",
    "minimaxtext01forcausallm": "minimax_m1",
    "minimaxforcausallm": "minimax_m1",
    "minimaxm2forcausallm": "minimax_m2",
    "minimaxm1": "minimax_m1",
    "minimaxtext01": "minimax_m1",
    "minimax": "minimax_m1",
    "minimaxm2": "minimax_m2",
}


def family_of(config: Mapping[str, object]) -> str | None:
    """Return the family a config.json names, or None; `architectures` decides before `model_type`.

    The bare model_type "minimax", which transformers gives M1 and Text-01, means M1.
    """
    return next((family for name in names_in(config) if (family := family_of_name(name))), None)


def family_of_name(name: str) -> str | None:
    """Return the family of one architecture or model_type, or None."""
    return _FAMILIES.get(name.replace("_", "").replace("-", "").lower())


def names_in(config: Mapping[str, object]) -> list[str]:
    """Return the texts in a config's `architectures`, then its `model_type`."""
    architectures = config.get("architectures")
    listed = architectures if isinstance(architectures, list) else [architectures]
    return [name for name in (*listed, config.get("model_type")) if isinstance(name, str)]
