"""Names of models, what is known about each, and where its files come from.

    name -> Card      what a model is, in English and German (cards/*.toml)
    name -> config    the published config.json, for plans and cards without a download
    name -> folder    `resolve`: a local path, a model that `pull` brings, or the hub's repository

All facts are data, and what follows from a config is computed from it. Weights are safetensors or
GGUF: pickle is neither opened nor downloaded.
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final, Literal

from fulmen.checkpoints import read_config
from fulmen.models import Config

Language = Literal["en", "de"]

LANGUAGES: Final[tuple[Language, ...]] = ("en", "de")


@dataclass(frozen=True, kw_only=True, slots=True)
class Paper:
    """A report on arXiv."""

    arxiv: str
    title: str
    year: int
    authors: tuple[str, ...]
    authors_complete: bool
    """Whether `authors` are all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """The sampling that is recommended, by a model's makers where they name one."""

    temperature: float
    top_p: float
    top_k: int | None = None
    repetition_window: int | None = None
    """Stop after so many tokens in a row that the model was sure of: it has begun to loop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A GGUF inside a published wheel, and the same file on the hub."""

    requirement: str
    member: str
    wheel_bytes: int
    hub_repo: str
    hub_file: str
    hub_revision: str
    sha256: str
    """Of the GGUF, as is `file_bytes`."""
    file_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CardText:
    """The sentences of a card in one language."""

    summary: str
    stage: str
    """What sets this release apart from its siblings."""
    architecture: str
    training: str
    running: str
    licence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What is known about one model."""

    name: str
    title: str
    maker: str
    technical_lead: str | None = None
    hub: str
    """The repository of the weights, `org/name`."""
    code: str | None = None
    paper: Paper
    config: str
    """The published config.json, a file in configs/."""
    context: int
    """Tokens that the makers say the model was made for."""
    thinking_budget: int | None = None
    """Tokens of thinking and answer it was trained to stay within; None means no fixed number."""
    sampling: Sampling
    source: Source | None = None
    """What `pull` fetches instead of the hub's repository of weights."""
    text: Mapping[Language, CardText]


def list_cards() -> list[Card]:
    """All cards, by name."""
    return sorted(_cards().values(), key=lambda card: card.name)


def get_card(name: str) -> Card:
    """The card of a catalog name or of a hub id, in any case."""
    card = find_card(name)
    if card is None:
        raise ValueError(f"{name} is not in the catalog, {suggest(name)}")
    return card


def published_config(name: str) -> Config:
    """The config of a model in the catalog, without a download."""
    return read_published(get_card(name).config)


def find_config(name: str) -> Config:
    """The config of a local folder, config.json or GGUF, else of a model in the catalog."""
    path = Path(name).expanduser()
    if path.exists():
        return read_config(path)
    if find_card(name) is None and (path.suffix in (".json", ".gguf") or name[:1] in "./~"):
        raise ValueError(f"{name} does not exist, a folder, a config.json or a GGUF is needed")
    return published_config(name)


def find_card(name: str) -> Card | None:
    wanted = name.lower()
    for card in _cards().values():
        if wanted in (card.name, card.hub.lower()):
            return card
    return None


def suggest(name: str) -> str:
    wanted, names = name.lower(), [card.name for card in list_cards()]
    close = [known for known in names if wanted in known]
    close = close or difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known are {', '.join(names)}"


@lru_cache
def read_published(file: str) -> Config:
    with as_file(files("fulmen.catalog") / "configs" / file) as path:
        return read_config(path)


@lru_cache
def _cards() -> dict[str, Card]:
    folder = files("fulmen.catalog") / "cards"
    papers = tomllib.loads((folder / "papers.toml").read_text("utf-8"))
    cards = {}
    for file in folder.iterdir():
        if file.name.endswith(".toml") and file.name != "papers.toml":
            family = tomllib.loads(file.read_text("utf-8"))
            for release in family.pop("card"):
                card = _read_card(family, release, papers)
                cards[card.name] = card
    return cards


def _read_card(family: dict[str, Any], release: dict[str, Any], papers: dict[str, Any]) -> Card:
    """A release's card: its own fields, and those it shares with its family's other releases."""
    values = family | release
    licence = values.pop("licence")
    text: dict[Language, CardText] = {}
    for language in LANGUAGES:
        values.pop(language)
        sentences = family.get(language, {}) | release.get(language, {})
        stripped = {name: sentence.strip() for name, sentence in sentences.items()}
        text[language] = CardText(licence=licence[language], **stripped)
    arxiv = values.pop("paper")
    paper = papers[arxiv] | {"authors": tuple(papers[arxiv]["authors"])}
    source = values.pop("source", None)
    return Card(
        paper=Paper(arxiv=arxiv, **paper),
        sampling=Sampling(**values.pop("sampling")),
        source=None if source is None else Source(**source),
        text=text,
        **values,
    )
