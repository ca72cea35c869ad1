"""A session's metadata, and conversations that it takes over, in the store."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.engine import Engine
from fulmen.sessions import MAX_METADATA, SessionState, SessionStore, check, check_metadata, repair
from fulmen.sessions.objects import Objects
from fulmen.sessions.records import MAX_METADATA_CHARS, MAX_STATE_BYTES, read_state, write_state
from tests.sessions.helpers import add_turn, edit, fill, new_engine, origin_of


@pytest.fixture(scope="module")
def engine() -> Engine:
    return new_engine("m2")


@pytest.fixture
def store(engine: Engine, tmp_path: Path) -> Iterator[SessionStore]:
    """Sessions a, b and c, the last used first: b, c, a."""
    fill(tmp_path, engine, "m2")
    yield SessionStore(tmp_path)
    assert check(SessionStore(tmp_path)) == []


@given(
    metadata=st.dictionaries(
        st.text(max_size=20), st.text(max_size=50) | st.just("\U0001f98b" * 2000), max_size=16
    )
)
@settings(deadline=None)
def test_metadata_is_read_as_it_was_written(metadata: dict[str, str]) -> None:
    state = SessionState(name="a", model="m", fingerprint="0" * 64, metadata=metadata)
    content = write_state(state).encode("utf-8", "strict")
    assert len(content) <= MAX_STATE_BYTES
    assert read_state(content, Path("a.json")) == state


def test_the_largest_metadata_fits_into_a_state() -> None:
    largest = {"x": "\U0001f98b" * (MAX_METADATA_CHARS - 1)}
    assert len(json.dumps(check_metadata(largest))) < MAX_STATE_BYTES - 8192
    with pytest.raises(ValueError, match="characters"):
        check_metadata({"xy": largest["x"]})
    with pytest.raises(ValueError, match=f"it may have {MAX_METADATA}"):
        check_metadata({str(number): "" for number in range(MAX_METADATA + 1)})


@pytest.mark.parametrize("metadata", [None, [], "x", {"a": 1}, {"a": None}, {"a": {}}])
def test_other_metadata_makes_a_session_unreadable(store: SessionStore, metadata: object) -> None:
    path = store.state_path("a")
    before = path.read_bytes()
    edit(path, metadata=metadata)
    with pytest.raises(ValueError, match="metadata must be an object of texts"):
        store.state("a")
    path.write_bytes(before)


def test_metadata_changes_nothing_else_and_outlives_a_turn(
    store: SessionStore, engine: Engine
) -> None:
    names, before = store.names(), store.state("a")
    noted = store.note("a", {"title": "x"})
    assert noted == store.state("a") == replace(before, metadata={"title": "x"})
    assert store.names() == names  # it was not used
    # A process that read the session before saves a turn.
    saved = store.save(
        before,
        parent=before.turn,
        ids=[*store.ids_of(before), 1, 2],
        num_answer=1,
        record={},
        origin=origin_of(engine, "m2"),
        prefixes=engine.prefixes,
    )
    assert saved.metadata == store.state("a").metadata == {"title": "x"}
    assert store.fork("a", "d").metadata == {"title": "x"}
    assert store.rewind("a", num_turns=1).metadata == {"title": "x"}
    with pytest.raises(ValueError, match="there is no session"):
        store.note("e", {})


def test_repair_keeps_metadata_that_can_be_read(store: SessionStore) -> None:
    store.remove("b")  # else two sessions could go on from what is left
    store.note("a", {"title": "x", "turn": "y"})
    last = store.turns(store.state("a"))[-1]
    store.turn_objects.path(last.hash).unlink()
    repair(SessionStore(store.root))
    store = SessionStore(store.root)
    assert store.state("a").metadata == {"title": "x", "turn": "y"}
    assert len(store.turns(store.state("a"))) == 2
    path = store.state_path("a")
    path.write_text(path.read_text().replace('"x"', '["x"]'))
    repair(SessionStore(store.root))
    assert store.state("a").metadata == {}


def test_a_conversation_is_taken_over_whole_or_not_at_all(
    store: SessionStore, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = origin_of(engine, "m2")
    before = store.state("a")
    records = [{"reply": {"content": str(number)}} for number in range(3)]
    put, left = Objects.put, [2]

    def put_until_the_disk_is_full(objects: Objects, content: bytes) -> str:
        if not left[0]:
            raise OSError("no space left")
        left[0] -= 1
        return put(objects, content)

    with monkeypatch.context() as patch:
        patch.setattr(Objects, "put", put_until_the_disk_is_full)
        with pytest.raises(OSError, match="no space"):
            store.save_history(before, records, origin=origin)
    assert store.state("a") == before
    state, turns = store.save_history(before, records, origin=origin)
    assert SessionStore(store.root).turns(state)[-3:] == turns
    assert [turn.record for turn in turns] == records
    assert turns[0].parent == before.turn
    with pytest.raises(ValueError, match="changed by another process"):
        store.save_history(before, records, origin=origin)
    add_turn(store, engine, "m2", "a", 7)  # what comes then has ids again
    assert len(store.ids_of(store.state("a"))) == 80
