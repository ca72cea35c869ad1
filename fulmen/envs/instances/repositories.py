"""Repositories of instances in a folder of the caller's: clones, or trees at their commit.

    FOLDER/INSTANCE_ID    the files at the base commit
    FOLDER/OWNER__NAME    a clone, bare or not, that has the commit; or FOLDER/OWNER/NAME

Of a clone only the objects are read, never its settings. No history gets to the agent.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from fulmen.envs.instances.git import write_tree
from fulmen.envs.instances.instance import Instance
from fulmen.envs.left import copy_left

GIT: Final = frozenset({".git"})


class Trees(Protocol):
    """Source of the files of instances."""

    def write(self, instance: Instance, place: Path) -> None:
        """Write the files of an instance, as an agent finds them, into an empty folder. Raises
        ValueError if they are not there."""


@dataclass(frozen=True, slots=True)
class Repositories:
    """A folder with repositories."""

    folder: Path

    def write(self, instance: Instance, place: Path) -> None:
        """Write the files of an instance at its commit into an empty folder. Raises ValueError if
        they are not there."""
        tree = self.folder / instance.instance_id
        if tree.is_dir():
            if not copy_left(tree, place, without=GIT):
                raise ValueError(f"{tree} has too many files, or too large ones")
            return
        owner, _, name = instance.repo.partition("/")
        clones = (self.folder / f"{owner}__{name}", self.folder / owner / name)
        for clone in clones:
            for git_folder in (clone / ".git", clone):
                if (git_folder / "objects").is_dir() and (git_folder / "HEAD").is_file():
                    place.mkdir(parents=True, exist_ok=True)
                    write_tree(git_folder.resolve(), instance.base_commit, place)
                    return
        raise ValueError(
            f"{self.folder} has no repository for {instance.instance_id}: a clone {clones[0].name} "
            f"is needed, or the files at commit {instance.base_commit[:12]} in {tree.name}"
        )
