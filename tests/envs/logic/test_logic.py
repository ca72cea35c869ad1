"""Every kind of puzzle checks itself: right answers score 1, junk 0, and one is soon made."""

import asyncio

import pytest

from fulmen.envs.logic import Logic
from fulmen.envs.logic.kinds import KINDS
from fulmen.envs.logic.puzzle import LEVELS
from fulmen.evaluate import self_check


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_as_it_should_be(name: str, level: int) -> None:
    environment = Logic(7, kind=name, level=level)
    chance = min(1.0, 1.5 * environment.chance)
    assert asyncio.run(self_check(environment, range(20), chance=chance)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_thousand_puzzles_are_as_they_should_be(name: str) -> None:
    environment = Logic(8, kind=name)
    chance = min(1.0, 1.2 * environment.chance)
    assert asyncio.run(self_check(environment, range(1000), chance=chance)) == []
