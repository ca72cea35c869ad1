"""Mounts of a sandbox: which part of the host is seen inside, where, and what cannot be changed.

Everything is absent but what is put here. The order matters: the system, private folders in memory,
what the caller gave (a folder in a folder after it), and last what must not change in there. The
supervisor checks every mount of the last kind before the first command (`held`).
"""

import contextlib
import errno
import os
import re
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fulmen.sandbox.access import GITS_OWN, MAY_APPEAR, Access, Limits
from fulmen.sandbox.left import Record, settle_left
from fulmen.sandbox.own import check_not_ours, ours_below
from fulmen.sandbox.protection import Links, Placeholders, git_folders
from fulmen.sandbox.repositories import Repositories
from fulmen.sandbox.survey import gathered, survey

HOME: Final = Path("/home/agent")
OWN: Final = Path("/run/fulmen")
"""Our own files inside"""
OWN_FILES: Final = (
    *("wire", "kernel", "processes", "output", "shell", "globs", "file_work", "supervisor"),
)
_SYSTEM: Final = tuple(
    Path(name)
    for name in (
        *("/usr", "/etc", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"),
        *("/nix/store", "/gnu/store"),
    )
)
_PRIVATE: Final = tuple(Path(name) for name in ("/tmp", "/var/tmp", "/dev/shm", "/run"))
_KERNEL: Final = tuple(Path(name) for name in ("/proc", "/sys", "/dev"))
_MAX_PRIVATE: Final = 20_000
"""Most files of a folder of the system that are looked at for private ones"""
_PARTS_OF_A_PREFIX: Final = ("lib", "lib64", "libexec")


@dataclass(slots=True)
class Mounts:
    """Mounts as bubblewrap's arguments, and what has to be known about them."""

    workspace: Path
    """As seen inside"""
    arguments: list[str] = field(default_factory=list)
    held: list[tuple[str, int, int]] = field(default_factory=list)
    """Paths inside that must be read-only, with device and inode of what must be there"""
    hidden: list[str] = field(default_factory=list)
    """Paths inside at which there is only an empty folder of ours"""
    tmpfs: list[str] = field(default_factory=list)
    private: list[Path] = field(default_factory=list)
    """Paths of the system that are hidden, since not every user may read them"""
    path: list[str] = field(default_factory=list)
    """Folders in which commands are looked for"""
    variables: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    placeholders: Placeholders = field(default_factory=Placeholders)
    links: Links = field(default_factory=Links)
    repositories: Repositories = field(default_factory=Repositories)
    record: Record | None = None

    def bind(self, source: Path, place: Path, *, is_writable: bool = False) -> None:
        self.arguments += ["--bind" if is_writable else "--ro-bind", str(source), str(place)]

    def hold(self, source: Path, place: Path) -> None:
        """Make a path read-only, whatever lies around it."""
        status = source.lstat()
        self.bind(source, place)
        self.held.append((str(place), status.st_dev, status.st_ino))

    def settle(self) -> list[str]:
        """Leave the folders as they were, once all inside is dead; return a sentence for each thing
        that was put right."""
        notes = self.links.restore()
        self.repositories.known |= self.links.identities()
        self.links.close()
        notes += self.repositories.settle()
        if self.record is not None:
            self.record.remove()
        self.placeholders.release()
        return notes

    def memory(self, place: Path, size: int) -> None:
        self.arguments += ["--perms", "1777", "--size", str(size), "--tmpfs", str(place)]
        self.tmpfs.append(str(place))


@dataclass(frozen=True, slots=True)
class _Root:
    """A part of the host that the caller gives."""

    source: Path
    place: Path
    is_writable: bool

    def seen(self, path: Path) -> Path:
        return self.place / path.relative_to(self.source)


def plan_mounts(access: Access, limits: Limits, *, search_path: str) -> Mounts:
    """Look at the host and return what to mount; placeholders then stand in the writable folders.

    search_path  the caller's PATH

    Raises ValueError for a folder that cannot be given.
    """
    roots = _roots(access)
    mounts = Mounts(workspace=roots[0].place)
    if access.records is not None:
        mounts.notes += settle_left(access.records, [root.source for root in roots])
    try:
        _add_system(mounts, access)
        share = limits.memory_bytes // 4
        for place, size in ((Path("/tmp"), share), (HOME, share), (Path("/dev/shm"), share)):
            mounts.memory(place, size)
        for place in (Path("/var/tmp"), Path("/run")):
            mounts.memory(place, min(share, 2**26))
        _add_tools(mounts, search_path)
        for root in _given_mounts(roots):
            mounts.bind(root.source, root.place, is_writable=root.is_writable)
        for root in roots:  # all of them first: a folder may be seen at two places
            if root.is_writable:
                _hold_absent(mounts, root, access.protected)
        for root in roots:
            _hold_in(mounts, root, access, roots)
            _hold_ours(mounts, root)
        for prefix in _interpreter():
            if any(root.is_writable and prefix.is_relative_to(root.source) for root in roots):
                mounts.bind(prefix, prefix)
        for name in (*(f"{one}.py" for one in OWN_FILES), "__pycache__"):
            source = Path(__file__).with_name(name)
            if source.exists():
                mounts.bind(source, OWN / "fulmen/sandbox" / name)
        for path in access.hidden:
            _hide(mounts, Path(os.path.realpath(path)))
        if access.records is not None and mounts.repositories.roots:
            mounts.record = Record(access.records, mounts.repositories)
    except BaseException:
        mounts.links.close()
        mounts.placeholders.release()
        raise
    return mounts


def check_access(access: Access) -> None:
    """Raise ValueError for a folder that cannot be given, before anything is done with it."""
    _roots(access)


def _hide(mounts: Mounts, path: Path) -> None:
    if path.is_dir():
        mounts.arguments += ["--perms", "0755", "--tmpfs", str(path), "--remount-ro", str(path)]
    elif path.exists():
        mounts.bind(Path("/dev/null"), path)


def _roots(access: Access) -> list[_Root]:
    """Return the workspace and the other folders given, as they really are."""
    folder = _given(access.folder, must_be_folder=True)
    is_writable = not access.is_read_only
    roots = [_Root(folder, access.seen_as or folder, is_writable)]
    for path in access.writable:
        real = _given(path, must_be_folder=True)
        roots.append(_Root(real, access.seen_at.get(path, real), is_writable))
    for path in access.readable:
        real = _given(path, must_be_folder=False)
        roots.append(_Root(real, access.seen_at.get(path, real), False))
    places = [root.place for root in roots]
    for place in places:
        _check_place(place)
        if places.count(place) > 1:
            raise ValueError(f"{place} is given to the sandbox twice")
    for root in roots:
        if root.is_writable:
            check_not_ours(root.source)
    return roots


def _given(path: Path, *, must_be_folder: bool) -> Path:
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be given to a sandbox: {error}") from None
    if not (stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and not must_be_folder)):
        raise ValueError(f"{path} is no folder, a sandbox needs one there")
    return real


