"""A store that is damaged, edited by hand or made by a stranger: one sentence, nothing outside it
touched, and every other session goes on."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fulmen.checkpoints import fingerprint, load_model
from fulmen.engine import Engine, EngineConfig, Origin
from fulmen.sampling import SamplingParams
from fulmen.sessions import SessionStore, check, repair
from fulmen.sessions.records import read_state, read_turn
from tests.examples import examples
from tests.sessions.helpers import (
    add_turn,
    answer,
    edit,
    fill,
    forge_chain,
    mutated,
    new_engine,
    origin_of,
    put,
    tree,
)
from tests.tiny import write_checkpoint

RECORDED = Path(__file__).parent / "data-0.1.0"
OUTSIDE = b"nothing may happen to this"


class Place:
    """A filled store, copied anew for each damage, in a folder with files that are not its own."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self.engine = new_engine(kind)
        self.pristine = folder / "pristine"
        fill(self.pristine, self.engine, kind)
        self.around = folder / "around"
        self.root = self.around / "inner" / "store"
        self.ids = {name: self.read_ids(self.pristine, name) for name in "abc"}
        self.renew()

    def renew(self) -> None:
        shutil.rmtree(self.around, ignore_errors=True)
        shutil.copytree(self.pristine, self.root)
        for folder in (self.around, self.around / "inner"):
            (folder / "witness").write_bytes(OUTSIDE)
            (folder / "witness.json").write_bytes(OUTSIDE)
            (folder / "witness.safetensors").write_bytes(OUTSIDE)
        elsewhere = self.around / "elsewhere"
        elsewhere.mkdir()
        shutil.copytree(self.pristine / "chunks", elsewhere / "chunks")
        shutil.copytree(self.pristine / "turns", elsewhere / "turns")
        (elsewhere / "chunks" / ".x.part").write_bytes(OUTSIDE)

    def outside(self) -> dict[str, tuple[str, bytes]]:
        return tree(self.around, self.root)

    @staticmethod
    def read_ids(root: Path, name: str) -> list[int]:
        store = SessionStore(root)
        return store.ids_of(store.state(name))

    @property
    def store(self) -> SessionStore:
        return SessionStore(self.root)

    def restore(self, name: str) -> int:
        self.engine.prefixes.clear()
        store = self.store
        return store.restore(
            store.state(name), origin_of(self.engine, self.kind), self.engine.prefixes
        )

    def use(self, name: str) -> None:
        """Everything that can be done with a session that may be damaged."""
        store = self.store
        for act in (
            lambda: store.turns(store.state(name)),
            lambda: store.ids_of(store.state(name)),
            lambda: store.chunk_bytes(store.state(name)),
            lambda: self.restore(name),
            lambda: store.fork(name, f"{name}-fork"),
            lambda: store.rewind(name, num_turns=1),
            lambda: self.store.fork(name, f"{name}-cut", num_turns=1, num_kept=3),
            lambda: self.go_on(name),
            lambda: SessionStore(self.root, max_bytes=1)._shrink(),
            lambda: store.remove(f"{name}-fork"),
            lambda: check(store),
        ):
            attempt(act)

    def go_on(self, name: str) -> None:
        self.restore(name)
        if all(id < 61 for id in self.store.ids_of(self.store.state(name))):
            add_turn(self.store, self.engine, self.kind, name, 99)

    def survives(self, *others: str) -> None:
        """Other sessions are whole; the store can be mended; nothing outside was touched."""
        before = self.outside()
        store = self.store
        attempt(store.names)
        self.use("a")
        for name in others:
            assert store.ids_of(store.state(name)) == self.ids[name]
        repair(store)
        assert [one for one in check(store) if "has format" not in one.reason] == []
        for name in others:
            assert self.read_ids(self.root, name) == self.ids[name]
            self.restore(name)
        add_turn(self.store, self.engine, self.kind, others[0], 5)
        assert self.restore(others[0]) > len(self.ids[others[0]])
        for name in self.store.names():
            self.store.remove(name)
        assert not list((self.root / "turns").iterdir())
        assert not list((self.root / "chunks").iterdir())
        assert self.outside() == before


