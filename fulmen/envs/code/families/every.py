"""All families of problems, by name."""

from collections.abc import Mapping
from typing import Final

from fulmen.envs.code.families.graphs import GROUPS, ROADS, TREES, WORK
from fulmen.envs.code.families.lists import CHUNKS, ORDER, PAIR_SUMS, RECORDS, RISES, WINDOWS
from fulmen.envs.code.families.numbers import BASES, COINS, DIGITS, DIVISORS, SEQUENCE
from fulmen.envs.code.families.parsing import BRACKETS, FORMULAS, SETTINGS, TIMES
from fulmen.envs.code.families.simulation import CELLS, CIRCLE, MACHINE, QUEUE, ROBOT, TABLES
from fulmen.envs.code.families.spans import GAPS, MERGE, OVERLAPS
from fulmen.envs.code.families.strings import (
    ANAGRAMS,
    COLUMNS,
    LETTER_RUNS,
    LETTER_SHIFT,
    MIRRORS,
    WORD_COUNTS,
)
from fulmen.envs.code.families.tables import LEDGER, PLACES, STOCK, VOTES
from fulmen.envs.code.problem import Family

FAMILIES: Final[Mapping[str, Family]] = {
    family.name: family
    for family in (
        *(ANAGRAMS, BASES, BRACKETS, CELLS, CHUNKS, CIRCLE, COINS, COLUMNS, DIGITS, DIVISORS),
        *(FORMULAS, GAPS, GROUPS, LEDGER, LETTER_RUNS, LETTER_SHIFT, MACHINE, MERGE, MIRRORS),
        *(ORDER, OVERLAPS, PAIR_SUMS, PLACES, QUEUE, RECORDS, RISES, ROADS, ROBOT, SEQUENCE),
        *(SETTINGS, STOCK, TABLES, TIMES, TREES, VOTES, WINDOWS, WORD_COUNTS, WORK),
    )
}
