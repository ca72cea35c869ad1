"""Puzzles of words, numbers, places and times."""

from fulmen.envs.logic.kinds.texts.boolean_expressions import BOOLEAN_EXPRESSIONS
from fulmen.envs.logic.kinds.texts.buggy_tables import BUGGY_TABLES
from fulmen.envs.logic.kinds.texts.cipher import CIPHER
from fulmen.envs.logic.kinds.texts.cryptarithm import CRYPTARITHM
from fulmen.envs.logic.kinds.texts.dyck_language import DYCK_LANGUAGE
from fulmen.envs.logic.kinds.texts.dyck_language_errors import DYCK_LANGUAGE_ERRORS
from fulmen.envs.logic.kinds.texts.game_of_24 import GAME_OF_24
from fulmen.envs.logic.kinds.texts.math_path import MATH_PATH
from fulmen.envs.logic.kinds.texts.object_counting import OBJECT_COUNTING
from fulmen.envs.logic.kinds.texts.object_properties import OBJECT_PROPERTIES
from fulmen.envs.logic.kinds.texts.operation import OPERATION
from fulmen.envs.logic.kinds.texts.space_reasoning import SPACE_REASONING
from fulmen.envs.logic.kinds.texts.space_reasoning_tree import SPACE_REASONING_TREE
from fulmen.envs.logic.kinds.texts.time_sequence import TIME_SEQUENCE
from fulmen.envs.logic.kinds.texts.web_of_lies import WEB_OF_LIES
from fulmen.envs.logic.kinds.texts.word_sorting import WORD_SORTING

__all__ = [
    "BOOLEAN_EXPRESSIONS",
    "BUGGY_TABLES",
    "CIPHER",
    "CRYPTARITHM",
    "DYCK_LANGUAGE",
    "DYCK_LANGUAGE_ERRORS",
    "GAME_OF_24",
    "MATH_PATH",
    "OBJECT_COUNTING",
    "OBJECT_PROPERTIES",
    "OPERATION",
    "SPACE_REASONING",
    "SPACE_REASONING_TREE",
    "TIME_SEQUENCE",
    "WEB_OF_LIES",
    "WORD_SORTING",
]