def attempt(act: Callable[[], object]) -> None:
    """A ValueError is a sentence; anything else would be a traceback."""
    sentence = "none"
    try:
        act()
    except ValueError as error:
        sentence = str(error)
    assert sentence
    assert "\n" not in sentence


@pytest.fixture(scope="module", params=["m1", "m2"])
def pristine(request: pytest.FixtureRequest) -> Iterator[Place]:
    memory = Path("/dev/shm")  # where it is there, waiting for a disk costs nothing
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Place(Path(folder), request.param)


@pytest.fixture
def place(pristine: Place) -> Place:
    pristine.renew()
    return pristine


def path_of_turn(root: Path, name: str, index: int) -> Path:
    store = SessionStore(root)
    return root / "turns" / f"{store.turns(store.state(name))[index].hash}.json"


MUTATIONS = settings(
    max_examples=examples(20),
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # an example takes long: no shrinking
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@MUTATIONS
@given(data=st.data())
def test_any_state_is_read_or_refused(pristine: Place, data: st.DataObject) -> None:
    pristine.renew()
    path = pristine.root / "sessions" / "a.json"
    path.write_text(json.dumps(mutated(data, json.loads(path.read_text()))))
    pristine.survives("c", "b")


@MUTATIONS
@given(content=st.binary(max_size=40) | st.sampled_from([b"[" * 60000, b"\xff", b"{}", b"1e999"]))
def test_any_bytes_for_a_state_are_refused(pristine: Place, content: bytes) -> None:
    pristine.renew()
    (pristine.root / "sessions" / "a.json").write_bytes(content)
    pristine.survives("c", "b")


@MUTATIONS
@given(data=st.data())
def test_any_turn_with_the_right_hash_is_read_or_refused(
    pristine: Place, data: st.DataObject
) -> None:
    pristine.renew()
    index = data.draw(st.integers(0, 2))
    values = json.loads(path_of_turn(pristine.root, "a", index).read_text())
    forge_chain(pristine.root, "a", index, json.dumps(mutated(data, values)).encode())
    pristine.survives("c", "b")


@MUTATIONS
@given(data=st.data())
def test_any_damage_of_a_turn_is_refused(pristine: Place, data: st.DataObject) -> None:
    pristine.renew()
    path = path_of_turn(pristine.root, "a", 2)
    path.write_bytes(damaged(data, path.read_bytes()))
    pristine.survives("c", "b")


@MUTATIONS
@given(data=st.data())
def test_tokens_of_any_damaged_chunk_are_read_again(pristine: Place, data: st.DataObject) -> None:
    pristine.renew()
    for path in sorted((pristine.root / "chunks").iterdir()):
        if data.draw(st.booleans()):
            path.write_bytes(damaged(data, path.read_bytes()))
    for name in "abc":
        assert pristine.read_ids(pristine.root, name) == pristine.ids[name]
    pristine.survives("c", "b")


def damaged(data: st.DataObject, content: bytes) -> bytes:
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content)))
    return content[:start] + data.draw(st.binary(max_size=8)) + content[end:]


def header(text: bytes, length: int | None = None, rest: bytes = b"") -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text + rest