def _check_place(place: Path) -> None:
    """Raise for a folder that has the system, private folders or a whole home in it."""
    for other in (*_SYSTEM, *_PRIVATE, *_KERNEL, HOME, OWN, _home()):
        if other.is_relative_to(place):
            raise ValueError(f"{place} is too much for a sandbox, it contains {other}")
    for other in (*_KERNEL, OWN):
        if place.is_relative_to(other) and not place.is_relative_to("/dev/shm"):
            raise ValueError(f"{place} is the kernel's, a sandbox has its own there")


def _home() -> Path:
    return Path(os.path.realpath(Path.home()))


def _add_system(mounts: Mounts, access: Access) -> None:
    """Add what every user of the machine may read of the system."""
    for folder in _SYSTEM:
        if folder.is_symlink():
            mounts.arguments += ["--symlink", os.readlink(folder), str(folder)]
        elif folder.is_dir():
            mounts.bind(folder, folder)
    if not _hide_private(mounts, Path("/etc")):
        raise ValueError("/etc has too many files to look for private ones")
    # What is installed by hand may be private too; only root could read it.
    if os.geteuid() == 0 and not _hide_private(mounts, Path("/usr/local")):
        mounts.notes.append("/usr/local has too many files to hide those that only root may read")
    mounts.arguments += ["--proc", "/proc", "--dev", "/dev"]
    # Its owner may write to much of /proc, and read more, without any of the powers of root: for
    # root's sandboxes that would be the settings of the kernel.
    with os.scandir("/proc") as entries:
        files = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
    for entry in files:
        if not entry.stat(follow_symlinks=False).st_mode & stat.S_IROTH:
            mounts.bind(Path("/dev/null"), Path(entry.path))
    mounts.arguments += ["--remount-ro", "/proc"]
    names = Path("/etc/resolv.conf")
    real = Path(os.path.realpath(names))
    if access.has_network and real.is_file() and not real.is_relative_to("/etc"):
        mounts.bind(real, real)


