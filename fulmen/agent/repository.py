"""A bare git repository of ours: objects written without git, read and compared by it.

Nothing of the user's reaches it, and nothing of it the user: no configuration, hook, attribute or
variable of theirs, no identity, no date. Objects are named by SHA-256, of which no two contents
with one name are known. A few are written as files of their own, many as one pack, each aside and
then renamed; like git, without waiting for the disk, so that a loss of power may cost the latest.

Trees hold the permission bits as they are, where git itself writes 644 or 755: git reads both.
Those of a folder are written as what differs from 755, since git writes 0 for a folder.
"""

import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from threading import Timer
from typing import IO, Final
from uuid import uuid4

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]

Tree = dict[str, tuple[int, str]]
"""Mode and id of each name in a folder"""

ID: Final = re.compile(r"[0-9a-f]{64}")
MAX_TREE_BYTES: Final = 64 * 2**20
MAX_COMMIT_BYTES: Final = 64 * 2**20

_KEPT: Final = "refs/kept/"
_NAME: Final = re.compile(r"(?=.{1,200}\Z)\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
_CONFIG: Final = """\
[core]
	repositoryformatversion = 1
	bare = true
	hooksPath = /dev/null
	attributesFile = /dev/null
	excludesFile = /dev/null
	quotePath = false
	bigFileThreshold = 4m
	logAllRefUpdates = false
[extensions]
	objectFormat = sha256
[gc]
	auto = 0
	writeCommitGraph = false
[maintenance]
	auto = false
[pack]
	threads = 1
	windowMemory = 128m
"""
_MAX_LOOSE: Final = 64
"""Objects of one snapshot that become files of their own; more become a pack"""
_MAX_WAITING_BYTES: Final = 4 * 2**20
_PACK_TYPES: Final = {"commit": 1, "tree": 2, "blob": 3}


class Repository:
    """Objects and names of one bare repository, made where it is missing."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError without git, for a folder that holds something else, and on a system
        without file locks."""
        if fcntl is None:
            raise ValueError("snapshots need file locks, which this system does not have")
        found = shutil.which("git")
        if found is None:
            raise ValueError("snapshots need the command git, which the package git brings")
        self.path = path
        self._git = found
        self._environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(path),
            "LC_ALL": "C",
            "GIT_DIR": str(path),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_LITERAL_PATHSPECS": "1",
        }
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._is_made():
            with self.locked():
                if not self._is_made():
                    self._make()

    def _is_made(self) -> bool:
        """Return whether the repository is there. Raises ValueError where something else is."""
        config = self.path / "config"
        if config.is_file():
            if config.read_bytes() != _CONFIG.encode():
                raise ValueError(f"{config} is not ours, another folder is needed")
            return True
        ours = {"lock", "objects", "refs", "HEAD", "config.new"}
        if {entry.name for entry in self.path.iterdir()} - ours:
            raise ValueError(f"{self.path} holds other files, an empty folder is needed")
        return False

    def _make(self) -> None:
        for name in ("objects/pack", "objects/info", "refs"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        (self.path / "HEAD").write_text("ref: refs/heads/none\n", encoding="ascii")
        new = self.path / "config.new"
        new.write_text(_CONFIG, encoding="ascii")
        new.replace(self.path / "config")
        try:
            self.run("rev-parse", "--git-dir")
        except ValueError as error:
            (self.path / "config").unlink()
            raise ValueError(f"snapshots need git 2.29 or later: {error}") from None

    @contextmanager
    def locked(self, *, wait_seconds: float = 60.0) -> Iterator[None]:
        """Keep other processes and threads out. Raises ValueError after a time of waiting."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.path / "lock", flags, 0o600)
        try:
            end = time.monotonic() + wait_seconds
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise ValueError(
                            f"{self.path} has been in use by another process for "
                            f"{wait_seconds:.0f} seconds"
                        ) from None
                    time.sleep(0.005)
            yield
        finally:
            os.close(descriptor)

    def run(self, *arguments: str, stdin: bytes = b"", timeout_seconds: float = 60.0) -> bytes:
        """Run git; return its output. Raises ValueError with its first line where it fails."""
        try:
            done = subprocess.run(
                [self._git, *arguments],
                cwd=self.path,
                env=self._environment,
                input=stdin,
                capture_output=True,
                timeout=timeout_seconds,
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"git {arguments[0]} took over {timeout_seconds:.0f} s") from None
        if done.returncode:
            reason = (done.stderr.decode(errors="replace").splitlines() or ["it failed"])[0]
            raise ValueError(f"git {arguments[0]} in {self.path}: {reason}")
        return done.stdout

    def output_start(self, max_bytes: int, timeout_seconds: float, *arguments: str) -> bytes:
        """Run git; return the beginning of its output, at most one byte more than a limit."""
        with subprocess.Popen(
            [self._git, *arguments],
            cwd=self.path,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            timer = Timer(timeout_seconds, process.kill)
            timer.start()
            try:
                assert process.stdout is not None
                start = process.stdout.read(max_bytes + 1)
                if len(start) > max_bytes:
                    return start
                status = process.wait()
            finally:
                timer.cancel()
                process.kill()
        if status == -signal.SIGKILL:
            raise ValueError(f"git {arguments[0]} took over {timeout_seconds:.0f} s")
        if status:
            raise ValueError(f"git {arguments[0]} in {self.path} failed, an object may be damaged")
        return start

    @contextmanager
    def reader(self) -> Iterator["Reader"]:
        """Give a reader of objects, which ends with the block."""
        with subprocess.Popen(
            [self._git, "cat-file", "--batch"],
            cwd=self.path,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                yield Reader(self.path, process.stdin, process.stdout)
            finally:
                process.kill()
                with suppress(BrokenPipeError):
                    process.stdin.close()

    def missing(self, ids: set[str]) -> set[str]:
        """Return those of some objects that are not there."""
        asked = "".join(f"{id}\n" for id in ids).encode()
        lines = self.run("cat-file", "--batch-check", stdin=asked).decode().splitlines()
        return {line.split()[0] for line in lines if line.endswith(" missing")}

    def name(self, ref: str, id: str) -> None:
        """Let a name of ours, such as refs/a, mean an object."""
        self.run("update-ref", ref, id)

    def forget(self, ref: str) -> None:
        """Let a name mean nothing."""
        self.run("update-ref", "-d", ref)

    def keep(self, name: str, id: str) -> None:
        """Let a name mean a snapshot, which is then kept. Raises ValueError for what is no name."""
        self.name(_KEPT + _checked(name), id)

    def kept(self) -> dict[str, str]:
        """Return all names and their snapshots."""
        lines = self.run("for-each-ref", "--format=%(objectname) %(refname)", _KEPT).decode()
        pairs = (line.split(" ", 1) for line in lines.splitlines())
        return {ref.removeprefix(_KEPT): id for id, ref in pairs}

    def drop(self, name: str) -> int:
        """Forget a name and all below it; return how many there were."""
        name = _checked(name)
        gone = [one for one in self.kept() if one == name or one.startswith(name + "/")]
        lines = "".join(f"delete {_KEPT}{one}\n" for one in gone)
        self.run("update-ref", "--stdin", stdin=lines.encode())
        return len(gone)

    def prune(self, older_than_seconds: float, timeout_seconds: float) -> None:
        """Pack what is named, and delete what nothing names once it has some age."""
        since = f"{max(int(older_than_seconds), 0)}.seconds.ago"
        expiry = "now" if older_than_seconds <= 0 else since
        self.run("gc", "--quiet", f"--prune={expiry}", timeout_seconds=timeout_seconds)


def _checked(name: str) -> str:
    is_wrong = ".." in name or any(part.endswith((".", ".lock")) for part in name.split("/"))
    if not _NAME.fullmatch(name) or is_wrong:
        raise ValueError(
            f"{name[:100]!r} is no name for a snapshot, letters, digits, '-', '_', '.' and '/' are"
        )
    return name


class Reader:
    """Objects of a repository, asked of one process of git."""

    def __init__(self, path: Path, questions: IO[bytes], answers: IO[bytes]) -> None:
        self._path = path
        self._questions = questions
        self._answers = answers

    def _ask(self, id: str, kind: str) -> int:
        """Return the bytes of an object, which come next."""
        with suppress(BrokenPipeError):  # git has ended, so there is no answer
            self._questions.write(f"{id}\n".encode())
            self._questions.flush()
        words = self._answers.readline().decode().split()
        if len(words) != 3 or words[1] != kind:
            raise ValueError(f"{self._path} has no {kind} {id}, or it is damaged")
        return int(words[2])

    def read(self, id: str, kind: str, max_bytes: int) -> bytes:
        """Return an object's content, which must be what its name says."""
        size = self._ask(id, kind)
        if size > max_bytes:
            raise ValueError(f"{kind} {id} of {self._path} has {size:,} bytes")
        content = self._answers.read(size + 1)[:size]
        if len(content) < size or object_id(kind, content) != id:
            raise ValueError(f"{kind} {id} of {self._path} is damaged")
        return content

    def tree(self, id: str) -> Tree:
        """Return the entries of a folder. Raises ValueError for a name that could lead out."""
        content = self.read(id, "tree", MAX_TREE_BYTES)
        entries: Tree = {}
        place = 0
        while place < len(content):
            end = content.index(b"\0", place)
            mode, _, name = content[place:end].partition(b" ")
            if name in (b"", b".", b"..") or b"/" in name or name.lower() == b".git":
                raise ValueError(f"tree {id} of {self._path} has the name {name!r}")
            place = end + 33
            entries[os.fsdecode(name)] = (_mode(int(mode, 8)), content[end + 1 : place].hex())
        return entries

    def copy(self, id: str, descriptor: int) -> None:
        """Write a file's content; ValueError if it is not what its name says."""
        left = self._ask(id, "blob")
        digest = sha256(b"blob %d\0" % left)
        while left:
            part = self._answers.read(min(left, 2**20))
            if not part:
                break
            left -= len(part)
            digest.update(part)
            _write_all(descriptor, part)
        if left or self._answers.read(1) != b"\n" or digest.hexdigest() != id:
            raise ValueError(f"blob {id} of {self._path} is damaged")


def _write_all(descriptor: int, part: bytes) -> None:
    view = memoryview(part)
    while view:
        view = view[os.write(descriptor, view) :]


def object_id(kind: str, content: bytes) -> str:
    """Return the name of an object."""
    digest = sha256(f"{kind} {len(content)}\0".encode())
    digest.update(content)
    return digest.hexdigest()


def tree_content(entries: Tree) -> bytes:
    """Return a folder as git stores it, in git's order."""
    rows = []
    for name, (mode, id) in entries.items():
        key = os.fsencode(name)
        row = b"%o %s\0%s" % (_mode(mode), key, bytes.fromhex(id))
        rows.append((key + b"/" if stat.S_ISDIR(mode) else key, row))
    rows.sort()
    return b"".join(row for _, row in rows)


def _mode(mode: int) -> int:
    """Return a mode of the system as one of a tree, and the other way round."""
    return mode ^ 0o755 if stat.S_ISDIR(mode) else mode


class Writer:
    """New objects of one snapshot, there once `finish` returns."""

    def __init__(self, repository: Repository) -> None:
        self._objects = repository.path / "objects"
        self._waiting: dict[str, tuple[str, bytes]] = {}
        self._waiting_bytes = 0
        self._pack: _Pack | None = None

    def add(self, kind: str, content: bytes) -> str:
        """Take an object; return its name."""
        id = object_id(kind, content)
        if self._pack is not None:
            self._pack.add(id, kind, content)
        elif id not in self._waiting:
            self._waiting[id] = (kind, content)
            self._waiting_bytes += len(content)
            if len(self._waiting) > _MAX_LOOSE or self._waiting_bytes > _MAX_WAITING_BYTES:
                self._pack = _Pack(self._objects / "pack")
                for one, (its_kind, its_content) in self._waiting.items():
                    self._pack.add(one, its_kind, its_content)
                self._waiting.clear()
        return id

    def finish(self) -> None:
        """Make all objects part of the repository."""
        if self._pack is not None:
            self._pack.finish()
        for id, (kind, content) in self._waiting.items():
            self._write_loose(id, kind, content)
        self._waiting.clear()

    def _write_loose(self, id: str, kind: str, content: bytes) -> None:
        path = self._objects / id[:2] / id[2:]
        with suppress(FileNotFoundError):
            if path.stat().st_size:
                os.utime(path)  # it is needed again, and so as young as a new one
                return
        temporary = self._objects / f"tmp_obj_{uuid4().hex}"
        try:
            header = f"{kind} {len(content)}\0".encode()
            with temporary.open("xb") as file:
                os.fchmod(file.fileno(), 0o400)
                file.write(zlib.compress(header + content, 1))
            path.parent.mkdir(exist_ok=True)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def abandon(self) -> None:
        """Leave nothing behind of what was not finished."""
        if self._pack is not None:
            self._pack.abandon()


class Unwritten:
    """A writer that keeps nothing: for a folder that is only read."""

    def add(self, kind: str, content: bytes) -> str:
        """Return the name of an object."""
        return object_id(kind, content)


class _Pack:
    """A pack and its index, version 2 of both, as gitformat-pack describes them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._temporary = folder / f"tmp_pack_{uuid4().hex}"
        self._file = self._temporary.open("xb+")
        self._place = self._file.write(struct.pack(">4sII", b"PACK", 2, 0))
        self._entries: dict[str, tuple[int, int]] = {}
        """CRC and place of each object"""

    def add(self, id: str, kind: str, content: bytes) -> None:
        if id in self._entries:
            return
        size = len(content)
        header = bytearray([_PACK_TYPES[kind] << 4 | size & 15])
        size >>= 4
        while size:
            header[-1] |= 128
            header.append(size & 127)
            size >>= 7
        entry = bytes(header) + zlib.compress(content, 1)
        self._entries[id] = (zlib.crc32(entry), self._place)
        self._place += self._file.write(entry)

    def finish(self) -> None:
        file, count = self._file, len(self._entries)
        file.seek(8)
        file.write(struct.pack(">I", count))
        file.seek(0)
        digest = sha256()
        while part := file.read(2**20):
            digest.update(part)
        file.write(digest.digest())
        file.flush()
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), 0o400)
        file.close()
        name = f"pack-{digest.hexdigest()}"
        index = self._temporary.with_name(f"tmp_idx_{uuid4().hex}")
        try:
            with index.open("xb") as rows:
                os.fchmod(rows.fileno(), 0o400)
                rows.write(self._index(digest.digest()))
                rows.flush()
                os.fsync(rows.fileno())
            self._temporary.replace(self._folder / f"{name}.pack")
            index.replace(self._folder / f"{name}.idx")  # last: git looks for indexes
        finally:
            index.unlink(missing_ok=True)

    def _index(self, pack_digest: bytes) -> bytes:
        ids = sorted(self._entries)
        counts = [0] * 256
        for id in ids:
            counts[int(id[:2], 16)] += 1
        total = 0
        for first in range(256):
            total += counts[first]
            counts[first] = total
        places = [self._entries[id][1] for id in ids]
        large = [place for place in places if place >= 2**31]
        numbers = iter(range(len(large)))
        short = [2**31 | next(numbers) if place >= 2**31 else place for place in places]
        index = b"".join(
            [
                struct.pack(">4sI256I", b"\xfftOc", 2, *counts),
                *map(bytes.fromhex, ids),
                struct.pack(f">{len(ids)}I", *(self._entries[id][0] for id in ids)),
                struct.pack(f">{len(ids)}I", *short),
                struct.pack(f">{len(large)}Q", *large),
                pack_digest,
            ]
        )
        return index + sha256(index).digest()

    def abandon(self) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)