STRANGE_CHUNKS: dict[str, Callable[[dict[str, torch.Tensor]], bytes]] = {
    "empty": lambda tensors: b"",
    "no header": lambda tensors: b"x" * 100,
    "huge header": lambda tensors: header(b"{}", 2**60),
    "header of 100 MB": lambda tensors: header(b" " * (100 * 10**6)),
    "nested header": lambda tensors: header(b"[" * 10**6),
    "no tensors": lambda tensors: header(b"{}"),
    "unknown dtype": lambda tensors: header(
        b'{"0.keys":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', rest=b"x"
    ),
    "huge shape": lambda tensors: header(
        b'{"0.keys":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],'
        b'"data_offsets":[0,4]}}',
        rest=b"xxxx",
    ),
    "other names": lambda tensors: save({f"../{k}": v for k, v in tensors.items()}),
    "one missing": lambda tensors: save(dict(list(tensors.items())[1:])),
    "one more": lambda tensors: save(tensors | {"x": torch.zeros(1)}),
    "other dtype": lambda tensors: save({k: v.to(torch.float64) for k, v in tensors.items()}),
    "other shape": lambda tensors: save({k: v.flatten() for k, v in tensors.items()}),
    "scalars": lambda tensors: save(
        {k: torch.zeros((), dtype=v.dtype) for k, v in tensors.items()}
    ),
    "no pages": lambda tensors: save({k: v[:0] for k, v in tensors.items()}),
    "NaN": lambda tensors: save({k: v * float("nan") for k, v in tensors.items()}),
    "infinity": lambda tensors: save({k: v + float("inf") for k, v in tensors.items()}),
}


def save(tensors: dict[str, torch.Tensor]) -> bytes:
    return safetensors.torch.save({name: part.contiguous() for name, part in tensors.items()})


