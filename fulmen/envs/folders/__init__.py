"""Tasks that are folders, as Harbor has them: a text, files, tests that write a reward."""

from fulmen.envs.folders.environment import Folders
from fulmen.envs.folders.task import FolderTask

__all__ = ["FolderTask", "Folders"]
