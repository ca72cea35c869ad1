"""Whatever numbers, names and nesting a file holds, it loads or is one sentence, and soon."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFValueType, TokenType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fulmen.checkpoints import Checkpoint, fingerprint, gguf, load_model, read_config, save_model
from fulmen.checkpoints.checkpoint import MAX_PROBLEMS
from fulmen.checkpoints.gguf_file import MAX_HEADER_BYTES, Cursor, read_gguf_file
from fulmen.checkpoints.header import read_header, read_metadata
from fulmen.files import MAX_JSON_BYTES
from fulmen.models import config_from_dict, count_tensors
from tests.bounds import bounded
from tests.checkpoints.test_gguf import write_gguf
from tests.examples import examples
from tests.models.helpers import random_model, tiny_m1, tiny_m2
from tests.models.test_config import FP8, M1_PUBLISHED, M2_PUBLISHED

IN_FOLDERS = settings(
    max_examples=examples(40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([10**n for n in (4, 5, 6, 7, 9, 12, 18, 19, 30, 400)]),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.booleans(),
    st.text(max_size=3),
    st.lists(st.integers(0, 10**12), max_size=3),
    st.just([10**12] * 3),
    st.none(),
)


def check(read: Callable[[], object]) -> None:
    """Read something within bounds; what is refused must be one sentence."""
    sentence = ""
    with bounded():
        try:
            read()
        except ValueError as error:
            sentence = str(error)
    assert "\n" not in sentence
    assert len(sentence) < 1000


def check_config(values: dict[str, object]) -> None:
    check(lambda: count_tensors(config_from_dict(values)))


def integer_fields(values: dict[str, object]) -> list[str]:
    return [name for name, value in values.items() if type(value) in (int, float)]


@pytest.mark.parametrize("published", [M1_PUBLISHED, M2_PUBLISHED], ids=["m1", "m2"])
def test_any_number_in_any_field_of_a_config_is_harmless(published: dict[str, object]) -> None:
    names = [*integer_fields(published), "block_size", "num_experts", "partial_rotary_factor"]
    names += ["attn_type_list", "layer_types", "mlp_intermediate_size", "shared_intermediate_size"]

    @settings(max_examples=examples(80), deadline=None)
    @given(changes=st.dictionaries(st.sampled_from(names), NUMBERS, min_size=1, max_size=3))
    def any_changes(changes: dict[str, object]) -> None:
        check_config(published | changes)

    any_changes()


@settings(max_examples=examples(60), deadline=None)
@given(
    changes=st.fixed_dictionaries(
        {}, optional=dict.fromkeys((*FP8, "bits", "group_size", "input_bits"), NUMBERS)
    ),
    method=st.sampled_from(["fp8", "fulmen"]),
)
def test_any_number_in_a_quantization_config_is_harmless(
    changes: dict[str, object], method: str
) -> None:
    given = (FP8 if method == "fp8" else {"bits": 8, "group_size": 64, "input_bits": 8}) | changes
    check_config(M2_PUBLISHED | {"quantization_config": given | {"quant_method": method}})


@pytest.mark.parametrize(
    "changes",
    [
        {"num_local_experts": 10**6},
        {"num_local_experts": 4096},
        {"num_hidden_layers": 10**12, "attn_type_list": None},
        {"num_hidden_layers": 10**12},
        {"vocab_size": 10**15},
        {"num_attention_heads": 10**9, "num_key_value_heads": 10**9},
        {"head_dim": 10**12, "rotary_dim": 2},
        {"intermediate_size": 10**18},
        {"max_position_embeddings": 2**63},
        {"num_experts_per_tok": 10**6, "num_local_experts": 10**6},
        {"hidden_size": 10**5000},
        {"quantization_config": FP8 | {"weight_block_size": [10**12, 10**12]}},
        {"quantization_config": FP8 | {"weight_block_size": list(range(10**6))}},
        {"attn_type_list": [1] * 10**6},
        {"architectures": ["a" * 10**6] * 100},
        {"x" * 10**6: 1},
    ],
    ids=lambda changes: next(iter(changes))[:30],
)
def test_a_number_that_no_model_has_is_one_sentence(changes: dict[str, object]) -> None:
    values = M2_PUBLISHED | changes
    if "architectures" in changes:
        values["model_type"] = None
    with bounded(), pytest.raises(ValueError) as error:  # noqa: PT011
        config_from_dict(values)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_long_list_of_unconverted_modules_is_matched_in_one_pass() -> None:
    modules = [f"layers.{i}.x" for i in range(100_000)]
    values = M2_PUBLISHED | {"quantization_config": FP8 | {"modules_to_not_convert": modules}}
    with bounded(seconds=12):
        assert count_tensors(config_from_dict(values)) > 96_000


@pytest.mark.parametrize("kind", ["m1", "m2"])
def test_a_config_of_many_experts_beside_few_weights_is_a_short_list(
    kind: str, tmp_path: Path
) -> None:
    save_model(random_model(tiny_m1() if kind == "m1" else tiny_m2()), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"num_local_experts": 4096}))
    with bounded(seconds=8):
        problems = Checkpoint.open(tmp_path).problems()
        assert len(problems) == MAX_PROBLEMS + 1
        assert problems[-1].endswith("more problems are not listed")
        with pytest.raises(ValueError, match=r"and \d+ more, see fulmen models check"):
            load_model(tmp_path)


# safetensors


def write_header(file: Path, header: object, *, data: int = 0, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text) if length is None else length) + text)
        stream.truncate(8 + len(text) + data)


ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "I64", "F8_E4M3", "x" * 999, "", 3]),
        "shape": NUMBERS | st.lists(NUMBERS, max_size=12),
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2) | NUMBERS,
    },
)


@IN_FOLDERS
@given(
    header=st.dictionaries(st.text(max_size=300), ENTRY | NUMBERS, max_size=4) | NUMBERS,
    data=st.integers(0, 64),
    length=st.none() | st.integers(0, 2**64 - 1),
)
def test_any_safetensors_header_is_read_or_refused(
    header: object, data: int, length: int | None, tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    write_header(file, header, data=data, length=length)
    check(lambda: read_header(file))


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes


LONG = "1" + "0" * 5000
HEADERS: dict[str, tuple[object, int | None]] = {
    "a header of 3 GiB": (b"{", 3 * 2**30),
    "a header of 2^63": (b"{", 2**63),
    "a million tensors": ({str(i): entry() for i in range(300_000)}, None),
    "a million dimensions": ({"a": entry(shape=[1] * 400_000)}, None),
    "nine dimensions": ({"a": entry(shape=[1] * 9)}, None),
    "huge dimensions": ({"a": entry(shape=[10**90] * 8)}, None),
    "a long integer": (
        b'{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 4]}}' % LONG.encode(),
        None,
    ),
    "offsets of booleans": ({"a": entry(data_offsets=[False, True])}, None),
    "infinite offsets": ({"a": entry(data_offsets=[0, float("inf")])}, None),
    "a name without end": ({"a" * 10**6: entry()}, None),
    "lists in lists": (b'{"a": ' + b"[" * 500_000, None),
    "an empty one": (b"", None),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_safetensors_header_that_cannot_be_is_one_sentence(kind: str, tmp_path: Path) -> None:
    save_model(random_model(tiny_m2()), tmp_path)
    header, length = HEADERS[kind]
    file = tmp_path / "model.safetensors"
    write_header(file, header, data=4, length=length)
    if length is not None:
        with file.open("r+b") as stream:
            stream.truncate(min(length + 12, 3 * 2**30 + 100))  # sparse
    with bounded():
        (problem,) = Checkpoint.open(tmp_path).problems()
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            load_model(tmp_path)
    assert "\n" not in problem
    assert len(problem) < 600


# The index and the other files of a folder

NAMES = ["../a.safetensors", "/etc/passwd", "a\0.safetensors", "", ".", "..", "a.bin", "a/b", 5]
NAMES += [None, ["a"], {"a": 1}, True, "x" * 10**6 + ".safetensors", "a\n.safetensors", "\\\\a\\b"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:20])
def test_a_shard_that_is_no_file_of_the_folder_is_one_sentence(
    name: object, tmp_path: Path
) -> None:
    save_model(random_model(tiny_m2()), tmp_path)
    index = {"weight_map": {"model.norm.weight": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="shards must lie in the same folder") as error:
        Checkpoint.open(tmp_path)
    assert len(str(error.value)) < 500


def test_an_index_of_a_million_entries_is_refused_before_it_is_built(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2()), tmp_path)
    entries = b",".join(b'"%d":"a.safetensors"' % i for i in range(1_000_000))
    (tmp_path / "model.safetensors.index.json").write_bytes(b'{"weight_map":{' + entries + b"}}")
    with bounded(), pytest.raises(ValueError, match="more than 1,000,000 values"):
        Checkpoint.open(tmp_path)


def test_an_index_of_many_shards_that_are_not_there_is_a_short_list(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2()), tmp_path)
    weight_map = {f"a{i}": f"{i}.safetensors" for i in range(100_000)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with bounded(seconds=15):
        assert len(Checkpoint.open(tmp_path).problems()) == MAX_PROBLEMS + 1


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"[" * 10**6,
        b'{"a":' * 10**6,
        b'{"hidden_size": ' + b"9" * 10**6 + b"}",
        b"\xff\xfe",
        b'{"weight_map": {"a": NaN}, "hidden_size": NaN, "model_type": "minimax_m2"}',
        b" " * (MAX_JSON_BYTES + 1),
    ],
    ids=["lists", "objects", "digits", "no-utf8", "nan", "long"],
)
def test_no_json_of_a_folder_can_hurt(name: str, content: bytes, tmp_path: Path) -> None:
    save_model(random_model(tiny_m2()), tmp_path)
    (tmp_path / name).write_bytes(content)
    for read in (Checkpoint.open, load_model, fingerprint):
        with bounded(), pytest.raises(ValueError, match=name) as error:
            read(tmp_path)
        assert "\n" not in str(error.value)


# Weights that are not numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_load(value: float, tmp_path: Path) -> None:
    model = random_model(tiny_m2())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    save_model(model, tmp_path)
    assert Checkpoint.open(tmp_path).problems() == []
    load_model(tmp_path)


# GGUF

HUGE = [2**16 + 1, 2**31, 2**40, 2**62, 2**64 - 1]


def gguf_header(
    *, num_tensors: int = 0, num_values: int = 0, body: bytes = b"", version: int = 3
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_values) + body


def text(value: str, *, length: int | None = None) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded


def array(kind: GGUFValueType, count: int) -> bytes:
    return text("a") + struct.pack("<IIQ", GGUFValueType.ARRAY, kind, count)


def tensor(num_dimensions: int, size: int, *, kind: int = 0, offset: int = 0) -> bytes:
    dimensions = struct.pack("<Q", size) * min(num_dimensions, 64)
    return (
        text("a")
        + struct.pack("<I", num_dimensions)
        + dimensions
        + struct.pack("<IQ", kind, offset)
    )


GGUFS: dict[str, Callable[[int], bytes]] = {
    "tensors": lambda n: gguf_header(num_tensors=n),
    "keys": lambda n: gguf_header(num_values=n),
    "bytes": lambda n: gguf_header(num_values=1, body=array(GGUFValueType.UINT8, n << 6)),
    "texts": lambda n: gguf_header(num_values=1, body=array(GGUFValueType.STRING, n << 6)),
    "a long text": lambda n: gguf_header(num_values=1, body=text("a", length=n << 12)),
    "dimensions": lambda n: gguf_header(num_tensors=1, body=tensor(n % 2**32, 1)),
    "a shape": lambda n: gguf_header(num_tensors=1, body=tensor(4, n << 16)),
    "an offset": lambda n: gguf_header(num_tensors=1, body=tensor(1, 1, offset=n << 20)),
}


@pytest.mark.parametrize("kind", GGUFS)
@pytest.mark.parametrize("count", HUGE)
def test_a_gguf_that_counts_too_many_is_one_sentence(kind: str, count: int, tmp_path: Path) -> None:
    """Write it into a file of 8 GiB of zeros, so that no count is beyond its end by itself."""
    file = tmp_path / "a.gguf"
    shifts = {"bytes": 6, "texts": 6, "a long text": 12, "a shape": 16, "an offset": 20}
    count = min(count, 2 ** (64 - shifts.get(kind, 0)) - 1)
    with file.open("wb") as stream:
        stream.write(GGUFS[kind](count))
        stream.truncate(2**33)
    for read in (read_gguf_file, read_config, Checkpoint.open):
        with bounded(), pytest.raises(ValueError, match=r"a\.gguf") as error:
            read(file)
        assert "\n" not in str(error.value)


def test_arrays_share_one_budget_of_values(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    part = array(GGUFValueType.UINT8, 2**20) + bytes(2**20)
    file.write_bytes(gguf_header(num_values=40, body=part * 40))
    assert file.stat().st_size < MAX_HEADER_BYTES
    with bounded(), pytest.raises(ValueError, match="values in arrays"):
        read_gguf_file(file)


@IN_FOLDERS
@given(
    key=st.sampled_from(
        [
            "llama.block_count",
            "llama.context_length",
            "llama.embedding_length",
            "llama.feed_forward_length",
            "llama.attention.head_count",
            "llama.attention.head_count_kv",
            "llama.attention.key_length",
            "llama.rope.dimension_count",
            "llama.vocab_size",
            "general.alignment",
            "split.count",
        ]
    ),
    value=st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2, 3, 32, 10**6, 10**12]),
)
def test_any_size_in_a_ggufs_metadata_is_read_or_refused(
    key: str, value: int, tmp_path: Path
) -> None:
    file = tmp_path / "a.gguf"
    if not (tmp_path / "whole.gguf").exists():
        write_gguf(tmp_path / "whole.gguf")
    file.write_bytes(with_value(tmp_path / "whole.gguf", key, value))
    check(lambda: Checkpoint.open(file).problems())


def with_value(whole: Path, key: str, value: int) -> bytes:
    """A GGUF with one more key, which wins over an earlier one of the same name."""
    content = whole.read_bytes()
    num_tensors, num_values = struct.unpack("<QQ", content[8:24])
    added = text(key) + struct.pack("<IQ", GGUFValueType.UINT64, value)
    position = _end_of_metadata(content, num_values)
    header = content[:8] + struct.pack("<QQ", num_tensors, num_values + 1)
    padding = bytes(-len(added) % 32)  # keeps the data aligned
    return header + content[24:position] + added + content[position:] + padding


def _end_of_metadata(content: bytes, num_values: int) -> int:
    cursor = Cursor(Path("a"), np.frombuffer(content, np.uint8))
    cursor.take(24)
    for _ in range(num_values):
        cursor.string()
        cursor.value()
    return cursor.position


def test_a_vocabulary_of_control_tokens_is_read_in_bounded_time(tmp_path: Path) -> None:
    def many(writer: Any, _weights: object) -> None:
        writer.add_token_list(["a", "b", "ab", *(f"<{i}>" for i in range(30_000))])
        writer.add_token_types([TokenType.CONTROL] * 30_003)
        writer.add_token_merges(["a b"])

    write_gguf(tmp_path / "a.gguf", change=many, drop=("tokens", "token_type", "merges"))
    with bounded(seconds=10):
        gguf.read_tokenizer(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("metadata", "found"), [({}, {}), ({"a": "b"}, {"a": "b"}), ({"a": 1}, None), ([1], None)]
)
def test_metadata_is_texts_by_name(metadata: object, found: object, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_header(file, {"__metadata__": metadata})
    if found is None:
        with pytest.raises(ValueError, match=r"a\.safetensors is damaged: its __metadata__ is"):
            read_metadata(file)
    else:
        assert read_metadata(file) == found