@pytest.mark.parametrize("kind", STRANGE_CHUNKS)
def test_tokens_of_a_strange_chunk_are_read_again(
    place: Place, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = place.store
    turn = store.turns(store.state("a"))[-1]
    values = json.loads(path_of_turn(place.root, "a", 2).read_text())

    def forged(chunk: str) -> str:
        path = place.root / "chunks" / f"{chunk}.safetensors"
        content = STRANGE_CHUNKS[kind](safetensors.torch.load(path.read_bytes()))
        return put(place.root, content, "chunks", ".safetensors")

    values["spans"] = [[forged(span.chunk), span.first, span.count] for span in turn.spans]
    values["states"] = {str(tokens): forged(chunk) for tokens, chunk in turn.states.items()}
    forge_chain(place.root, "a", 2, json.dumps(values).encode())
    assert place.restore("a") == 0
    assert "are read again" in caplog.text
    ids = place.read_ids(place.root, "a")
    place.engine.prefixes.clear()
    expected = answer(place.engine, ids, 8)
    place.restore("a")
    assert answer(place.engine, ids, 8) == expected
    place.survives("c", "b")


def big_turn(values: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps(values | changes).encode()


STRANGE_TURNS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "deep": lambda v: (
        json.dumps(v | {"record": 1}).replace(": 1}", ": " + "[" * 10**5 + "}").encode()
    ),
    "deep and closed": lambda v: (
        json.dumps(v)
        .replace('"record": {', '"record": {"x": ' + "[" * 500 + "]" * 500 + ", ")
        .encode()
    ),
    "70 MB": lambda v: json.dumps(v).encode() + b" " * 70 * 2**20,
    "millions of objects": lambda v: b"[" + b"{}," * 9_000_000 + b"{}]",
    "NaN": lambda v: big_turn(v, record={"logprobs": [float("nan")]}),
    "infinity in disguise": lambda v: json.dumps(v).replace("-1.5", "1e999").encode(),
    "thousands of digits": lambda v: json.dumps(v).replace("-1.5", "1" * 5000).encode(),
    "hundreds of digits": lambda v: json.dumps(v).replace("-1.5", "1" * 500).encode(),
    "its own parent": lambda v: big_turn(v, parent="f" * 64),
    "path as parent": lambda v: big_turn(v, parent="../../witness"),
    "shares too much": lambda v: big_turn(v, num_shared=10**6),
    "shares less than nothing": lambda v: big_turn(v, num_shared=-1),
    "answers too much": lambda v: big_turn(v, num_answer=10**6),
    "knows too much": lambda v: big_turn(v, num_known=10**6),
    "negative id": lambda v: big_turn(v, new_ids=[-1]),
    "huge id": lambda v: big_turn(v, new_ids=[10**20]),
    "float id": lambda v: big_turn(v, new_ids=[1.5]),
    "bool id": lambda v: big_turn(v, new_ids=[True]),
    "negative first page": lambda v: big_turn(v, spans=[[v["spans"][0][0], -1, 1]]),
    "negative count": lambda v: big_turn(v, spans=[[v["spans"][0][0], 0, -1]]),
    "huge count": lambda v: big_turn(v, spans=[[v["spans"][0][0], 0, 10**18]]),
    "huge position": lambda v: big_turn(v, states={"9" * 50: v["spans"][0][0]}),
    "negative position": lambda v: big_turn(v, states={"-64": v["spans"][0][0]}),
    "other digits": lambda v: big_turn(v, states={"\u0661": v["spans"][0][0]}),
    "path as chunk": lambda v: big_turn(v, spans=[["../../witness", 0, 1]]),
    "absolute path as chunk": lambda v: big_turn(v, spans=[["/etc/passwd", 0, 1]]),
    "path as state": lambda v: big_turn(v, states={"64": "../../witness"}),
}


@pytest.mark.parametrize("pristine", ["m1"], indirect=True)
@pytest.mark.parametrize("kind", STRANGE_TURNS)
def test_a_strange_turn_is_refused_in_one_sentence(place: Place, kind: str) -> None:
    values = json.loads(path_of_turn(place.root, "a", 1).read_text())
    forge_chain(place.root, "a", 1, STRANGE_TURNS[kind](values))
    store = place.store
    with pytest.raises(ValueError, match=r"turn|bytes|missing") as caught:
        store.turns(store.state("a"))
    assert len(str(caught.value)) < 600
    place.survives("c", "b")


SHAPES: dict[str, Callable[[Path, Path], None]] = {
    "a link to a file outside": lambda path, around: path.symlink_to(around / "witness"),
    "a link to a folder outside": lambda path, around: path.symlink_to(around / "elsewhere"),
    "a link to nothing": lambda path, around: path.symlink_to(around / "nothing"),
    "a link to itself": lambda path, around: path.symlink_to(path),
    "a link to an endless file": lambda path, around: path.symlink_to("/dev/zero"),
    "a folder": lambda path, around: (path / "inner").mkdir(parents=True),
    "a pipe": lambda path, around: os.mkfifo(path),
    "an empty file": lambda path, around: path.touch(),
    "a sparse file of a terabyte": lambda path, around: make_sparse(path),
}


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


PARTS: dict[str, Callable[[Path], Path]] = {
    "state": lambda root: root / "sessions" / "a.json",
    "lock of the session": lambda root: root / "sessions" / "a.lock",
    "stray session": lambda root: root / "sessions" / "my chat.json",
    "stray": lambda root: root / "sessions" / "notes.txt",
    "stray turn": lambda root: root / "turns" / "notes.txt",
    "stray chunk": lambda root: root / "chunks" / "\udcff.safetensors",
    "leftover": lambda root: root / "chunks" / ".x.part",
    "turn": lambda root: path_of_turn(root, "a", 2),
    "chunk": lambda root: root / "chunks" / f"{last_chunk(root)}.safetensors",
}


def last_chunk(root: Path) -> str:
    store = SessionStore(root)
    return store.turns(store.state("a"))[-1].spans[-1].chunk


@pytest.mark.parametrize("pristine", ["m1"], indirect=True)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("part", PARTS)
def test_any_kind_of_file_in_any_place_stays_without_effect(
    place: Place, part: str, shape: str
) -> None:
    path = PARTS[part](place.root)
    path.unlink(missing_ok=True)
    SHAPES[shape](path, place.around)
    place.survives("c", "b")


@pytest.mark.parametrize("pristine", ["m1"], indirect=True)
@pytest.mark.parametrize("folder", ["sessions", "turns", "chunks", "lock"])
@pytest.mark.parametrize("target", ["elsewhere/chunks", "elsewhere/turns", "witness", "nothing"])
def test_a_folder_that_is_a_link_is_not_followed(place: Place, folder: str, target: str) -> None:
    path = place.root / folder
    if folder == "lock":
        path.unlink()
    else:
        shutil.rmtree(path)
    path.symlink_to(place.around / target)
    before = place.outside()
    for name in "abc":
        place.use(name)
        attempt(lambda name=name: place.store.remove(name))  # type: ignore[misc]
    attempt(place.store.names)
    assert place.outside() == before
    repair(place.store)
    assert check(place.store) == []
    assert place.outside() == before
    if folder in ("chunks", "lock"):
        assert place.read_ids(place.root, "c") == place.ids["c"]


def test_what_an_unreadable_session_may_have_is_kept(place: Place) -> None:
    path = place.root / "sessions" / "a.json"
    text = path.read_text()
    path.write_text("{")
    place.store.remove("b")
    place.store.remove("c")
    path.write_text(text)
    assert place.read_ids(place.root, "a") == place.ids["a"]
    assert place.restore("a") > 200


def test_an_unreadable_session_can_be_removed_and_its_objects_with_it(place: Place) -> None:
    (place.root / "sessions" / "a.json").write_text("{")
    (place.root / "sessions" / "my chat.json").write_text("{")
    (place.root / "sessions" / "notes.txt").write_text("x")
    num_turns = len(place.store.turn_objects.sizes())
    for name in ("a", "my chat", "notes.txt"):
        place.store.remove(name)
    assert sorted(place.store.names()) == ["b", "c"]
    assert place.store.strays() == []
    assert len(place.store.turn_objects.sizes()) == num_turns - 1
    with pytest.raises(ValueError, match="there is no session 'a'"):
        place.store.remove("a")


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "zeros"])
def test_repair_goes_back_to_the_last_readable_turn(place: Place, index: int, damage: str) -> None:
    place.store.remove("b")
    store = place.store
    turns = store.turns(store.state("a"))
    path = path_of_turn(place.root, "a", index)
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        changed = {
            "cut": content[: len(content) // 2],
            "flipped": content.replace(b"-1.5", b"-1.6"),
            "zeros": bytes(len(content)),
        }
        path.write_bytes(changed[damage])
    repair(place.store)
    assert check(place.store) == []
    if index:
        expected = place.store.ids(turns[index - 1])
        assert place.read_ids(place.root, "a") == expected
        assert place.restore("a") == len(expected) - 1
    else:
        assert "a" not in place.store.names()
    kept = [path.read_bytes() for path in (place.root / "damaged").rglob("*.json")]
    assert damage == "gone" or changed[damage] in kept
    assert place.read_ids(place.root, "c") == place.ids["c"]


@pytest.mark.parametrize(
    "change",
    [
        {"created": "yesterday"},
        {"format": "one"},
        {"cut": -3},
        {"x": 1},
        {"model": None},
        {"cut": 10**9},
    ],
)
def test_repair_keeps_all_turns_of_a_state_that_was_edited(
    place: Place, change: dict[str, Any]
) -> None:
    edit(place.root / "sessions" / "a.json", **change)
    with pytest.raises(ValueError, match=r"a\.json|'a' keeps"):
        place.store.ids_of(place.store.state("a"))
    repair(place.store)
    assert check(place.store) == []
    assert place.read_ids(place.root, "a") == place.ids["a"]


@pytest.mark.parametrize("length", [0, 40, 120, 200])
def test_repair_finds_the_turns_of_a_state_that_was_cut(place: Place, length: int) -> None:
    path = place.root / "sessions" / "a.json"
    path.write_bytes(path.read_bytes()[:length])
    repair(place.store)
    assert place.read_ids(place.root, "a") == place.ids["a"]


def test_repair_renames_a_session_whose_file_has_no_name_of_one(place: Place) -> None:
    (place.root / "sessions" / "a.json").rename(place.root / "sessions" / "my chat.json")
    repair(place.store)
    assert check(place.store) == []
    assert place.read_ids(place.root, "my-chat") == place.ids["a"]


def test_leftovers_of_kills_are_found_and_objects_that_nobody_names_are_no_problem(
    place: Place,
) -> None:
    place.store.rewind("a", num_turns=1)
    place.store.remove("b")
    place.store.fork("a", "b")
    assert check(place.store) == []
    store = place.store
    add_turn(store, place.engine, place.kind, "a", 7)
    store.rewind("a", num_turns=1)
    (place.root / "turns" / ".x.json.0.part").write_text("x")
    (place.root / "sessions" / "x.lock").write_text("")
    found = " ".join(map(str, check(place.store)))
    assert len(check(place.store)) == 2
    assert "killed" in found
    assert "is the lock of a session that is not there" in found
    repair(place.store)
    assert check(place.store) == []


def test_repair_leaves_a_session_of_a_newer_version_alone(place: Place) -> None:
    path = place.root / "sessions" / "a.json"
    newer = path.read_text().replace('"format": 1', '"format": 2')
    path.write_text(newer)
    assert any("newer version" in line for line in repair(place.store))
    assert path.read_text() == newer
    assert [problem.path for problem in check(place.store)] == [path]


def test_a_copied_state_is_a_session_of_its_own(place: Place) -> None:
    shutil.copy(place.root / "sessions" / "a.json", place.root / "sessions" / "copy.json")
    place.engine.prefixes.clear()
    add_turn(place.store, place.engine, place.kind, "copy", 3)
    assert place.read_ids(place.root, "a") == place.ids["a"]
    assert place.read_ids(place.root, "copy")[: len(place.ids["a"])] == place.ids["a"]


@pytest.mark.parametrize(
    "record",
    [{"x": float("nan")}, {"x": [float("inf")]}, {"x": 10**50}],
)
def test_what_could_not_be_read_again_is_not_written(place: Place, record: dict[str, Any]) -> None:
    store = place.store
    state = store.state("c")
    with pytest.raises(ValueError, match=r"JSON|finite|digits"):
        store.save(
            state,
            parent=None,
            ids=[1, 2],
            num_answer=1,
            record=record,
            origin=origin_of(place.engine, place.kind),
            prefixes=place.engine.prefixes,
        )
    assert place.read_ids(place.root, "c") == place.ids["c"]


@given(content=st.binary())
def test_any_bytes_are_one_sentence(content: bytes) -> None:
    for act in (
        lambda: read_state(content, Path("a.json")),
        lambda: read_turn(content, "f" * 64, Path("t.json")),
    ):
        attempt(act)


def origin(numerics: str, model: str = "m") -> Origin:
    return Origin(model=model, numerics=numerics)


TORCH = f"torch-{torch.__version__}"
OLD = f"fulmen-0.1.0 cpu float32 auto {TORCH} avx2-0123456789abcdef"
NOW = "cpu float32 auto kernels-1 avx2 powers-0123abcd"


@pytest.mark.parametrize(
    ("old", "now", "is_same"),
    [
        (OLD, OLD, True),
        (OLD, NOW, True),
        (NOW, NOW, True),
        (OLD.replace(" avx2-0123456789abcdef", ""), f"cpu float32 auto {TORCH}", True),
        (OLD, f"cpu float32 auto {TORCH}", False),
        (OLD.replace(" avx2-0123456789abcdef", ""), NOW, False),
        (OLD.replace(TORCH, "torch-1.0"), NOW, False),
        (OLD, NOW.replace("kernels-1", "kernels-2"), False),
        (OLD, NOW.replace("avx2", "avx512"), False),
        (OLD, NOW.replace("auto", "int8"), False),
        (OLD, NOW.replace("float32", "bfloat16"), False),
        (OLD, NOW.replace("cpu", "cuda"), False),
        (NOW, NOW.replace("0123abcd", "00000000"), False),
        (OLD.replace("0.1.0", "0.1.1"), NOW, False),
        ("", "", True),
        ("", NOW, False),
        (OLD, "", False),
    ],
)
def test_states_of_0_1_0_are_told_by_what_their_bits_depend_on(
    old: str, now: str, is_same: bool
) -> None:
    assert origin(old).has_bits_of(origin(now)) == is_same
    assert origin(now).has_bits_of(origin(old)) == is_same
    assert not origin(old).has_bits_of(origin(now, model="another"))


def test_numerics_name_no_version_of_the_package(place: Place) -> None:
    assert "fulmen" not in place.engine.numerics
    assert "0.1.0" not in place.engine.numerics


@pytest.mark.parametrize(("kind", "dtype"), [("m1", torch.float32), ("m2", torch.bfloat16)])
def test_a_session_of_0_1_0_goes_on_with_the_same_bits(
    kind: str, dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "store"
    shutil.copytree(RECORDED, root)
    expected = json.loads((root / "expected.json").read_text())[kind]
    folder = write_checkpoint(tmp_path / "model", kind)
    shutil.copy(RECORDED / f"{kind}-config.json", folder / "config.json")
    engine = Engine(load_model(folder, dtype=dtype), EngineConfig(max_num_seqs=2))
    origin = Origin(model=fingerprint(folder), numerics=engine.numerics)
    assert origin.model == expected["fingerprint"]
    store = SessionStore(root)
    state = store.state(kind)
    turns = store.turns(state)
    assert [store.ids(turn) for turn in turns] == expected["turn_ids"]
    messages = [
        message for turn in turns for message in (*turn.record["messages"], turn.record["reply"])
    ]
    assert messages == expected["messages"]
    num_restored = store.restore(state, origin, engine.prefixes)
    old = Origin(model=origin.model, numerics=expected["numerics"])
    if not old.has_bits_of(origin):
        assert num_restored == 0
        assert "are read again" in caplog.text
        return
    assert num_restored == expected["num_known"]
    # 0.1.0 drew best first without a filter too; a top_k of all ids still does.
    params = SamplingParams(
        top_p=1.0, top_k=engine.model.config.vocab_size, max_tokens=12, ignore_eos=True, seed=9
    )
    engine.add_request(expected["next_prompt_ids"], params)
    outputs: list[Any] = []
    while engine.has_unfinished:
        outputs += engine.step()
    assert engine.stats.num_hit_tokens > 0
    assert [output.token_id for output in outputs] == expected["next_answer_ids"]
    assert [output.logprob for output in outputs] == expected["next_logprobs"]
    assert check(store) == []


def test_a_session_of_0_1_0_that_was_rewound_into_an_answer_is_still_so(tmp_path: Path) -> None:
    store = SessionStore(RECORDED)
    expected = json.loads((RECORDED / "expected.json").read_text())["m1"]
    assert store.state("m1-cut").num_kept == 4
    assert store.ids_of(store.state("m1-cut")) == expected["turn_ids"][-1][:-8]


def test_a_damaged_turn_that_looks_newer_is_moved_aside(place: Place) -> None:
    path = path_of_turn(place.root, "a", 2)
    path.write_text('{"format": 2}')
    assert not any("newer version" in line for line in repair(place.store))
    assert not path.exists()
    place.survives("c", "b")


def test_repair_leaves_a_turn_of_a_newer_version_alone(place: Place) -> None:
    content = b'{"format": 2}'
    path = place.root / "turns" / f"{hashlib.sha256(content).hexdigest()}.json"
    path.write_bytes(content)
    (place.root / "sessions" / "a.json").write_text("nonsense")
    assert any("newer version" in line for line in repair(place.store))
    assert path.read_bytes() == content
    place.survives("c", "b")
