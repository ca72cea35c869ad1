"""A model's card as text, in English or German."""

import textwrap
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from fulmen.catalog.cards import (
    LANGUAGES,
    Card,
    CardText,
    Language,
    Paper,
    config_of,
    context_of,
    record_of,
)
from fulmen.catalog.record_text import record_tables
from fulmen.models import Config, checkpoint_bytes, count_parameters

_LABELS: Final = {
    "en": {
        "maker": "Made by",
        "lead": "Technical lead",
        "parameters": "Parameters",
        "context": "Context",
        "budget": "Thinking budget",
        "weights": "Weights",
        "sampling": "Sampling",
        "system": "System prompt",
        "licence": "Licence",
        "hub": "Hub",
        "code": "Code",
        "paper": "Paper",
        "architecture": "Architecture",
        "training": "Training",
        "running": "Running it",
        "authors": "Authors of the paper",
        "and_others": "and others",
        "total": "{} in total",
        "active": "{} active per token (without embedding and head)",
        "tokens": "{} tokens",
        "no_budget": "none fixed",
        "trained_to": "{} tokens for thinking and answer",
        "bytes": "{} bytes",
        "no_top_k": "no top_k",
        "default": "by default: {}",
        "place": "Here",
        "in_package": "comes with Fulmen, in fulmen/{}",
        "limits": "Limits",
        "examples": "All that it can do, each with a question",
    },
    "de": {
        "maker": "Hersteller",
        "lead": "Technische Leitung",
        "parameters": "Parameter",
        "context": "Kontext",
        "budget": "Denkbudget",
        "weights": "Gewichte",
        "sampling": "Sampling",
        "system": "Systemsatz",
        "licence": "Lizenz",
        "hub": "Hub",
        "code": "Code",
        "paper": "Bericht",
        "architecture": "Architektur",
        "training": "Training",
        "running": "Betrieb",
        "authors": "Autoren des Berichts",
        "and_others": "und weitere",
        "total": "{} insgesamt",
        "active": "{} aktiv je Token (ohne Embedding und Kopf)",
        "tokens": "{} Token",
        "no_budget": "kein festes",
        "trained_to": "{} Token für Denken und Antwort",
        "bytes": "{} Bytes",
        "no_top_k": "kein top_k",
        "default": "voreingestellt: {}",
        "place": "Vorhanden",
        "in_package": "kommt mit Fulmen, in fulmen/{}",
        "limits": "Grenzen",
        "examples": "Alles, was es kann, mit je einer Frage",
    },
}
_ARCHITECTURE: Final[dict[Language, dict[str, str]]] = {
    "en": {
        "layers": "{layers} layers of width {width}",
        "softmax": "softmax attention in each",
        "lightning": "lightning attention in {lightning} of them, softmax attention in the others",
        "experts": "{chosen} of {experts} experts work on a token",
    },
    "de": {
        "layers": "{layers} Schichten der Breite {width}",
        "softmax": "Softmax-Attention in jeder",
        "lightning": "Lightning Attention in {lightning} davon, Softmax-Attention in den anderen",
        "experts": "{chosen} von {experts} Experten arbeiten an einem Token",
    },
}
_LABEL_WIDTH, _TEXT_WIDTH = 20, 88


def render_card(card: Card, lang: Language = "en") -> str:
    """Return a card as plain text in one language."""
    if lang not in LANGUAGES:
        raise ValueError(
            f"no card in the language {str(lang)[:20]!r}, there are {', '.join(LANGUAGES)}"
        )
    labels, text = _LABELS[lang], text_of(card, lang)
    lines = [card.title, "=" * len(card.title), "", *_paragraphs(text.summary), ""]
    for label, value in _facts(card, lang):
        lines += _labelled(label, value)
    for title, body in _sections(card, lang):
        lines += ["", title, *_paragraphs(body, "  ")]
    record = record_of(card)
    if text.examples:
        lines += ["", labels["examples"]]
        for kind, question in text.examples.items():
            lines += _labelled(f"  {kind}", question)
    if record is not None:
        lines += record_tables(record, lang)
    return "\n".join(lines) + "\n"


def _sections(card: Card, lang: Language) -> Iterable[tuple[str, str]]:
    """Yield the titles and the paragraphs of a card."""
    labels, text = _LABELS[lang], text_of(card, lang)
    architecture = text.architecture
    if card.folder is not None:
        architecture = f"{architecture_in_words(config_of(card), lang)}. {architecture}"
    yield labels["architecture"], architecture
    yield labels["training"], f"{text.training}\n\n{text.stage}"
    yield labels["running"], text.running
    if text.limits:
        yield labels["limits"], text.limits
    if card.paper is not None:
        yield labels["authors"], _authors(card.paper, lang)


