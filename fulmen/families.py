"""The one table of model names: architectures and model_type, however spelled -> a family.

A family is what the rooms pick a config, a module or a prompt format by: "minimax_m1" (which
Text-01 belongs to) or "minimax_m2". Case, hyphens and underscores do not count. MiniMax's models of
other architectures are known by name too, so that they are refused with a true sentence.
"""

import re
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

RUNS: Final = "Fulmen runs MiniMax-M1, MiniMax-Text-01 and MiniMax-M2, M2.1, M2.5 and M2.7"

_OTHERS: Final = (
    (
        re.compile(r"minimaxm3[a-z0-9.]*"),
        "MiniMax-M3",
        "is another architecture (sparse attention, a shared expert, pictures), which Fulmen does "
        "not run",
    ),
    (
        re.compile(r"minimaxvl01[a-z0-9.]*"),
        "MiniMax-VL-01",
        "reads pictures through a vision tower, which Fulmen does not have; MiniMax-Text-01 is the "
        "model of text inside it",
    ),
    (
        re.compile(r"minimaxm2her"),
        "MiniMax-M2-her",
        "is only hosted by its makers, its weights were never published",
    ),
    (
        re.compile(r"(minimax)?abab[a-z0-9.]*"),
        "abab",
        "is only hosted by its makers, its weights were never published",
    ),
)
"""MiniMax's models that Fulmen does not run: a pattern of their plain names, what they are called,
and why not."""


def refusal_of(name: str) -> str | None:
    """Return the sentence that refuses a MiniMax model of another architecture; None for any other.

    name  an architecture, a model_type, or the name of a model, such as MiniMaxAI/MiniMax-M3
    """
    plain = _plain(name.rpartition("/")[2].partition("@")[0])
    for pattern, title, reason in _OTHERS:
        if pattern.match(plain):
            return f"{title} {reason}; {RUNS}"
    return None


def family_of(config: Mapping[str, object]) -> str | None:
    """Return the family a config.json names, or None; `architectures` decides before `model_type`.

    The bare model_type "minimax", which transformers gives M1 and Text-01, means M1.
    """
    return next((family for name in names_in(config) if (family := family_of_name(name))), None)


def family_of_name(name: str) -> str | None:
    """Return the family of one architecture or model_type, or None."""
    return _FAMILIES.get(_plain(name))


def names_in(config: Mapping[str, object]) -> list[str]:
    """Return the texts in a config's `architectures`, then its `model_type`."""
    architectures = config.get("architectures")
    listed = architectures if isinstance(architectures, list) else [architectures]
    return [name for name in (*listed, config.get("model_type")) if isinstance(name, str)]


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
