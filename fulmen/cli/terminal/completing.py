"""Completion of what is typed: commands behind a slash, files of the workspace behind an @."""

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

_MAX_NAMES: Final = 20_000
_MAX_SECONDS: Final = 0.5
"""Time that one look through the folder takes"""
_MAX_AGE_SECONDS: Final = 10.0
_MAX_SHOWN: Final = 50
_LOOKED_AT: Final = 300
"""Characters before the cursor in which an @ is looked for"""
_SKIPPED: Final = frozenset({"node_modules", "__pycache__", "venv", "target", "build", "dist"})
_OPEN: Final = re.compile(r'(?:^|\s)@(?:"([^"\n]*)|([^\s"@]*))$')


class FileNames:
    """Names of the files of a folder, as far as a short look finds them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: list[str] = []
        self._looked = -_MAX_AGE_SECONDS

    def names(self) -> list[str]:
        """Return paths from the folder on, of files and of folders, which end with a slash."""
        now = time.monotonic()
        if now - self._looked > _MAX_AGE_SECONDS:
            self._names = list(self._found(now + _MAX_SECONDS))
            self._looked = time.monotonic()
        return self._names

    def _found(self, end: float) -> Iterator[str]:
        count, folders = 0, [""]
        for folder in folders:  # which grows: near ones come first
            try:
                entries = sorted(os.scandir(self._folder / folder), key=lambda one: one.name)
            except OSError:
                continue
            for entry in entries:
                if count >= _MAX_NAMES or time.monotonic() > end:
                    return
                name = f"{folder}{entry.name}"
                if not name.isprintable() or '"' in name:
                    continue
                is_folder = entry.is_dir(follow_symlinks=False)
                is_looked_into = not entry.name.startswith(".") and entry.name not in _SKIPPED
                if is_folder and is_looked_into:
                    folders.append(f"{name}/")
                if not is_folder or is_looked_into:
                    count += 1
                    yield f"{name}/" if is_folder else name


class TypedCompleter(Completer):
    """Completes commands and the names of files."""

    def __init__(self, commands: Mapping[str, str], files: FileNames) -> None:
        """commands: names without the slash, and what each does"""
        self.files = files
        self._commands = commands

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yield what may stand in the place of the last word."""
        before = document.text_before_cursor
        if before.startswith("/") and not before.startswith("//") and len(before) < 40:
            if not any(char.isspace() for char in before):
                for name, what in self._commands.items():
                    if name.startswith(before[1:]):
                        yield Completion(f"/{name}", -len(before), display_meta=what)
            return
        found = _OPEN.search(before[-_LOOKED_AT:])
        if found is None:
            return
        part = found[1] if found[1] is not None else found[2]
        length = len(part) + (2 if found[1] is not None else 1)
        for name in _best(self.files.names(), part):
            shown = f'@"{name}"' if " " in name else f"@{name}"
            yield Completion(shown, -length, display=name)


def _best(names: Iterable[str], part: str) -> list[str]:
    """Return the names that hold a text: those that begin with it first."""
    part = part.lower()
    ranked = []
    for place, name in enumerate(names):
        lower = name.lower()
        if part not in lower:
            continue
        last = lower.rstrip("/").rpartition("/")[2]
        rank = 0 if last.startswith(part) else 1 if lower.startswith(part) else 2
        ranked.append((rank, name.count("/"), place, name))
    return [name for *_, name in sorted(ranked)[:_MAX_SHOWN]]
