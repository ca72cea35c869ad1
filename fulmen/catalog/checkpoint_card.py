"""A short card of the checkpoint that runs, in Markdown, for whoever talks to it.

its config           -> architecture, size, weights, context
its format           -> thoughts, tools
the catalog, if it is there, else README.md or LICENSE in its folder -> summary, licence
"""

import re
from pathlib import Path
from typing import Final

from fulmen.catalog.card_text import architecture_in_words, shown_number
from fulmen.catalog.cards import (
    LANGUAGES,
    Card,
    Language,
    config_of,
    list_cards,
    names_of,
)
from fulmen.models import Config, Fp8Config, PackedConfig, count_parameters

_WORDS: Final[dict[Language, dict[str, str]]] = {
    "en": {
        "architecture": "Architecture",
        "parameters": "Parameters",
        "active": "{total}, {active} of them active per token",
        "weights": "Weights",
        "fp8": "8 bits (e4m3)",
        "packed": "{bits} bits in groups of {group}",
        "plain": "{dtype}, {bits} bits",
        "context": "Context",
        "tokens": "{tokens} tokens",
        "can": "Can",
        "thinks": "think before it answers",
        "calls": "call tools",
        "talks": "answer, without thoughts and tools",
        "licence": "Licence",
    },
    "de": {
        "architecture": "Architektur",
        "parameters": "Parameter",
        "active": "{total}, davon {active} aktiv je Token",
        "weights": "Gewichte",
        "fp8": "8 Bit (e4m3)",
        "packed": "{bits} Bit in Gruppen zu {group}",
        "plain": "{dtype}, {bits} Bit",
        "context": "Kontext",
        "tokens": "{tokens} Token",
        "can": "Kann",
        "thinks": "vor der Antwort nachdenken",
        "calls": "Werkzeuge aufrufen",
        "talks": "antworten, ohne Gedanken und Werkzeuge",
        "licence": "Lizenz",
    },
}
_MAX_HEAD_BYTES: Final = 64 * 2**10
"""Part of a file in which its licence is looked for"""
_LICENCE_FIELDS: Final = tuple(
    re.compile(rf"^{name}: *[\"']?([\w .,+-]{{1,80}}?)[\"']? *$", re.M)
    for name in ("license_name", "license")
)
_LICENCE_LINE: Final = re.compile(r"[\w .,+-]{1,80}")


def checkpoint_card(
    config: Config, folder: Path | None, *, name: str, has_thoughts: bool, has_tools: bool
) -> dict[Language, str]:
    """Return a card of the model in a folder, in each language.

    folder        None for a model that was not loaded from one
    name          name that it is known by; with the shape of its config it finds the catalog's card
    has_thoughts  its chat format has thoughts
    has_tools     its chat format has tool calls
    """
    known = _find(config, {name.lower(), "" if folder is None else folder.name.lower()})
    licence = None if folder is None or known is not None else _licence_of(folder)
    cards = {}
    for lang in LANGUAGES:
        words = _WORDS[lang]
        facts = _facts(config, lang)
        abilities = [words["thinks"]] * has_thoughts + [words["calls"]] * has_tools
        facts[words["can"]] = ", ".join(abilities) or words["talks"]
        its_licence = licence if known is None else known.text[lang].licence
        if its_licence is not None:
            facts[words["licence"]] = its_licence
        summary = "" if known is None else f"**{known.title}.** {known.text[lang].summary}\n\n"
        cards[lang] = summary + "\n".join(f"- {name}: {value}" for name, value in facts.items())
    return cards


def _facts(config: Config, lang: Language) -> dict[str, str]:
    """Return what a config says, by its label."""
    words = _WORDS[lang]
    counts = count_parameters(config)
    active = counts.active + (counts.head or counts.embedding)
    values = {
        "total": shown_number(counts.total, lang),
        "active": shown_number(active, lang),
        "tokens": shown_number(config.max_position_embeddings, lang),
    }
    return {
        words["architecture"]: architecture_in_words(config, lang),
        words["parameters"]: words["active"].format(**values),
        words["weights"]: _weights(config, lang),
        words["context"]: words["tokens"].format(**values),
    }


def _weights(config: Config, lang: Language) -> str:
    words = _WORDS[lang]
    match config.quantization_config:
        case Fp8Config() | PackedConfig(bits="fp8"):
            return words["fp8"]
        case PackedConfig(bits=bits, group_size=group):
            return words["packed"].format(bits=bits, group=group)
        case None:
            dtype = config.torch_dtype
            name = str(dtype).removeprefix("torch.")
            return words["plain"].format(dtype=name, bits=8 * dtype.itemsize)


def _find(config: Config, names: set[str]) -> Card | None:
    """Return the catalog's card of a model by one of these names, if it has that model's shape."""
    for card in list_cards():
        own = {known for name in names_of(card) for known in (name, name.rpartition("/")[2])}
        if names & own and _shape(config_of(card)) == _shape(config):
            return card
    return None


def _shape(config: Config) -> tuple[object, ...]:
    return (
        type(config),
        config.num_hidden_layers,
        config.hidden_size,
        config.num_local_experts,
        config.vocab_size,
    )


def _licence_of(folder: Path) -> str | None:
    """Return the licence that the head of README.md names, else the first line of LICENSE."""
    fields = _front_matter(_head_of(folder / "README.md"))
    for pattern in _LICENCE_FIELDS:
        if (found := pattern.search(fields)) is not None:
            return found[1]
    for line in _head_of(folder / "LICENSE").split("\n"):
        if line.strip():
            return line.strip() if _LICENCE_LINE.fullmatch(line.strip()) else None
    return None


def _front_matter(text: str) -> str:
    """Return the fields at the head of a Markdown file."""
    if not text.startswith("---\n"):
        return ""
    return text[4:].partition("\n---")[0]


def _head_of(path: Path) -> str:
    """Return the beginning of a file; of one that cannot be read nothing."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            return file.read(_MAX_HEAD_BYTES).decode(errors="replace").replace("\r\n", "\n")
    except OSError:
        return ""
