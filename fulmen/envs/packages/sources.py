"""Sources of packages: downloaded once, checked, and kept unpacked in the cache."""

import os
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from fulmen.catalog import cache_folder, fetch_sdist
from fulmen.envs.left import copy_left
from fulmen.envs.packages.manifest import Package
from fulmen.files import shorten

_MAX_BYTES: Final = 2**27


def package_folder(package: Package) -> Path:
    """Return the folder of a package's sources, as they were published; pip downloads them at
    first. Raises ValueError if it cannot, or if the sources are others."""
    place = cache_folder() / "packages" / f"{package.name}-{package.version}-{package.sha256[:16]}"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".new-") as folder:
            requirement = f"{package.name}=={package.version}"
            archive = fetch_sdist(requirement, Path(folder), sha256=package.sha256)
            _unpack(archive, Path(folder) / "unpacked", place)
    return place


def copy_package(package: Package, folder: Path) -> None:
    """Write the files of a package into an empty folder. Raises ValueError as `package_folder`."""
    if not copy_left(package_folder(package), folder):
        raise ValueError(f"{package.name} {package.version} has too many files, or too large ones")


def _unpack(archive: Path, folder: Path, place: Path) -> None:
    """Unpack an archive into a new folder, and put the one folder in it in its place."""
    try:
        with tarfile.open(archive) as file:
            if sum(one.size for one in file) > _MAX_BYTES:
                raise ValueError(f"{archive.name} has more than {_MAX_BYTES:,} bytes unpacked")
            file.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{archive.name} cannot be unpacked: {shorten(error)}") from None
    found = list(folder.iterdir())
    if len(found) != 1:
        raise ValueError(f"{archive.name} has {len(found)} folders, one is needed")
    try:
        os.rename(found[0], place)
    except OSError:  # another process was faster
        if not place.is_dir():
            raise
