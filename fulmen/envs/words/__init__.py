"""Word problems: stories of one to five steps with an answer in one promised form."""

from fulmen.envs.words.environment import WordProblems, WordTask

__all__ = ["WordProblems", "WordTask"]
