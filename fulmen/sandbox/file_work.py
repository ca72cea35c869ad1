"""File work of the tools, done inside the sandbox, where the kernel's mounts decide what a path is.

Runs inside, in a child of the first process, with nothing but the standard library: whatever it
meets (an endless file, a pathological pattern) its time and memory are limited like a command's. A
symbolic link leads where it leads for commands too, so no path is ever judged by its spelling.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from typing import Any, Final

from fulmen.sandbox.globs import glob_matcher
from fulmen.sandbox.wire import MAX_BODY_BYTES

MAX_LISTING_BYTES: Final = 2**20
"""Longest text of a listing or of the matches of a search"""
MAX_LINE: Final = 500
"""Most characters of a line that a search shows"""
MAX_SEARCHED_BYTES: Final = 32 * 2**20
"""Largest file that is searched"""
_KINDS: Final = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}

Answer = tuple[dict[str, object], bytes]


def answer(request: dict[str, Any], content: bytes, workspace: str, hidden: set[str]) -> Answer:
    """Do one request and return the answer's header and bytes.

    hidden  paths that stand for nothing: empty folders in the place of protected names

    Raises OSError as the system gives it, ValueError for what the system would not refuse.
    """
    path = os.path.join(workspace, request["path"])
    if "\0" in path:
        raise ValueError("a path cannot hold a null character")
    match request["do"]:
        case "read":
            return _read(path, request["offset"], request["max_bytes"])
        case "write":
            return _write(path, content, request["expected"])
        case "stat":
            return _stat(path)
        case "list":
            found = _walk(os.path.realpath(path), request["depth"], hidden)
            if request["glob"]:
                matches = glob_matcher(request["glob"])
                found = (row for row in found if row[1] != "folder" and matches(str(row[0])))
            return _listed(found, request["max_entries"])
        case "search":
            found = _matches(os.path.realpath(path), request, hidden)
            return _listed(found, request["max_matches"])
        case other:
            raise ValueError(f"there is no file work called {other}")


def _read(path: str, offset: int, max_bytes: int) -> Answer:
    descriptor = _open_regular(path)
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        real = os.readlink(f"/proc/self/fd/{descriptor}")
        if offset:
            file.seek(offset)
        content = _read_up_to(descriptor, min(max_bytes, MAX_BODY_BYTES))
        is_whole = not offset and (len(content) < max_bytes or len(content) == status.st_size)
    header: dict[str, object] = {
        "size": max(status.st_size, offset + len(content)),
        "sha256": hashlib.sha256(content).hexdigest() if is_whole else "",
        "real": _text(real),
    }
    return header, content


def _open_regular(path: str) -> int:
    """Open a regular file: nothing that waits for another process, nothing that acts on opening."""
    _check_regular(os.stat(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _check_regular(os.fstat(descriptor))  # it may have been swapped meanwhile
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if kind != stat.S_IFREG:
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise ValueError(f"it is {kinds.get(kind, 'a device')}, a regular file is needed")


def _read_up_to(descriptor: int, limit: int) -> bytes:
    content = bytearray()
    while len(content) < limit:
        piece = os.read(descriptor, min(limit - len(content), 2**20))
        if not piece:
            break
        content += piece
    return bytes(content)


def _write(path: str, content: bytes, expected: str | None) -> Answer:
    """Write a file whole: the old one stays until the new one is on disk under its name.

    expected  SHA-256 of what must be there now, "" for nothing, None for anything
    """
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    mode = 0o666 & ~_umask()
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(target)
        _check_regular(status)
        mode = status.st_mode & 0o777
        # A rename asks only the folder; a file that is read-only itself must stay.
        os.close(os.open(target, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{secrets.token_hex(8)}.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        if expected is not None and _digest(target) != expected:
            raise OSError(errno.EAGAIN, "the file has changed since it was read")
        os.rename(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fsync(descriptor)
        os.close(descriptor)
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}, b""


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _digest(path: str) -> str:
    """Return a file's SHA-256, "" if there is none."""
    try:
        descriptor = _open_regular(path)
    except FileNotFoundError:
        return ""
    with open(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stat(path: str) -> Answer:
    status = os.lstat(path)
    header: dict[str, object] = {
        "type": _KINDS.get(stat.S_IFMT(status.st_mode), "other"),
        "size": status.st_size,
        "mode": stat.S_IMODE(status.st_mode),
        "modified": status.st_mtime,
        "target": _text(os.readlink(path)) if stat.S_ISLNK(status.st_mode) else "",
    }
    return header, b""


def _walk(root: str, depth: int, hidden: set[str]) -> Iterator[list[object]]:
    """Yield path, kind and size of all below a folder, each folder right before what is in it."""
    folders = [iter(_entries(root))]
    while folders:
        entry = next(folders[-1], None)
        if entry is None:
            folders.pop()
        elif entry.path not in hidden:
            size, kind = 0, "other"
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                size, kind = status.st_size, _KINDS.get(stat.S_IFMT(status.st_mode), "other")
            yield [_text(os.path.relpath(entry.path, root)), kind, size if kind == "file" else 0]
            if kind == "folder" and len(folders) < depth:
                with contextlib.suppress(OSError):
                    folders.append(iter(_entries(entry.path)))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: entry.name)


