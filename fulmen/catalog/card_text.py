"""A model's card as text, in English or German."""

import textwrap
from collections.abc import Iterable
from typing import Final

from fulmen.catalog.cards import LANGUAGES, Card, Language, read_published
from fulmen.models import checkpoint_bytes, count_parameters

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
    },
}


_LABEL_WIDTH, _TEXT_WIDTH = 20, 88


def render_card(card: Card, lang: Language = "en") -> str:
    """Return a card as plain text in one language."""
    if lang not in LANGUAGES:
        raise ValueError(
            f"no card in the language {str(lang)[:20]!r}, there are {', '.join(LANGUAGES)}"
        )
    labels, text = _LABELS[lang], card.text[lang]
    lines = [card.title, "=" * len(card.title), "", *_paragraphs(text.summary), ""]
    for label, value in _facts(card, lang):
        lines += textwrap.wrap(
            value,
            _TEXT_WIDTH,
            initial_indent=label.ljust(_LABEL_WIDTH),
            subsequent_indent=" " * _LABEL_WIDTH,
            break_long_words=False,
            break_on_hyphens=False,
        )
    # A line may end between two names, not within one.
    authors = ", ".join(name.replace(" ", "\xa0") for name in card.paper.authors)
    if not card.paper.authors_complete:
        authors += f" {labels['and_others']}"
    for title, body in (
        (labels["architecture"], text.architecture),
        (labels["training"], f"{text.training}\n\n{text.stage}"),
        (labels["running"], text.running),
        (labels["authors"], authors),
    ):
        lines += ["", title, *_paragraphs(body, "  ")]
    return "\n".join(lines) + "\n"


def _facts(card: Card, lang: Language) -> Iterable[tuple[str, str]]:
    labels, config = _LABELS[lang], read_published(card.config)
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
    yield labels["context"], labels["tokens"].format(shown_number(card.context, lang))
    yield labels["budget"], budget
    yield labels["weights"], labels["bytes"].format(shown_number(num_bytes, lang))
    yield labels["sampling"], sampling
    if card.system is not None:
        yield labels["system"], labels["default"].format(card.system)
    yield labels["licence"], card.text[lang].licence
    yield labels["hub"], f"https://huggingface.co/{card.hub}"
    if card.code is not None:
        yield labels["code"], card.code
    paper = card.paper
    yield labels["paper"], f"{paper.title} ({paper.year}), https://arxiv.org/abs/{paper.arxiv}"


def shown_number(value: int, lang: Language) -> str:
    """Return a number with the marks of a language between its thousands."""
    return f"{value:,}" if lang == "en" else f"{value:,}".replace(",", ".")


def _paragraphs(text: str, indent: str = "") -> list[str]:
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        lines += ["", *textwrap.wrap(paragraph, _TEXT_WIDTH, break_on_hyphens=False)]
    return [(indent + line if line else line).replace("\xa0", " ") for line in lines[1:]]
