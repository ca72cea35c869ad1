"""Issues of a file in SWE-bench's format as an environment."""

import os
from pathlib import Path

from fulmen.envs.instances.instance import read_instances
from fulmen.envs.instances.repositories import Repositories
from fulmen.envs.instances.task import InstanceTask
from fulmen.files import shorten
from fulmen.sandbox import Limits


class Instances:
    """Instances of a JSONL file, in its order, with a folder of their repositories."""

    def __init__(
        self,
        path: Path,
        repositories: Path,
        *,
        profile: str = "coding",
        limits: Limits | None = None,
    ) -> None:
        """limits: of the tests; ten minutes and 4 GiB if omitted"""
        if profile not in ("coding", "minimal"):
            raise ValueError(f"profile is {profile}, it must be coding or minimal")
        if not os.path.isdir(repositories):  # unlike a Path's, it takes names that no file can have
            found = shorten(repositories)
            raise ValueError(f"{found} is no folder, one with repositories is needed")
        self.instances = tuple(read_instances(path))
        self._path = path
        self._repositories = Repositories(repositories.resolve())
        self._profile = profile
        self._limits = limits
        self._sound: set[str] = set()

    @property
    def num_tasks(self) -> int:
        """Number of instances."""
        return len(self.instances)

    def task(self, index: int) -> InstanceTask:
        """Return the issue of that line, counted from 0."""
        if not 0 <= index < len(self.instances):
            known = len(self.instances)
            raise ValueError(f"task {index} was asked for, {self._path} has {known}")
        return InstanceTask(
            self.instances[index],
            self._repositories,
            profile=self._profile,
            limits=self._limits,
            sound=self._sound,
        )