def _matches(root: str, request: dict[str, Any], hidden: set[str]) -> Iterator[list[object]]:
    """Yield path, line number and line of every line in which a regular expression is found. A
    path begins like the one that was asked for."""
    asked = request["path"]
    matches = glob_matcher(request["glob"]) if request["glob"] else None
    flags = re.IGNORECASE if request["is_case_ignored"] else 0
    try:
        pattern = re.compile(request["pattern"], flags)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"the pattern is no regular expression: {error}") from None
    for path in _searched(root, hidden):
        name = os.path.relpath(path, root) if path != root else os.path.basename(root)
        if matches is not None and not matches(_text(name)):
            continue
        shown = os.path.normpath(os.path.join(asked, name) if path != root else asked)
        try:
            descriptor = _open_regular(path)
        except (OSError, ValueError):
            continue
        with open(descriptor, "rb", buffering=0):
            if os.fstat(descriptor).st_size > MAX_SEARCHED_BYTES:
                continue
            content = _read_up_to(descriptor, MAX_SEARCHED_BYTES)
        if b"\0" in content[:8192]:  # no text
            continue
        for number, line in enumerate(content.decode(errors="replace").split("\n"), 1):
            line = line.removesuffix("\r")
            if pattern.search(line):
                yield [_text(shown), number, line[:MAX_LINE]]


def _searched(root: str, hidden: set[str]) -> Iterator[str]:
    """Yield the regular files of a tree, none in `.git` or behind a link; or the one file."""
    if not stat.S_ISDIR(os.stat(root).st_mode):
        yield root
        return
    folders = [root]
    while folders:
        with contextlib.suppress(OSError):
            entries = _entries(folders.pop())
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    yield entry.path
            for entry in reversed(entries):
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_folder and entry.name != ".git" and entry.path not in hidden:
                    folders.append(entry.path)


def _listed(rows: Iterator[list[object]], limit: int) -> Answer:
    """Return the first rows as JSON, and whether there are more."""
    texts: list[str] = []
    size = 0
    for row in rows:
        text = json.dumps(row)
        size += len(text) + 1
        if len(texts) == limit or size > MAX_LISTING_BYTES:
            return {"is_cut": True}, _rows(texts)
        texts.append(text)
    return {"is_cut": False}, _rows(texts)


def _rows(texts: list[str]) -> bytes:
    return f'{{"rows": [{",".join(texts)}]}}'.encode()


def _text(name: str) -> str:
    """Return a file's name as Unicode: bytes that are none become U+FFFD."""
    return os.fsencode(name).decode(errors="replace")
