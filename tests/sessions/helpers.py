"""A store that an engine filled, without text: sessions of random ids, quick enough to be damaged
hundreds of times."""

import hashlib
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fulmen.engine import Engine, EngineConfig, Origin, TokenOutput
from fulmen.sampling import SamplingParams
from fulmen.sessions import SessionStore
from tests.models.helpers import packed_model, tiny_m1, tiny_m2

NAMES = ["../../witness", "../witness", "/etc/passwd", "..", ".", "", "0" * 64, "A" * 64, "0" * 63]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 10**9, 2**31, 2**63, 10**30, 10**400])
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(NAMES),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def new_engine(kind: str) -> Engine:
    config = tiny_m1() if kind == "m1" else tiny_m2()
    return Engine(packed_model(config), EngineConfig(max_num_seqs=2, kv_cache_bytes=2**21))


def origin_of(engine: Engine, kind: str) -> Origin:
    return Origin(model=hashlib.sha256(kind.encode()).hexdigest(), numerics=engine.numerics)


def answer(engine: Engine, ids: Sequence[int], count: int, seed: int = 0) -> list[int]:
    """Return what the engine says after ids: count ids."""
    params = SamplingParams(temperature=1.0, seed=seed, max_tokens=count, ignore_eos=True)
    engine.add_request(list(ids), params)
    found: list[int] = []
    while engine.has_unfinished:
        found += [out.token_id for out in engine.step() if isinstance(out, TokenOutput)]
    return found


def add_turn(store: SessionStore, engine: Engine, kind: str, name: str, seed: int) -> None:
    """One more turn of a session: 70 new ids, an answer of 10."""
    state = store.state(name)
    ids = store.ids_of(state) + random.Random(seed).choices(range(61), k=70)
    ids += answer(engine, ids, 10, seed)
    store.save(
        state,
        parent=state.turn,
        ids=ids,
        num_answer=10,
        record={"reply": {"content": "é"}, "logprobs": [-1.5, -2.0], "params": {"seed": seed}},
        origin=origin_of(engine, kind),
        prefixes=engine.prefixes,
    )


def fill(root: Path, engine: Engine, kind: str) -> None:
    """Sessions a, with three turns; b, forked after the second; and c, with nothing in common."""
    store = SessionStore(root)
    for name, count in (("a", 3), ("c", 1)):
        store.create(name, model="tiny", fingerprint=origin_of(engine, kind).model)
        for number in range(count):
            add_turn(store, engine, kind, name, number + ord(name))
    store.fork("a", "b", num_turns=2)
    engine.prefixes.clear()


def tree(root: Path, without: Path) -> dict[str, tuple[str, bytes]]:
    """Everything below a folder but one in it, links not followed."""
    found: dict[str, tuple[str, bytes]] = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if Path(folder, name) != without]
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                found[str(path)] = ("link", os.fsencode(os.readlink(path)))
            elif path.is_file():
                found[str(path)] = ("file", path.read_bytes())
            else:
                found[str(path)] = ("other", b"")
    return found


def forge_chain(root: Path, name: str, place: int, content: bytes) -> None:
    """Replaces a turn of a session as a stranger would: with hashes that are right, in all turns
    after it and in the session."""
    store = SessionStore(root)
    turns = store.turns(store.state(name))
    hash = put(root, content)
    for turn in turns[place + 1 :]:
        values = json.loads((root / "turns" / f"{turn.hash}.json").read_text())
        hash = put(root, json.dumps(values | {"parent": hash}).encode())
    edit(root / "sessions" / f"{name}.json", turn=hash)


def put(root: Path, content: bytes, folder: str = "turns", suffix: str = ".json") -> str:
    hash = hashlib.sha256(content).hexdigest()
    (root / folder / f"{hash}{suffix}").write_bytes(content)
    return hash


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def mutated(data: st.DataObject, value: Any) -> Any:
    """A JSON value with one place changed, removed or added."""
    if isinstance(value, (dict, list)) and value and data.draw(st.integers(0, 4)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = data.draw(st.sampled_from(keys))
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        if data.draw(st.integers(0, 5)) == 0:
            del copy[key]
        else:
            copy[key] = mutated(data, value[key])
        return copy
    if isinstance(value, dict) and data.draw(st.booleans()):
        return value | {data.draw(st.text(max_size=5)): data.draw(JSON)}
    if isinstance(value, list) and data.draw(st.booleans()):
        return [*value, data.draw(JSON)]
    return data.draw(JSON)
