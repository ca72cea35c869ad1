"""Snapshots of a folder, so that any step of an agent can be gone back to.

Whatever changed the files is in the next snapshot: a tool, a shell command, a deletion, a person.
Snapshots are commits in a bare git repository of ours (`repository.py`); the user's own is neither
read, but for what it ignores, nor written, and no `.git` below the folder is ever in a snapshot.
`scan.py` reads the folder, `restoring.py` writes it.

What is left out is told: large files, ignored files that are large together, what is no file. A
restore never touches it. Objects are written at once, one file each or one pack for many; `prune`
packs them all and deletes those of snapshots that nothing keeps.
"""

import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fulmen.agent.ignored import first_rules
from fulmen.agent.readings import Readings
from fulmen.agent.repository import (
    ID,
    MAX_COMMIT_BYTES,
    Reader,
    Repository,
    Tree,
    Unwritten,
    Writer,
)
from fulmen.agent.restoring import Restore, make_readable
from fulmen.agent.scan import FOLDER, Folder, Limits, Scan, Skipped, open_folder
from fulmen.files import explain, naming, printable, shorten

_MAX_LABEL: Final = 10_000
"""Most characters of a snapshot's label"""
_MAX_DIFF_BYTES: Final = 2 * 2**20
_MAX_PATHS: Final = 1_000
_EMPTY_TREE: Final = "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321"
_GIT_SECONDS: Final = 60.0
_PRUNE_SECONDS: Final = 1800.0
_WIDE: Final = Limits(max_files=2**40, max_bytes=2**60)
"""Limits for a folder that is read and not saved"""

