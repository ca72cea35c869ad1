"""Folders so deep that no path reaches their end."""

import os
from pathlib import Path


def make_deep(folder: Path, name: str, depth: int) -> None:
    """Make folders of one name, each in the one before."""
    place = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=place)
        below = os.open(name, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
