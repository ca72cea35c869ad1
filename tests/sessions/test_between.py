"""Saves and restores in another thread than the engine's: its cache changes between two pieces."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from fulmen.engine import Between, PrefixCache
from fulmen.sessions import SessionStore
from tests.sessions.helpers import answer, new_engine, origin_of

R = TypeVar("R")


@pytest.mark.parametrize("kind", ["m1", "m2"])
@pytest.mark.parametrize("num_calls", [0, 1, 2, 3, 5, 100])
def test_a_cache_that_forgets_while_a_turn_is_saved_or_restored_costs_only_reading_again(
    kind: str, num_calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fulmen.sessions.chunks.CHUNK_BYTES", 1)  # a page each
    engine = new_engine(kind)
    ids = random.Random(1).choices(range(61), k=300)
    ids += answer(engine, ids, 20)
    more = random.Random(2).choices(range(61), k=30)
    expected = answer(new_engine(kind), [*ids, *more], 8)

    def forgetting(prefixes: PrefixCache) -> Between:
        """Return what runs work between steps, before one of which the cache is cleared."""
        calls = itertools.count()

        def between(work: Callable[[], R], /) -> R:
            if next(calls) == num_calls:
                prefixes.clear()
            return work()

        return between

    store = SessionStore(tmp_path)
    origin = origin_of(engine, kind)
    state = store.save(
        store.create("a", model="tiny", fingerprint=origin.model),
        parent=None,
        ids=ids,
        num_answer=20,
        record={},
        origin=origin,
        prefixes=engine.prefixes,
        between=forgetting(engine.prefixes),
    )
    known = store.turns(state)[-1].num_known
    assert known in (min(num_calls, 4) * 64, 319)
    cold = new_engine(kind)
    assert store.restore(state, origin, cold.prefixes, between=forgetting(cold.prefixes)) <= known
    assert answer(cold, [*ids, *more], 8) == expected
    assert store.restore(state, origin, cold.prefixes, ids=[*ids, *more]) <= len(ids)
    assert answer(cold, [*ids, *more], 8) == expected