Kind = Literal["added", "changed", "deleted", "mode", "type"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A folder as it was once."""

    id: str
    tree: str
    """Name of its content: equal for equal folders"""
    label: str
    skipped: tuple[Skipped, ...]
    """Files and other things that are not in it"""


@dataclass(frozen=True, slots=True)
class Restored:
    """A restore that was done."""

    before: Snapshot | None
    """The folder as it was until then; None where it could not be saved"""
    num_written: int
    num_deleted: int
    left: tuple[Skipped, ...]
    """Paths that were not made equal to the snapshot"""


@dataclass(frozen=True, slots=True)
class Change:
    """One path that differs between two snapshots."""

    path: str
    """A folder's ends with a slash: an empty one, or one with other permissions"""
    kind: Kind
    num_added: int | None = None
    """Lines; None where they cannot be counted"""
    num_deleted: int | None = None


class ChangedSince(ValueError):
    """A restore would overwrite what somebody else changed."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        shown = ", ".join(printable(path) for path in self.paths[:5])
        more = f" and {len(self.paths) - 5:,} more" if len(self.paths) > 5 else ""
        super().__init__(f"changed since the last snapshot, so nothing was restored: {shown}{more}")


class NotSaved(ValueError):
    """A restore would not be undone, since the folder cannot be saved before."""


class Snapshots:
    """Snapshots of one folder. Any number of threads and processes may use its repository.

    A snapshot that no name keeps lasts until the next `prune`.
    """

    def __init__(self, folder: Path, repository: Path, *, limits: Limits | None = None) -> None:
        """repository: a folder elsewhere, made if it is missing. Folders that are forks of one
        another may share one: any of its snapshots can be restored in each."""
        if os.name != "posix":
            raise ValueError("snapshots need a POSIX system, such as Linux")
        self.folder = Path(os.path.realpath(folder))
        where = Path(os.path.realpath(repository))
        if not self.folder.is_dir():
            raise ValueError(f"{folder} is no folder")
        if where.is_relative_to(self.folder) or self.folder.is_relative_to(where):
            raise ValueError(f"{repository} must lie outside {folder}, and not around it")
        self.limits = limits or Limits()
        try:
            self._repository = Repository(where)
        except OSError as error:
            raise ValueError(f"no repository for snapshots: {explain(error)}") from None
        self._readings = Readings(self._repository, self.folder)

    def elsewhere(self, folder: Path) -> "Snapshots":
        """Return the snapshots of another folder in the same repository."""
        return Snapshots(folder, self._repository.path, limits=self.limits)

    def take(self, label: str) -> Snapshot:
        """Save the folder as it stands.

        label  says what for, at most 10,000 characters

        Raises ValueError for a folder with too many files, and OSError where the disk is full.
        """
        _check_label(label)
        with self._repository.locked(), self._opened() as root:
            return self._take(root, label)[0]

    def read(self, id: str) -> Snapshot:
        """Return a snapshot. Raises ValueError if there is none with that id."""
        with self._repository.reader() as reader:
            return _read(reader, id)

    def restore(
        self,
        id: str,
        *,
        expected: str | None,
        others: Sequence[tuple[str, str]] = (),
        overwrite: bool = False,
    ) -> Restored:
        """Make the folder equal to a snapshot.

        expected   the last snapshot that the caller took: raises `ChangedSince` if something would
                   be overwritten that differs from it. None if there is none.
        others     pairs of snapshots between which somebody else changed files: raises
                   `ChangedSince` if one of those would be overwritten
        overwrite  restore also then, and where the folder cannot be saved before, which raises
                   `NotSaved` otherwise

        The folder is saved before, so nothing is lost. What snapshots leave out stays.
        """
        with (
            self._repository.locked(),
            self._opened() as root,
            self._repository.reader() as reader,
        ):
            wanted = _read(reader, id)
            known = None if expected is None else _read(reader, expected)
            foreign = [(_read(reader, old), _read(reader, new)) for old, new in others]
            while True:
                before, scan = self._take_before(root, id, must_save=not overwrite)
                if before is not None and not overwrite:
                    pairs = [] if known is None else [(known, before)]
                    _check_unchanged(reader, [*pairs, *foreign], before, wanted)
                if not make_readable(root, scan.denied):
                    break
            self._check_whole(reader, _EMPTY_TREE if before is None else before.tree, wanted.tree)
            restore = Restore(
                root,
                reader,
                not_read={one.path for one in scan.skipped},
                not_saved={one.path for one in wanted.skipped},
            )
            restore.remove_leftovers(scan.leftovers)
            restore.apply(scan.folder, wanted.tree)
            return Restored(before, restore.num_written, restore.num_deleted, tuple(restore.left))

    def export(self, id: str, folder: Path) -> None:
        """Write a snapshot into a new or empty folder."""
        with self._repository.reader() as reader:
            wanted = _read(reader, id)
            self._check_whole(reader, _EMPTY_TREE, wanted.tree)
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise ValueError(f"{folder} is not empty, a new folder is needed")
            root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                restore = Restore(root, reader, not_read=set(), not_saved=set())
                restore.apply(Folder(FOLDER | 0o755), wanted.tree)
            finally:
                os.close(root)
            if restore.left:
                path, reason = restore.left[0]
                raise ValueError(f"{folder / path} could not be written: {reason}")

    def changes(self, old: str, new: str) -> list[Change]:
        """Return what differs between two snapshots, by path."""
        with self._repository.reader() as reader:
            trees = [_read(reader, id).tree for id in (old, new)]
            found = list(_differences(reader, *trees))
        counts = self._line_counts(*trees)
        changes = []
        for path, before, after in found:
            kind: Kind = "changed"
            if before is None or after is None:
                kind = "added" if before is None else "deleted"
            elif stat.S_IFMT(before[0]) != stat.S_IFMT(after[0]):
                kind = "type"
            elif before[1] == after[1] or path.endswith("/"):
                kind = "mode"
            unknown = (0, 0) if kind == "mode" else (None, None)
            changes.append(Change(path, kind, *counts.get(path, unknown)))
        return sorted(changes, key=lambda change: os.fsencode(change.path))

    def diff(
        self, old: str, new: str, *, paths: Sequence[str] | None = None, context: int = 3
    ) -> str:
        """Return the unified diff of two snapshots, as git writes it.

        paths    only these files and folders
        context  unchanged lines around each change

        Bytes that are not UTF-8 are surrogates in it, as in a path. After 2 MiB it is cut, and says
        so.
        """
        if not 0 <= context <= 1_000_000:
            raise ValueError(f"context is {context}, at least 0 lines are needed")
        if paths is not None:
            _check_paths(paths)
            if not paths:
                return ""
        with self._repository.reader() as reader:
            trees = [_read(reader, id).tree for id in (old, new)]
        words = ["diff-tree", "-r", "-p", "-M", "-l400", f"--unified={context}", "--no-ext-diff"]
        words += ["--no-textconv", "--no-color", *trees, "--", *(paths or ())]
        text = self._repository.output_start(_MAX_DIFF_BYTES, _GIT_SECONDS, *words)
        if len(text) > _MAX_DIFF_BYTES:
            text = text[: text.rfind(b"\n", 0, _MAX_DIFF_BYTES) + 1 or _MAX_DIFF_BYTES]
            text += b"... the diff is cut after %d bytes\n" % len(text)
        return text.decode(errors="surrogateescape")

    def keep(self, name: str, id: str) -> None:
        """Keep a snapshot under a name, such as RUN/12; it may have had another one."""
        with self._repository.locked():
            with self._repository.reader() as reader:
                _read(reader, id)
            self._repository.keep(name, id)

    def kept(self) -> dict[str, str]:
        """Return all names and the snapshots they keep."""
        return self._repository.kept()

    def drop(self, name: str) -> int:
        """Forget a name and all names below it; return how many there were."""
        with self._repository.locked():
            return self._repository.drop(name)

    def prune(self, *, older_than_seconds: float = 3600.0) -> None:
        """Pack all objects, and delete those of snapshots that nothing keeps and that are older.

        Takes seconds where there is much; no other call runs meanwhile.
        """
        with self._repository.locked():
            for ref, tree in self._readings.prune():
                writer = Writer(self._repository)
                id = writer.add("commit", _commit(tree, "a reading", ()))
                writer.finish()
                self._repository.name(ref, id)
            self._repository.prune(older_than_seconds, _PRUNE_SECONDS)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            root = open_folder(str(self.folder))
        except OSError as error:
            raise ValueError(f"no snapshot: {explain(error)}") from None
        try:
            yield root
        finally:
            os.close(root)

    def _take_before(self, root: int, id: str, *, must_save: bool) -> tuple[Snapshot | None, Scan]:
        """Save the folder before a restore; only read it if it cannot be saved and need not."""
        try:
            return self._take(root, f"before a restore of {id}")
        except (OSError, ValueError) as error:
            if must_save:
                why = explain(error) if isinstance(error, OSError) else str(error)
                raise NotSaved(f"nothing was restored, the folder cannot be saved: {why}") from None
        rules = first_rules(self.folder)
        return None, Scan(root, Unwritten(), _WIDE, rules=rules, previous=None)

    def _take(self, root: int, label: str) -> tuple[Snapshot, Scan]:
        writer = Writer(self._repository)
        try:
            scan = Scan(
                root,
                writer,
                self.limits,
                rules=first_rules(self.folder),
                previous=self._readings.last(),
            )
            skipped = tuple(scan.skipped)
            commit = _commit(scan.folder.id, label, skipped)
            if len(commit) > MAX_COMMIT_BYTES:
                raise ValueError(
                    f"{len(skipped):,} things cannot be in a snapshot, too many to tell"
                )
            id = writer.add("commit", commit)
            writer.finish()
        except OSError as error:
            raise naming(error, self._repository.path) from error
        finally:
            writer.abandon()
        self._readings.add(scan)
        return Snapshot(id, scan.folder.id, label, skipped), scan

    def _check_whole(self, reader: Reader, now: str, wanted: str) -> None:
        """Raise ValueError before anything is written if objects are missing."""
        ids = {new[1] for _, _, new in _differences(reader, now, wanted) if new is not None}
        missing = self._repository.missing(ids - {_EMPTY_TREE})
        if missing:
            raise ValueError(
                f"{self._repository.path} lacks {len(missing):,} objects of the snapshot, it is "
                "damaged"
            )

    def _line_counts(self, old: str, new: str) -> dict[str, tuple[int | None, int | None]]:
        words = ["diff-tree", "-r", "--numstat", "-z", "--no-renames", "--no-ext-diff"]
        rows = self._repository.run(*words, "--no-textconv", old, new).split(b"\0")
        counts: dict[str, tuple[int | None, int | None]] = {}
        for row in rows:
            if row:
                added, deleted, path = row.split(b"\t", 2)
                is_text = added != b"-"
                counts[os.fsdecode(path)] = (int(added), int(deleted)) if is_text else (None, None)
        return counts


def _check_label(label: str) -> None:
    if len(label) > _MAX_LABEL:
        raise ValueError(f"a label has {len(label):,} characters, at most {_MAX_LABEL:,} fit")


def _check_paths(paths: Sequence[str]) -> None:
    if len(paths) > _MAX_PATHS:
        raise ValueError(f"{len(paths):,} paths are given, at most {_MAX_PATHS:,} can be")
    for path in paths:
        parts = path.split("/")
        if not path or path.startswith("/") or ".." in parts or "\0" in path:
            raise ValueError(f"{shorten(path)!r} is no path below the folder")


def _commit(tree: str, label: str, skipped: Sequence[Skipped]) -> bytes:
    """Return a snapshot as an object: nobody's, of no date, so equal for equal content."""
    who = "fulmen <> 0 +0000"
    note = json.dumps({"label": label, "skipped": skipped})
    return f"tree {tree}\nauthor {who}\ncommitter {who}\n\n{note}\n".encode()


def _read(reader: Reader, id: str) -> Snapshot:
    if not ID.fullmatch(id):
        raise ValueError(
            f"{shorten(id, 80)!r} is no snapshot's id, which has 64 hexadecimal digits"
        )
    content = reader.read(id, "commit", MAX_COMMIT_BYTES)
    head, _, note = content.partition(b"\n\n")
    tree = head.partition(b"\n")[0].removeprefix(b"tree ").decode(errors="replace")
    try:
        fields = json.loads(note)
        skipped = tuple(Skipped(str(path), str(reason)) for path, reason in fields["skipped"])
        label = str(fields["label"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f"{id} is no snapshot of ours") from None
    return Snapshot(id, tree, label, skipped)


Entry = tuple[int, str]
Difference = tuple[str, Entry | None, Entry | None]


def _differences(reader: Reader, old: str, new: str, path: str = "") -> Iterator[Difference]:
    """Yield each path with its two entries: files, links, and folders that are empty or have other
    permissions."""
    if old == new:
        return
    trees: list[Tree] = [{} if id == _EMPTY_TREE else reader.tree(id) for id in (old, new)]
    before, after = trees
    for name in before.keys() | after.keys():
        pair = before.get(name), after.get(name)
        if pair[0] == pair[1]:
            continue
        ids = []
        for entry in pair:
            is_folder = entry is not None and stat.S_ISDIR(entry[0])
            ids.append(entry[1] if entry is not None and is_folder else None)
        first, second = ids
        if first is not None or second is not None:
            yield from _differences(
                reader, first or _EMPTY_TREE, second or _EMPTY_TREE, f"{path}{name}/"
            )
        if first is not None and second is not None:
            if pair[0] is not None and pair[1] is not None and pair[0][0] != pair[1][0]:
                yield f"{path}{name}/", *pair
            continue
        if first is not None or second is not None:
            if _EMPTY_TREE in ids:
                yield f"{path}{name}/", *(pair if None in pair else _folder_of(pair, ids))
            leaves = [None if id is not None else one for id, one in zip(ids, pair, strict=True)]
            if leaves != [None, None]:
                yield f"{path}{name}", leaves[0], leaves[1]
            continue
        yield f"{path}{name}", *pair


def _folder_of(
    pair: tuple[Entry | None, Entry | None], ids: Sequence[str | None]
) -> tuple[Entry | None, Entry | None]:
    return (pair[0], None) if ids[0] is not None else (None, pair[1])


def _check_unchanged(
    reader: Reader,
    changes: Sequence[tuple[Snapshot, Snapshot]],
    now: Snapshot,
    wanted: Snapshot,
) -> None:
    """Raise ChangedSince if a restore would overwrite what somebody else changed.

    changes  pairs of snapshots, between which somebody else changed files; the last of the first
             pair may be the folder as it is
    """
    lost: set[str] = set()
    there = {
        path: (before, after) for path, before, after in _differences(reader, now.tree, wanted.tree)
    }
    for old, new in changes if there else ():
        for path, _, changed in _differences(reader, old.tree, new.tree):
            if path.endswith("/") or path not in there:
                continue
            before, after = there[path]
            is_known = new is now and (changed is not None or after is not None)
            if is_known or (new is not now and changed is not None and before is not None):
                lost.add(path)
    if lost:
        raise ChangedSince(sorted(lost))
