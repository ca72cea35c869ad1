"""Folders of tasks as an environment: those that can be played, and why others cannot."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from fulmen.envs.folders.description import read_description
from fulmen.envs.folders.task import FolderTask
from fulmen.files import shorten


class Folders:
    """The task of a folder, or of each folder in it, in order of names.

    A folder of several may have some that cannot be played here: `refused` has their names, each
    with a sentence.
    """

    def __init__(self, path: Path, *, profile: str = "coding") -> None:
        if profile not in ("coding", "minimal"):
            raise ValueError(f"profile is {profile}, it must be coding or minimal")
        if not os.path.isdir(path):
            raise ValueError(f"{shorten(path)} is no folder, one with tasks is needed")
        is_one = (path / "task.toml").exists()
        found = [path] if is_one else sorted(one.parent for one in path.glob("*/task.toml"))
        refused, self._descriptions = dict[str, str](), []
        for one in found:
            try:
                self._descriptions.append(read_description(one.resolve()))
            except ValueError as error:
                if is_one:
                    raise
                refused[one.name] = str(error)
        if not self._descriptions:
            reason = f"; {next(iter(refused.values()))}" if refused else ""
            raise ValueError(f"{path} has no task that can be played here{reason}")
        if refused:
            logging.getLogger(__name__).warning(
                "%s: %d of %d tasks cannot be played here, the first one since %s",
                *(path, len(refused), len(found), next(iter(refused.values()))),
            )
        self.refused: Mapping[str, str] = refused
        self._path = path
        self._profile = profile

    @property
    def num_tasks(self) -> int:
        """Number of tasks that can be played."""
        return len(self._descriptions)

    def task(self, index: int) -> FolderTask:
        """Return the task of that folder, counted from 0."""
        if not 0 <= index < len(self._descriptions):
            known = len(self._descriptions)
            raise ValueError(f"task {index} was asked for, {self._path} has {known}")
        return FolderTask(self._descriptions[index], tools_profile=self._profile)