def _authors(paper: Paper, lang: Language) -> str:
    # A line may end between two names, not within one.
    authors = ", ".join(name.replace(" ", "\xa0") for name in paper.authors)
    return authors if paper.authors_complete else f"{authors} {_LABELS[lang]['and_others']}"


def _labelled(label: str, value: str) -> list[str]:
    """Return a value in lines behind its label."""
    lines = [
        line
        for part in value.split("\n")
        for line in textwrap.wrap(
            part, _TEXT_WIDTH - _LABEL_WIDTH, break_long_words=False, break_on_hyphens=False
        )
    ]
    heads = [label, *[""] * len(lines)]
    return [f"{head:{_LABEL_WIDTH}}{line}" for head, line in zip(heads, lines, strict=False)]


def _facts(card: Card, lang: Language) -> Iterable[tuple[str, str]]:
    labels, config = _LABELS[lang], config_of(card)
    counts = count_parameters(config)
    total = labels["total"].format(shown_number(counts.total, lang))
    active = labels["active"].format(shown_number(counts.active, lang))
    budget = labels["no_budget"]
    if card.thinking_budget is not None:
        budget = labels["trained_to"].format(shown_number(card.thinking_budget, lang))
    num_bytes = checkpoint_bytes(config) if card.source is None else card.source.file_bytes
    top_k = labels["no_top_k"] if card.sampling.top_k is None else f"top_k {card.sampling.top_k}"
    sampling = f"temperature {card.sampling.temperature}, top_p {card.sampling.top_p}, {top_k}"
    yield labels["maker"], card.maker
    if card.technical_lead is not None:
        yield labels["lead"], card.technical_lead
    yield labels["parameters"], f"{total}, {active}"
    yield labels["context"], labels["tokens"].format(shown_number(context_of(card), lang))
    yield labels["budget"], budget
    yield labels["weights"], labels["bytes"].format(shown_number(num_bytes, lang))
    yield labels["sampling"], sampling
    if card.system is not None:
        yield labels["system"], labels["default"].format(card.system)
    yield labels["licence"], card.text[lang].licence
    if card.folder is not None:
        yield labels["place"], labels["in_package"].format(card.folder)
    if card.hub is not None:
        yield labels["hub"], f"https://huggingface.co/{card.hub}"
    if card.code is not None:
        yield labels["code"], card.code
    if (paper := card.paper) is not None:
        yield labels["paper"], f"{paper.title} ({paper.year}), https://arxiv.org/abs/{paper.arxiv}"


def architecture_in_words(config: Config, lang: Language) -> str:
    """Return layers, attention and experts of a model as the beginning of a sentence."""
    words, num_lightning = _ARCHITECTURE[lang], config.attn_type_list.count(0)
    parts = ["layers", "lightning" if num_lightning else "softmax"]
    if config.num_local_experts > 1:
        parts.append("experts")
    return "; ".join(words[part] for part in parts).format(
        layers=config.num_hidden_layers,
        width=shown_number(config.hidden_size, lang),
        lightning=num_lightning,
        chosen=config.num_experts_per_tok,
        experts=config.num_local_experts,
    )


def greeting_of(card: Card, lang: Language = "en") -> str:
    """Return the sentences at the beginning of a conversation with a model, some of its questions
    among them; nothing for a model without them."""
    greeting = text_of(card, lang).greeting
    return f"{card.title}: {greeting}" if greeting else ""


def text_of(card: Card, lang: Language) -> CardText:
    """Return the sentences of a card, with the numbers that follow from its config."""
    text = card.text[lang]
    if card.folder is None:
        return text
    millions = round(count_parameters(config_of(card)).total / 1e6)
    return replace(
        text,
        limits=text.limits.format(context=shown_number(context_of(card), lang)),
        greeting=text.greeting.format(millions=millions, **text.examples),
    )


def shown_number(value: int, lang: Language) -> str:
    """Return a number with the marks of a language between its thousands."""
    return f"{value:,}" if lang == "en" else f"{value:,}".replace(",", ".")


def _paragraphs(text: str, indent: str = "") -> list[str]:
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        lines += ["", *textwrap.wrap(paragraph, _TEXT_WIDTH, break_on_hyphens=False)]
    return [(indent + line if line else line).replace("\xa0", " ") for line in lines[1:]]