def _hide_private(mounts: Mounts, root: Path) -> bool:
    """Hide what not every user may read: root may, or a member of the right group, and so might a
    process inside. Return whether all of it was looked at."""
    room = _MAX_PRIVATE
    for folder_name, folders, files in os.walk(root):
        room -= len(folders) + len(files)
        for name in (*folders, *files):
            path = Path(folder_name, name)
            try:
                mode = path.lstat().st_mode
            except OSError:
                continue
            is_folder = stat.S_ISDIR(mode)
            if stat.S_ISLNK(mode) or mode & (stat.S_IXOTH if is_folder else stat.S_IROTH):
                continue
            mounts.private.append(path)
            if is_folder:
                folders.remove(name)
                hide = ["--perms", "0000", "--tmpfs", str(path), "--remount-ro", str(path)]
                mounts.arguments += hide
            else:
                mounts.bind(Path("/dev/null"), path)
        if room < 0:
            return False
    return True


def _add_tools(mounts: Mounts, search_path: str) -> None:
    """Add folders of commands that lie elsewhere than the system's, with what belongs to them."""
    home = _home()
    added: set[Path] = set()
    for name in search_path.split(os.pathsep):
        folder = Path(os.path.normpath(name or "."))
        if not folder.is_absolute() or not os.access(folder, os.R_OK | os.X_OK):
            continue
        if any(folder.is_relative_to(one) for one in (*_PRIVATE, *_KERNEL)):
            continue
        if str(folder) not in mounts.path:
            mounts.path.append(str(folder))
        if any(folder.is_relative_to(one) for one in _SYSTEM):
            continue
        prefix = _prefix(folder, home)
        if any(one.is_relative_to(prefix) for one in (*_SYSTEM, *_KERNEL, home)):
            mounts.path.remove(str(folder))  # a whole home, for example
            continue
        added.add(prefix)
        if folder == home / ".cargo/bin" and (home / ".rustup").is_dir():
            added.add(home / ".rustup")
            mounts.variables["RUSTUP_HOME"] = str(home / ".rustup")
    for prefix in sorted({*added, *_interpreter(), *_environment()}):
        mounts.bind(prefix, prefix)
    mounts.path += [one for one in ("/usr/local/bin", "/usr/bin", "/bin") if one not in mounts.path]


def _prefix(folder: Path, home: Path) -> Path:
    """Return the installation that a folder of commands belongs to, or only the folder."""
    parent = folder.parent
    if folder.name not in ("bin", "shims") or parent == home / ".local":
        return folder
    return parent if any((parent / name).is_dir() for name in _PARTS_OF_A_PREFIX) else folder


def _interpreter() -> list[Path]:
    """Return where the Python lies that runs the supervisor, if not in the system."""
    prefixes = {Path(sys.base_prefix), Path(os.path.realpath(sys.base_prefix))}
    return sorted(
        prefix for prefix in prefixes if not any(prefix.is_relative_to(one) for one in _SYSTEM)
    )


def _environment() -> list[Path]:
    """Return the virtual environment that runs us, whose commands may be on the search path."""
    return [Path(sys.prefix)] if sys.prefix != sys.base_prefix else []


