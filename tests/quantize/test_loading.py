"""Rounded checkpoints in memory: packed weights used in place, streamed and loaded alike."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fulmen.checkpoints import Checkpoint, load_model, save_model, stream_model
from fulmen.checkpoints.header import ALIGNMENT
from fulmen.kernels import PackedMatrix, WeightFormat
from fulmen.models import M1Config, M2Config, Model, Packed
from fulmen.models.experts import Experts
from fulmen.models.layers import Linear
from fulmen.models.quantization import PackedConfig
from fulmen.quantize import (
    quantize_checkpoint,
)
from tests.models.helpers import random_model, tiny_m2
from tests.quantize.helpers import GOLDEN, every_config, needs_kernels, settings


@needs_kernels
def test_packed_weights_are_used_where_they_lie_in_the_file(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2()), tmp_path / "in")
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", settings("4", max_shard_bytes=20_000))
    model = load_model(tmp_path / "out")
    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(tmp_path / "out") in line:
            spans.append([int(end, 16) for end in line.split()[0].split("-")])
    matrices = packed_weights(model)
    assert len(matrices) >= 3 * (1 + 4 * 3)
    for name, matrix in matrices.items():
        address = matrix.data.data_ptr()
        assert address % ALIGNMENT == 0, name
        assert any(begin <= address < end for begin, end in spans), name


def packed_weights(model: Model) -> dict[str, PackedMatrix]:
    """The quantised matrices that are used where they lie; attention may join its own anew."""
    found = {
        name: getattr(module, "weight", None)
        for name, module in model.named_modules()
        if isinstance(module, Linear) and not name.endswith(("q_proj", "k_proj", "v_proj"))
    }
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            for expert, matrices in enumerate(module.weights()):
                found |= {f"{name}.{expert}.{w}": m for w, m in matrices._asdict().items()}
    plain = (WeightFormat.FLOAT32, WeightFormat.BFLOAT16)
    return {
        name: weight
        for name, weight in found.items()
        if isinstance(weight, PackedMatrix) and weight.format not in plain
    }


@needs_kernels
@every_config
@pytest.mark.parametrize(
    ("bits", "levels", "input_bits"),
    [
        *(("8", None, bits) for bits in (8, 16)),
        *(("4", levels, bits) for levels in ("even", "codebook") for bits in (8, 16)),
        ("fp8", None, 16),
    ],
)
def test_a_packed_model_computes_what_its_weights_stand_for(
    config: M1Config | M2Config, bits: str, levels: str | None, input_bits: int, tmp_path: Path
) -> None:
    save_model(random_model(config), tmp_path / "in")
    rounding = settings(bits, levels=levels, input_bits=input_bits)
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", rounding)
    packed, plain = load_model(tmp_path / "out"), load_model(tmp_path / "out", trainable=True)
    for name, matrix in packed_weights(packed).items():
        assert torch.equal(matrix.unpack(), plain.state_dict()[f"{name}.weight"]), name
    ids = torch.arange(60)[None]
    with torch.no_grad():
        found, expected = packed(ids), plain(ids)
    error = ((found - expected).norm(dim=-1) / expected.norm(dim=-1))[0]  # (T,)
    if input_bits == 16:
        assert error.max() < 2e-3
    else:  # inputs of 8 bits send a token to another expert now and then
        assert error.median() < 0.1


@needs_kernels
@pytest.mark.parametrize("name", ["m1-tiny", "m2-tiny-fp8", "m2-tiny-fp8-partial"])
def test_a_streamed_model_gives_the_bits_of_a_loaded_one(name: str) -> None:
    ids = [list(range(60)), list(range(9))]
    models = load_model(GOLDEN / name), stream_model(GOLDEN / name)
    with torch.no_grad():
        loaded, streamed = (model(Packed.of(ids)) for model in models)
    assert torch.equal(loaded, streamed)
    assert not any(parameter.is_meta for parameter in models[0].parameters())


@needs_kernels
def test_a_model_packed_for_inference_is_not_saved(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2()), tmp_path / "in")
    with pytest.raises(ValueError, match="load it with trainable=True to save it"):
        save_model(load_model(tmp_path / "in"), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bits": 3}, "bits is 3, it must be 8 or 4 or fp8"),
        ({"levels": "codebook"}, "levels is codebook, it must be even: only"),
        ({"bits": 4, "levels": "odd"}, "levels is 'odd', it must be even or codebook"),
        ({"bits": 4, "levels": 16}, "levels is 16, it must be of type str"),
        ({"bits": "8"}, "bits is '8', it must be of type int"),
        ({"group_size": 48}, "group_size is 48, it must be 32 or 64 or 128"),
        ({"bits": "fp8", "group_size": 64}, "group_size is 64, it must be 128"),
        ({"group_size": None}, "group_size is missing and has no default"),
        ({"input_bits": 4}, "input_bits is 4, it must be 8 or 16"),
        ({"head_bits": 4}, "head_bits is 4, it must be absent or 8"),
        ({"head_group_size": 48}, "head_group_size is 48, it must be absent or 32 or 64 or 128"),
        (
            {"head_group_size": 32},
            "head_group_size is 32, it must be absent: the head is not rounded",
        ),
        (
            {"bits": "fp8", "group_size": 128, "input_bits": 8},
            "input_bits is 8, it must be 16: fp8 weights meet inputs as they are",
        ),
        ({"zero_points": True}, "unknown field zero_points = True in quantization_config"),
    ],
)
def test_a_quantization_config_that_cannot_be_right_is_one_sentence(
    change: dict[str, object], sentence: str
) -> None:
    values = {"quant_method": "fulmen", "bits": 8, "group_size": 64, "input_bits": 16}
    assert tiny_m2(quantization_config=values).quantization_config == PackedConfig(
        bits=8, group_size=64
    )
    with pytest.raises(ValueError, match=sentence):
        tiny_m2(quantization_config=values | change)


def test_a_head_without_groups_of_its_own_has_those_of_the_others(tmp_path: Path) -> None:
    """Files of 8 bits had no head_group_size before a head could have its own."""
    save_model(random_model(tiny_m2()), tmp_path / "in")
    packed = PackedConfig(bits=8, group_size=64, head_bits=8)
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", replace(settings("8"), packed=packed))
    values = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert "head_group_size" not in values
    head = Checkpoint.open(tmp_path / "out").read_packed("lm_head.weight")
    assert head is not None
    assert head.group == 64
    said = PackedConfig(bits=8, group_size=64, head_bits=8, head_group_size=64)
    assert said == packed  # one way to say it: folders are compared by their config


@needs_kernels
def test_fp8_weights_may_have_a_head_of_8_bits(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2()), tmp_path / "in")
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", settings("fp8", head_bits=8))
    head = Checkpoint.open(tmp_path / "out").read_packed("lm_head.weight")
    assert head is not None
    assert (head.format, head.group) == (WeightFormat.INT8, 32)
    packed, plain = load_model(tmp_path / "out"), load_model(tmp_path / "out", trainable=True)
    ids = torch.arange(60)[None]
    with torch.no_grad():
        found, expected = packed(ids), plain(ids)
    assert float((found - expected).norm() / expected.norm()) < 5e-3
