"""Rounded checkpoints on disk: what is packed, what is kept, and where each byte lies."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fulmen.checkpoints import Checkpoint, read_config, save_model
from fulmen.checkpoints.header import ALIGNMENT
from fulmen.models import M1Config, M2Config, PackedConfig
from fulmen.quantize import parse_packed, quantize_checkpoint
from fulmen.quantize.quantize import RECORD
from tests.checkpoints.test_gguf import write_gguf
from tests.models.helpers import random_model, tiny_m2
from tests.quantize.helpers import GOLDEN, every_bits, every_config, settings, written


@every_config
@every_bits
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_attention_and_experts_are_packed_and_the_rest_is_as_it_was(
    config: M1Config | M2Config, bits: str, max_shard_bytes: int, tmp_path: Path
) -> None:
    save_model(random_model(config), tmp_path / "in")
    before = written(tmp_path / "in")
    out = tmp_path / "out"
    errors = quantize_checkpoint(
        tmp_path / "in", out, settings(bits, max_shard_bytes=max_shard_bytes)
    )
    checkpoint = Checkpoint.open(out)
    assert checkpoint.problems() == checkpoint.notes() == []
    after = written(out)
    packed_leaves = ["_proj.weight", "output_gate.weight"]
    if bits != "fp8":
        packed_leaves.append("lm_head.weight")
        before.setdefault("lm_head.weight", before["model.embed_tokens.weight"])
    assert set(after) == set(before)
    for name, tensor in after.items():
        is_packed = name.endswith(tuple(packed_leaves)) or ".experts." in name
        assert (tensor.dtype == torch.uint8) == is_packed, name
        if is_packed:
            exact = before[name].double()
            found = float((checkpoint.read(name) - exact).norm() / exact.norm())
            assert errors[name] == pytest.approx(found, rel=1e-3)
            assert found < {"8": 0.01, "4": 0.1, "fp8": 0.04}[bits]
        else:
            assert torch.equal(tensor, before[name]), name
    assert (len(list(out.glob("*.safetensors"))) == 1) == (max_shard_bytes == 10**9)


def test_packed_bytes_begin_at_multiples_of_64_and_the_rest_at_multiples_of_their_type(
    tmp_path: Path,
) -> None:
    save_model(random_model(tiny_m2(hidden_size=36)), tmp_path / "in")
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", settings("4"))
    for name, stored in Checkpoint.open(tmp_path / "out").stored.items():
        assert stored.begin % (ALIGNMENT if stored.dtype == "U8" else 4) == 0, name


def test_small_files_go_along_and_config_says_what_was_done(tmp_path: Path) -> None:
    source = tmp_path / "in"
    save_model(random_model(tiny_m2()), source)
    for name in ("tokenizer.json", "chat_template.jinja", "LICENSE"):
        (source / name).write_text(name)
    (source / "pytorch_model.bin").write_text("pickle")
    values = json.loads((source / "config.json").read_text()) | {"eos_token_id": 7}
    (source / "config.json").write_text(json.dumps(values))
    quantize_checkpoint(source, tmp_path / "out", settings("4", group_size=64, input_bits=16))
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        *("tokenizer.json", "chat_template.jinja", "LICENSE"),
        *("config.json", "model.safetensors", RECORD),
    }
    values = json.loads((tmp_path / "out/config.json").read_text())
    assert values["eos_token_id"] == 7
    assert values["quantization_config"] == {
        "quant_method": "fulmen",
        "bits": 4,
        "levels": "codebook",
        "group_size": 64,
        "input_bits": 16,
        "head_bits": 8,
        "head_group_size": 32,
    }
    config = read_config(tmp_path / "out")
    assert replace(config, quantization_config=None) == tiny_m2()


def test_what_is_not_given_is_as_suits_the_bits() -> None:
    given = {
        ("4", None): (4, "codebook", 32, 8, 8, None),
        ("4", "codebook"): (4, "codebook", 32, 8, 8, None),
        ("4", "even"): (4, "even", 32, 16, None, None),
        ("8", None): (8, "even", 64, 16, 8, 32),
        ("8", "even"): (8, "even", 64, 16, 8, 32),
        ("fp8", None): ("fp8", "even", 128, 16, None, None),
    }
    for (bits, levels), values in given.items():
        names = ("bits", "levels", "group_size", "input_bits", "head_bits", "head_group_size")
        expected = PackedConfig(**dict(zip(names, values, strict=True)))  # type: ignore[arg-type]
        assert parse_packed(bits=bits, levels=levels) == expected
    assert parse_packed(bits="8", head_bits=16).head_group_size is None
    assert parse_packed(bits="fp8", head_bits=8).head_bits == 8
    for fields, sentence in (
        ({"bits": "5"}, "bits is 5, it must be 8 or 4 or fp8"),
        ({"bits": "8", "levels": "codebook"}, "levels is codebook, it must be even: only"),
        ({"bits": "4", "levels": "odd"}, "levels is 'odd', it must be even or codebook"),
        ({"bits": "4", "head_bits": 4}, "head_bits is 4, it must be 8 or 16"),
    ):
        with pytest.raises(ValueError, match=sentence):
            parse_packed(**fields)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bits", ["4", "8"])
def test_a_head_may_stay_as_it_is(tied: bool, bits: str, tmp_path: Path) -> None:
    model = random_model(tiny_m2(tie_word_embeddings=tied))
    save_model(model, tmp_path / "in")
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", settings(bits, head_bits=16))
    before, after = written(tmp_path / "in"), written(tmp_path / "out")
    assert set(after) == set(before)
    name = "model.embed_tokens.weight" if tied else "lm_head.weight"
    assert torch.equal(after[name], before[name])


@pytest.mark.parametrize("tied", [False, True])
def test_a_rounded_head_is_a_matrix_of_its_own(tied: bool, tmp_path: Path) -> None:
    model = random_model(tiny_m2(tie_word_embeddings=tied))
    save_model(model, tmp_path / "in")
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", settings("8", head_bits=8))
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert checkpoint.problems() == []
    assert not checkpoint.config.tie_word_embeddings
    head = model.model.embed_tokens.weight if tied else model.get_parameter("lm_head.weight")
    error = checkpoint.read("lm_head.weight") - head
    assert 0 < error.norm() < 0.01 * head.norm()
    packed = checkpoint.read_packed("lm_head.weight")
    assert packed is not None
    assert packed.group == 32  # finer than the other matrices, which have 64
    assert torch.equal(
        checkpoint.read("model.embed_tokens.weight"), model.model.embed_tokens.weight
    )


def test_another_dtype_is_for_what_is_not_rounded_but_routers_stay(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2()), tmp_path / "in")
    change = replace(settings("8"), dtype=torch.bfloat16)
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", change)
    kinds = {name: tensor.dtype for name, tensor in written(tmp_path / "out").items()}
    wide = {name for name, dtype in kinds.items() if dtype == torch.float32}
    leaves = ("gate.weight", "e_score_correction_bias")
    assert wide == {f"model.layers.{i}.block_sparse_moe.{x}" for i in range(3) for x in leaves}
    assert kinds["model.norm.weight"] == torch.bfloat16
    assert read_config(tmp_path / "out").torch_dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["m2-tiny-fp8", "m2-tiny-fp8-partial"])
@every_bits
def test_official_fp8_blocks_are_rounded_from_their_values_or_kept(
    name: str, bits: str, tmp_path: Path
) -> None:
    errors = quantize_checkpoint(GOLDEN / name, tmp_path / "out", settings(bits))
    before, after = Checkpoint.open(GOLDEN / name), Checkpoint.open(tmp_path / "out")
    assert after.problems() == []
    for tensor, error in errors.items():
        exact, found = before.read(tensor).float(), after.read(tensor)
        blocks = before.config.quantization_config.weight_block_size  # type: ignore[union-attr]
        if bits == "fp8" and blocks == (128, 128) and before.stored[tensor].dtype == "F8_E4M3":
            assert error == 0
            assert torch.equal(found, exact)
        assert float((found - exact).norm()) <= 0.12 * float(exact.norm())


@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_is_rounded_as_a_folder_is(tied: bool, tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", tied=tied)
    quantize_checkpoint(tmp_path / "a.gguf", tmp_path / "out", settings("8"))
    before, after = Checkpoint.open(tmp_path / "a.gguf"), Checkpoint.open(tmp_path / "out")
    assert after.problems() == []
    for name in before.names():
        exact = before.read(name)
        assert float((after.read(name) - exact).norm()) <= 0.01 * float(exact.norm())