def _hold_ours(mounts: Mounts, root: _Root) -> None:
    """Hold what this process runs from and is told by, which would hold on the host."""
    if not root.is_writable:
        return
    for reason, paths in ours_below(root.source):
        for path in paths:
            mounts.hold(path, root.seen(path))
        _note(mounts, root, paths, reason)


def _given_mounts(roots: list[_Root]) -> list[_Root]:
    """Return the folders that are given, the outer ones first, and among them those above a path
    that is held for where it is: what is a mount itself cannot be renamed."""
    found = {root.place: root for root in roots}
    for root in (one for one in roots if one.is_writable and one.source.is_dir()):
        ours = [path for _, paths in ours_below(root.source) for path in paths]
        inner = [one.place for one in roots if root.place in one.place.parents]
        for path in (*ours, *_hooks(root.source)):
            for folder in path.parents:
                place = root.seen(folder) if root.source in folder.parents else root.place
                if not any(place.is_relative_to(one) for one in inner):
                    found.setdefault(place, _Root(folder, place, True))
    return sorted(found.values(), key=lambda one: len(one.place.parts))


def _hold_absent(mounts: Mounts, root: _Root, names: tuple[str, ...]) -> None:
    for name in (name for name in names if name not in MAY_APPEAR):
        path = root.source / name
        try:
            if mounts.placeholders.hold(path):
                mounts.hidden.append(str(root.seen(path)))
        except OSError as error:  # where we cannot create anything, nobody inside can
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise


def _hold_in(mounts: Mounts, root: _Root, access: Access, roots: list[_Root]) -> None:
    """Add what must not change below a folder that was given."""
    if not root.source.is_dir():
        return
    found = survey(root.source, access.protected if root.is_writable else ())
    for socket in gathered(found.sockets, root.source):
        if socket in found.sockets:
            mounts.bind(Path("/dev/null"), root.seen(socket))
        else:
            mounts.arguments += ["--tmpfs", str(root.seen(socket))]
            mounts.notes.append(f"{root.seen(socket)} is hidden, it has many sockets")
    if not root.is_writable:
        return
    held = [*found.protected, *found.shared, *found.unseen]
    if GITS_OWN in access.protected:
        held += (path for path in found.settings if not path.is_symlink())
    for pointer in (path for path in found.protected if path.name == GITS_OWN):
        for folder in git_folders(pointer):
            if folder.is_relative_to(root.source):
                held.append(folder)
            elif not any(folder.is_relative_to(one.source) for one in roots):
                mounts.bind(folder, folder)
    held += _hooks(root.source)
    for path in gathered(sorted(set(held)), root.source):
        mounts.hold(path, root.seen(path))
        if path not in held:
            mounts.notes.append(f"{root.seen(path)} is read-only, much in it must not change")
    _note(mounts, root, found.shared, "has another name (hard link) outside")
    _note(mounts, root, found.unseen, "was not looked into: it is closed, too deep or too much")
    for link in (*found.links, *(path for path in found.settings if path.is_symlink())):
        mounts.links.hold(link)
    if GITS_OWN in access.protected:
        mounts.repositories.known |= found.repositories
        mounts.repositories.bare |= found.bare
        for folder in found.unseen:
            status = folder.lstat()
            mounts.repositories.closed.add((status.st_dev, status.st_ino))
        mounts.repositories.roots.append(root.source)


def _hooks(folder: Path) -> list[Path]:
    """Return the folder of hooks that a repository names outside its `.git`."""
    with contextlib.suppress(OSError):
        text = (folder / GITS_OWN / "config").read_text(errors="replace")
        for value in re.findall(r"^\s*hooksPath\s*=\s*(\S.*?)\s*$", text[: 2**20], re.M | re.I):
            path = Path(os.path.realpath(folder / value.strip('"')))
            if path.is_dir() and path != folder and path.is_relative_to(folder):
                return [path]
    return []


def _note(mounts: Mounts, root: _Root, paths: list[Path], reason: str) -> None:
    if paths:
        shown = ", ".join(str(root.seen(path)) for path in sorted(paths)[:5])
        more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
        mounts.notes.append(f"read-only, because it {reason}: {shown}{more}")
