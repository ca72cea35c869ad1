"""Checkpoints there and back, in every layout; and one clear sentence for everything that can be
wrong with one."""

import copy
import itertools
import json
import logging
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fulmen.checkpoints import Checkpoint, save_model
from fulmen.checkpoints import load_model as load_for_inference
from fulmen.checkpoints.checkpoint import dequantise
from fulmen.models import M1Config, M2Config, Model, Packed
from fulmen.models.quantization import Fp8Config
from tests.checkpoints.test_gguf import write_gguf
from tests.models.helpers import random_model, tiny_m1, tiny_m2

load_model = partial(load_for_inference, trainable=True)
"""Plain parameters, to compare."""

GOLDEN = Path(__file__).parent.parent / "golden"
every_config = pytest.mark.parametrize(
    "config",
    [tiny_m1(), tiny_m1(shared_intermediate_size=8), tiny_m2(), tiny_m2(tie_word_embeddings=True)],
    ids=["m1", "m1-shared", "m2", "m2-tied"],
)


@every_config
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_models_load_as_they_were(
    config: M1Config | M2Config, max_shard_bytes: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = random_model(config)
    save_model(model, tmp_path / "first")
    model = load_model(tmp_path / "first", dtype=dtype)
    save_model(model, tmp_path / "second", max_shard_bytes=max_shard_bytes)
    again = load_model(tmp_path / "second")
    state = again.state_dict()
    assert set(state) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert state[name].dtype == tensor.dtype, name
        assert torch.equal(state[name], tensor), name
    assert not list((tmp_path / "second").glob("*.partial"))
    if dtype == torch.float32:  # else the head keeps float32 values that bfloat16 cannot hold
        assert Checkpoint.open(tmp_path / "second").notes() == []
    files = list((tmp_path / "second").glob("*.safetensors"))
    assert (len(files) == 1) == (max_shard_bytes == 10**9)


def test_router_bias_and_head_stay_float32_in_a_bfloat16_model(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2()), tmp_path)
    model = load_model(tmp_path, dtype=torch.bfloat16)
    wide = {name for name, x in model.state_dict().items() if x.dtype == torch.float32}
    layers = [f"model.layers.{layer}.block_sparse_moe" for layer in range(3)]
    expected = {f"{moe}.{leaf}" for moe in layers for leaf in ("gate.weight", BIAS)}
    assert wide == expected | {"lm_head.weight"}


BIAS = "e_score_correction_bias"


def test_a_trained_float32_head_is_not_rounded_when_saved(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2()), tmp_path / "wide")
    model = load_model(tmp_path / "wide", dtype=torch.bfloat16)
    save_model(model, tmp_path / "half")
    stored = load_file(tmp_path / "half/model.safetensors")
    assert stored["lm_head.weight"].dtype == torch.float32
    served, packed = load_for_inference(tmp_path / "half"), copy.deepcopy(model)
    packed.pack()
    batch = Packed.of([list(range(60))])
    with torch.inference_mode():
        assert torch.equal(served(batch), packed(batch))  # to the bit the one that was trained
    with torch.no_grad():
        model.get_parameter("lm_head.weight").copy_(
            model.get_parameter("lm_head.weight").bfloat16().float()
        )
    save_model(model, tmp_path / "half")
    stored = load_file(tmp_path / "half/model.safetensors")
    assert stored["lm_head.weight"].dtype == torch.bfloat16


