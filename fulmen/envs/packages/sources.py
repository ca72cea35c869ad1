"""Sources of packages: downloaded once, checked, and kept unpacked in the cache."""

import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from fulmen.catalog.download import cache_folder, fetch_sdist
from fulmen.envs.left import copy_left
from fulmen.envs.packages.manifest import Package
from fulmen.files import shorten

_MAX_BYTES: Final = 2**27


def package_folder(package: Package) -> Path:
    """Return the folder of a package's sources, as they were published; pip downloads them at
    first. Raises ValueError if it cannot, or if the sources are others."""
    place = cache_folder() / "packages" / f"{package.name}-{package.version}-{package.sha256[:16]}"
    if not place.is_dir():
        requirement = f"{package.name}=={package.version}"
        archive = fetch_sdist(requirement, place.with_suffix(".sdist"), sha256=package.sha256)
        _unpack(archive, place)
        archive.unlink()
    return place


def copy_package(package: Package, folder: Path) -> None:
    """Write the files of a package into an empty folder. Raises ValueError as `package_folder`."""
    if not copy_left(package_folder(package), folder):
        raise ValueError(f"{package.name} {package.version} has too many files, or too large ones")


def _unpack(archive: Path, place: Path) -> None:
    """Unpack the one folder of an archive, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".unpack-") as folder:
        try:
            with tarfile.open(archive) as file:
                if sum(one.size for one in file) > _MAX_BYTES:
                    raise ValueError(f"{archive.name} has more than {_MAX_BYTES:,} bytes unpacked")
                file.extractall(folder, filter="data")
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{archive.name} cannot be unpacked: {shorten(error)}") from None
        found = list(Path(folder).iterdir())
        if len(found) != 1:
            raise ValueError(f"{archive.name} has {len(found)} folders, one is needed")
        try:
            os.rename(found[0], place)
        except OSError:  # another process was faster
            if not place.is_dir():
                raise
            shutil.rmtree(found[0])
