"""Tool use: a database, tools over it, rules, and a user who wants something, perhaps too much."""

from fulmen.envs.tools.environment import ToolUse
from fulmen.envs.tools.task import ToolTask

__all__ = ["ToolTask", "ToolUse"]