def test_ragged_fp8_blocks_count_by_block_size() -> None:
    fp8 = Fp8Config(weight_block_size=(4, 3), modules_to_not_convert=())
    weight = torch.randn(10, 7).to(torch.float8_e4m3fn)
    scale = torch.rand(3, 3) + 0.5
    found = dequantise(weight, scale, fp8)
    for row in range(10):
        for column in range(7):
            expected = float(weight[row, column].float() * scale[row // 4, column // 3])
            assert float(found[row, column]) == pytest.approx(expected)


def test_scales_may_lie_in_another_shard(tmp_path: Path) -> None:
    source = GOLDEN / "m2-tiny-fp8"
    tensors = load_file(source / "model.safetensors")
    shards = {"a.safetensors": {}, "b.safetensors": {}}  # type: dict[str, dict[str, torch.Tensor]]
    for name, tensor in tensors.items():
        file = "b.safetensors" if name.endswith("scale_inv") else "a.safetensors"
        shards[file][name] = tensor
    for file, part in shards.items():
        save_file(part, tmp_path / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    shutil.copy(source / "config.json", tmp_path)
    whole, split = load_model(source), load_model(tmp_path)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(split.state_dict()[name], tensor)


def test_layers_beyond_the_model_are_skipped_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(random_model(tiny_m2()), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for layer in (3, 4):
        tensors[f"model.layers.{layer}.eh_proj.weight"] = torch.zeros(2, 2)
    save_file(tensors, tmp_path / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        load_model(tmp_path)
    (record,) = caplog.records
    assert "layers 3 to 4 lie beyond num_hidden_layers (3)" in record.getMessage()


def test_the_head_of_a_tied_model_is_skipped_with_a_note(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2(tie_word_embeddings=True)), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros(61, 24)
    save_file(tensors, tmp_path / "model.safetensors")
    assert "the config ties the head to the embedding" in Checkpoint.open(tmp_path).notes()[0]
    assert load_model(tmp_path).lm_head is None


def test_redundant_buffers_of_transformers_are_ignored(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "m1-tiny-hf", tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in ("slope_rate", "query_decay", "key_decay", "diagonal_decay"):
        tensors[f"model.layers.0.self_attn.{name}"] = torch.zeros(4, 1, 1)
    save_file(tensors, tmp_path / "model.safetensors")
    assert load_model(tmp_path).config == load_model(GOLDEN / "m1-tiny-hf").config
    assert "4 decay buffers are skipped" in Checkpoint.open(tmp_path).notes()[-1]


def test_loading_needs_the_model_and_one_shard_of_memory(tmp_path: Path) -> None:
    config = tiny_m2(vocab_size=8192, hidden_size=512, num_hidden_layers=4, intermediate_size=2048)
    save_model(random_model(config), tmp_path, max_shard_bytes=2**24)
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    largest = max(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size > 8 * largest
    program = (
        "import resource, sys\n"
        "from fulmen.checkpoints import load_model, read_config\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "model = load_model(sys.argv[1])\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < size + largest + 30 * 2**20


# Saving over what is there

SHARDED, SINGLE = 20_000, 10**9


def same(model: Model, other: Model) -> bool:
    """Return True if two models are one in config and weights."""
    state = other.state_dict()
    return model.config == other.config and all(
        name in state and torch.equal(tensor, state[name])
        for name, tensor in model.state_dict().items()
    )


def weight_files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if file.name != "config.json"}


def checkpoint_files(folder: Path) -> set[str]:
    """The files that a loader of this folder needs beside its config."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return {"model.safetensors"}
    return {index.name, *json.loads(index.read_text())["weight_map"].values()}


@pytest.mark.parametrize("before", [SHARDED, SINGLE])
@pytest.mark.parametrize("after", [SHARDED, SINGLE])
def test_a_save_over_a_checkpoint_leaves_only_the_new_one(
    before: int, after: int, tmp_path: Path
) -> None:
    for seed, max_shard_bytes in enumerate((before, after, after)):
        model = random_model(tiny_m2(rope_theta=1000.0 + seed), seed)
        save_model(model, tmp_path, max_shard_bytes=max_shard_bytes)
        assert same(load_model(tmp_path), model)
        assert weight_files(tmp_path) == checkpoint_files(tmp_path)
        assert (max_shard_bytes == SINGLE) == (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("max_shard_bytes", [10**9, 30_000])
def test_a_save_that_finds_no_room_names_the_file(max_shard_bytes: int, tmp_path: Path) -> None:
    program = f"""
import resource, sys
from pathlib import Path
from fulmen.checkpoints import save_model
from fulmen.files import explain
from tests.models.helpers import random_model, tiny_m2
model = random_model(tiny_m2())
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save_model(model, Path(sys.argv[1]), max_shard_bytes={max_shard_bytes})
except OSError as error:
    print(explain(error))
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    name = r"model(-\d{5}-of-\d{5})?\.safetensors"
    assert re.fullmatch(f"{re.escape(str(tmp_path))}/{name}: file too large\n", run.stdout)
    assert not list(tmp_path.glob(".*"))


def test_shards_have_official_names_unless_those_are_taken(tmp_path: Path) -> None:
    for prefix in ("", "2-", ""):
        save_model(random_model(tiny_m2()), tmp_path, max_shard_bytes=SHARDED)
        shards = sorted(file.name for file in tmp_path.glob("*.safetensors"))
        assert shards[0] == f"model-{prefix}00001-of-{len(shards):05}.safetensors"


class Crash(BaseException):
    """The process dies."""


@contextmanager
def crashing(monkeypatch: pytest.MonkeyPatch, num_steps: int) -> Iterator[None]:
    """Lets `num_steps` renames and deletions happen, and no more."""
    steps = iter(range(num_steps))

    def dying(act: Callable[..., object]) -> Callable[..., object]:
        def step(*args: Any, **kwargs: Any) -> object:
            if next(steps, None) is None:
                raise Crash
            return act(*args, **kwargs)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying(Path.replace))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        yield


def save_as_it_crashes(model: Model, folder: Path, max_shard_bytes: int) -> bool:
    """Return True if the save came to its end."""
    try:
        save_model(model, folder, max_shard_bytes=max_shard_bytes)
    except Crash:
        return False
    return True


@pytest.mark.parametrize("same_config", [True, False])
@pytest.mark.parametrize("before", [SHARDED, SINGLE])
@pytest.mark.parametrize("after", [SHARDED, SINGLE])
def test_a_crash_at_any_step_of_a_save_never_mixes_two_models(
    before: int, after: int, same_config: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = random_model(tiny_m2(), 1)
    new = random_model(tiny_m2() if same_config else tiny_m2(rope_theta=1000.0), 2)
    for num_steps in itertools.count():
        folder = tmp_path / str(num_steps)
        save_model(old, folder, max_shard_bytes=before)
        with crashing(monkeypatch, num_steps):
            finished = save_as_it_crashes(new, folder, after)
        if same_config or (folder / "config.json").exists():
            loaded = load_model(folder)
            assert same(loaded, old) or same(loaded, new)
        else:
            with pytest.raises(ValueError, match=r"config\.json is missing"):
                load_model(folder)
        save_model(new, folder, max_shard_bytes=after)
        assert same(load_model(folder), new)
        left = {name for name in weight_files(folder) if not name.endswith(".part")}
        assert left == checkpoint_files(folder)
        if finished:
            break
    assert num_steps > 2


# GGUF


def test_a_gguf_is_checked_by_its_header(tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf")
    checkpoint = Checkpoint.open(tmp_path / "whole.gguf")
    assert checkpoint.problems() == []
    assert checkpoint.notes() == []
    assert set(checkpoint.stored) == {spec.name for spec in checkpoint.config.tensors()}


@pytest.fixture
def gguf_folder(tmp_path: Path) -> Path:
    """A folder whose weights are in a GGUF, with a config.json of its own."""
    write_gguf(tmp_path / "model.gguf")
    values = Checkpoint.open(tmp_path / "model.gguf").config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert Checkpoint.open(tmp_path).problems() == []
    return tmp_path


@pytest.mark.parametrize(
    ("share", "sentence"),
    [(0.0, "is not a GGUF"), (1e-5, "cut short"), (0.01, "cut short"), (0.5, "cut short")],
)
def test_a_damaged_gguf_is_one_problem(share: float, sentence: str, gguf_folder: Path) -> None:
    file = gguf_folder / "model.gguf"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    (problem,) = Checkpoint.open(gguf_folder).problems()
    assert sentence in problem
    with pytest.raises(ValueError, match=sentence):
        load_model(gguf_folder)
    with pytest.raises(ValueError, match=sentence):
        Checkpoint.open(file)


def test_a_gguf_of_other_shapes_than_its_config_is_not_loaded(gguf_folder: Path) -> None:
    config = gguf_folder / "config.json"
    values = json.loads(config.read_text()) | {"attn_type_list": [1, 1, 1]}
    config.write_text(json.dumps(values | {"intermediate_size": 128, "num_hidden_layers": 3}))
    problems = Checkpoint.open(gguf_folder).problems()
    w1 = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    assert f"tensor {w1} in model.gguf has shape [256, 64], the config needs [128, 64]" in problems
    missing = "tensor model.layers.2.input_layernorm.weight [64] is missing"
    assert any(problem.startswith(missing) for problem in problems)
    with pytest.raises(ValueError, match="see fulmen models check"):
        load_model(gguf_folder)


def test_a_head_that_the_config_ties_is_not_read_from_a_gguf(gguf_folder: Path) -> None:
    config = gguf_folder / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"tie_word_embeddings": True}))
    assert "lm_head.weight" not in load_model(gguf_folder).state_dict()


@pytest.mark.parametrize("max_shard_bytes", [SHARDED, SINGLE])
def test_what_is_saved_beside_a_gguf_is_what_loads(
    max_shard_bytes: int, gguf_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = random_model(tiny_m2())
    save_model(model, gguf_folder, max_shard_bytes=max_shard_bytes)
    assert same(load_model(gguf_folder), model)
    sentence = "model.gguf is not read, the safetensors beside it are"
    assert sentence in caplog.text
    assert Checkpoint.open(gguf_folder).notes() == [sentence]


# Broken files


def drop_a_shard(folder: Path) -> None:
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def truncate(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])


def truncate_the_header(folder: Path) -> None:
    next(folder.glob("*.safetensors")).write_bytes(b"\x10\x00\x00")


def garble_the_header(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:8] + b"x" * (file.stat().st_size - 8))


def append(folder: Path) -> None:
    with next(folder.glob("*.safetensors")).open("ab") as stream:
        stream.write(b"more")


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


def only_pickle(folder: Path) -> None:
    next(folder.glob("*.safetensors")).rename(folder / "pytorch_model.bin")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def config_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def no_weights(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()


def edit_header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "model.safetensors"
        stored = file.read_bytes()
        (length,) = struct.unpack("<Q", stored[:8])
        header = json.loads(stored[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + stored[8 + length :])

    return edit


def nest_the_header(folder: Path) -> None:
    text = b'{"a": ' * 100_000
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)


def swap_two(header: dict[str, Any]) -> None:
    first, second = (f"model.layers.{layer}.input_layernorm.weight" for layer in (0, 1))
    header[first]["data_offsets"] = header[second]["data_offsets"]


def escape(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (drop_a_shard, "shard model-00002-of-.* is missing from .*, \\d+ tensors are in it"),
        (truncate, "is truncated: its header promises \\d+ bytes, it has \\d+"),
        (truncate_the_header, "is truncated or no safetensors file: 3 bytes"),
        (garble_the_header, "is no safetensors file: its header cannot be read"),
        (append, "is too long"),
        (nest_the_header, "is no safetensors file: its header cannot be read"),
        (edit_header(lambda h: h[NORM].update(shape=[24.0])), f"gives tensor {NORM} as .*whole"),
        (edit_header(lambda h: h[NORM].update(shape=[True])), f"gives tensor {NORM} as .*whole"),
        (edit_header(lambda h: h[NORM].update(shape=[-24])), f"gives tensor {NORM} as .*whole"),
        (edit_header(lambda h: h[NORM].update(data_offsets=[0])), f"gives tensor {NORM} as"),
        (edit_header(lambda h: h.update({NORM: 3})), f"gives tensor {NORM} as 3, a dtype"),
        (
            edit_header(lambda h: h[NORM].update(shape=[25])),
            f"gives tensor {NORM} 96 bytes, \\[25\\] in F32 needs 100",
        ),
        (edit_header(lambda h: h[NORM].update(dtype="F16")), "\\[24\\] in F16 needs 48"),
        (edit_header(swap_two), "is damaged: tensor .* begins at byte .* before it ends at"),
        (edit_tensors(lambda t: t.__delitem__(NORM)), f"tensor {NORM} \\[24\\] is missing"),
        (
            edit_tensors(lambda t: t.update({NORM: torch.zeros(25)})),
            f"tensor {NORM} in model.safetensors has shape \\[25\\], the config needs \\[24\\]",
        ),
        (
            edit_tensors(lambda t: t.update({NORM: torch.zeros(24, dtype=torch.int32)})),
            f"tensor {NORM} in model.safetensors has dtype I32, a float type is needed",
        ),
        (
            edit_tensors(lambda t: t.update({"model.extra": torch.zeros(2)})),
            "unknown tensor model.extra \\[2\\] in model.safetensors",
        ),
        (only_pickle, "holds weights only as pickles \\(pytorch_model.bin\\)"),
        (no_config, "config.json is missing"),
        (broken_config, "config.json is not valid JSON"),
        (config_list, "config.json must hold a JSON object, found list"),
        (no_weights, "holds no model.safetensors"),
        (escape, "shards must lie in the same folder"),
    ],
)
def test_a_broken_checkpoint_is_one_sentence(
    damage: Callable[[Path], None], sentence: str, tmp_path: Path
) -> None:
    max_shard_bytes = 20_000 if damage is drop_a_shard else 10**9
    save_model(random_model(tiny_m2()), tmp_path, max_shard_bytes=max_shard_bytes)
    damage(tmp_path)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_pickles_and_other_files_are_refused_by_name(tmp_path: Path) -> None:
    for name, sentence in (("model.bin", "is a pickle"), ("model.txt", "neither a checkpoint")):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=sentence):
            load_model(tmp_path / name)
    with pytest.raises(ValueError, match="does not exist"):
        load_model(tmp_path / "absent")


def test_every_problem_of_a_checkpoint_is_listed(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2()), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(3)
    del tensors["lm_head.weight"]
    tensors["model.extra"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    problems = Checkpoint.open(tmp_path).problems()
    assert len(problems) == 3
    with pytest.raises(ValueError, match="and 2 more, see fulmen models check"):
        load_model(tmp_path)


def test_a_lost_shard_hides_no_tensor_that_is_missing_elsewhere(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2()), tmp_path, max_shard_bytes=SHARDED)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    weight_map = index["weight_map"]
    shards = sorted(set(weight_map.values()))
    first, last = tmp_path / shards[0], tmp_path / shards[-1]
    assert weight_map["lm_head.weight"] == last.name
    tensors = load_file(last)
    del tensors["lm_head.weight"]
    tensors["model.embed_tokens.weight"] = torch.zeros(61, 24)
    save_file(tensors, last)
    (tmp_path / shards[1]).unlink()
    problems = Checkpoint.open(tmp_path).problems()
    lost = sum(shard == shards[1] for shard in weight_map.values())
    assert problems == [
        f"shard {shards[1]} is missing from {tmp_path}, {lost} tensors are in it",
        f"tensor model.embed_tokens.weight is in {first.name} and again in {last.name}",
        f"tensor lm_head.weight [61, 24] is missing from {tmp_path}",
    ]


def test_other_float_types_are_a_note_and_load(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2()), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].half()
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.problems() == []
    assert checkpoint.notes() == ["1 tensors are stored as F16, the config implies float32"]
    load_model(tmp_path)


@pytest.mark.parametrize("config", [tiny_m1(), tiny_m2()], ids=["m1", "m2"])
def test_a_forward_pass_with_gradients_is_told_both_ways_out(
    config: M1Config | M2Config, tmp_path: Path
) -> None:
    save_model(random_model(config), tmp_path)
    model, packed = load_for_inference(tmp_path), Packed.of([[1, 2, 3]])
    sentence = r"no gradient: wrap inference in torch\.no_grad\(\), .* trainable=True to train it"
    if not model.is_packed:
        pytest.skip("the kernels do not run here, so nothing is packed")
    for run in (model, model.hidden_states):
        with pytest.raises(ValueError, match=sentence):
            run(packed)
        with torch.no_grad():
            run(packed)
    load_model(tmp_path)(packed).sum().backward()
