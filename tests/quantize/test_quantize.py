"""Rounded checkpoints: what rounding may cost, what is written, how a killed run goes on, and that
what loads is what was written."""

import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from fulmen.checkpoints import Checkpoint, load_model, read_config, save_model, stream_model
from fulmen.checkpoints.header import ALIGNMENT
from fulmen.kernels import PackedMatrix, WeightFormat, native
from fulmen.models import M1Config, M2Config, Model, Packed
from fulmen.models.experts import Experts
from fulmen.models.layers import Linear
from fulmen.models.quantization import PackedConfig
from fulmen.quantize import (
    QuantizeConfig,
    measure_drift,
    parse_packed,
    quantize_checkpoint,
    sample_text,
)
from fulmen.quantize.calibration import Calibration
from fulmen.quantize.gptq import DAMPING, feedback_of, round_with_feedback
from fulmen.quantize.quantize import RECORD
from fulmen.quantize.rounding import round_fp8, round_int4, round_int8, round_rows
from tests.checkpoints.test_gguf import write_gguf
from tests.engine.helpers import new_tokens
from tests.models.helpers import random_model, smollm2_folder, tiny_m1, tiny_m2
from tests.models.test_smollm2 import PROMPTS

GOLDEN = Path(__file__).parent.parent / "golden"
needs_kernels = pytest.mark.skipif(native() is None, reason="the C++ kernels are not built")
every_bits = pytest.mark.parametrize("bits", ["8", "4", "fp8"])
every_config = pytest.mark.parametrize(
    "config",
    [tiny_m1(), tiny_m1(shared_intermediate_size=8), tiny_m2(), tiny_m2(tie_word_embeddings=True)],
    ids=["m1", "m1-shared", "m2", "m2-tied"],
)


def settings(bits: str, *, max_shard_bytes: int = 10**9, **changes: int) -> QuantizeConfig:
    packed = parse_packed(bits=bits, **changes)
    return QuantizeConfig(packed=packed, max_shard_bytes=max_shard_bytes)


# Rounding


def by_group(x: Tensor, group: int) -> list[Tensor]:
    """(N, K) -> the groups of inputs, a ragged last one too."""
    return list(torch.split(x, group, 1))


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("k", [256, 100])
def test_8_bits_err_no_more_than_the_whole_range_in_255_steps_would(group: int, k: int) -> None:
    weight = torch.randn(20, k, generator=torch.Generator().manual_seed(k))
    restored = round_int8(weight, group).unpack()
    for x, y in zip(by_group(weight, group), by_group(restored, group), strict=True):
        step = x.abs().amax(1) / 127
        assert ((y - x).square().mean(1) <= (step / 2).square()).all()
        assert ((y - x).square().mean(1).mean() <= (step / 12**0.5).square().mean() * 1.05).all()


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("k", [256, 100])
def test_4_bits_err_less_than_the_whole_range_in_15_steps(group: int, k: int) -> None:
    weight = torch.randn(20, k, generator=torch.Generator().manual_seed(k))
    restored = round_int4(weight, group).unpack()
    for x, y in zip(by_group(weight, group), by_group(restored, group), strict=True):
        low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
        scale, offset = ((high - low) / 15).half().float(), low.half().float()
        plain = ((x - offset) / scale).round().clamp(0, 15) * scale + offset
        assert (y - x).square().sum() <= (plain - x).square().sum()


def test_what_was_rounded_to_such_groups_before_comes_back_as_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (48, 3, 32), generator=generator)
    codes[..., 0], codes[..., 1] = 0, 15
    scale = (torch.rand(48, 3, 1, generator=generator) * 0.01 + 1e-3).half().float()
    offset = (-8 * scale).half().float()
    weight = (codes * scale + offset).flatten(1)
    assert torch.equal(round_int4(weight, 32).unpack(), weight)
    codes = torch.randint(-127, 128, (48, 3, 32), generator=generator)
    codes[..., 0] = 127
    weight = (codes * scale).flatten(1)
    torch.testing.assert_close(round_int8(weight, 32).unpack(), weight, atol=0, rtol=1e-6)


def test_fp8_has_the_error_of_three_bits_of_mantissa() -> None:
    weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    restored = round_fp8(weight, 128).unpack()
    # Below the normal numbers of e4m3 steps are even: 2^-9 of a scale that maps 448 to the largest.
    smallest = weight.abs().max() / 448 * 2**-10
    assert ((restored - weight).abs() <= weight.abs() * 2**-4 + smallest).all()


@pytest.mark.parametrize("rounding", [round_int8, round_int4, round_fp8])
@pytest.mark.parametrize("value", [0.0, 0.5, -1e-7])
def test_equal_weights_stay_equal_and_finite(
    rounding: Callable[[Tensor, int], PackedMatrix], value: float
) -> None:
    restored = rounding(torch.full((16, 128), value), 128).unpack()
    torch.testing.assert_close(restored, torch.full((16, 128), value), atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("format", [WeightFormat.INT8, WeightFormat.INT4, WeightFormat.FP8])
def test_parts_make_the_packed_whole_whatever_the_number_of_threads(
    format: WeightFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(400, 200, generator=torch.Generator().manual_seed(0)).bfloat16()
    (whole,) = round_rows(weight, format, 128)
    monkeypatch.setattr("fulmen.quantize.rounding.CHUNK_ELEMENTS", 200 * 128)
    num_threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            parts = list(round_rows(weight, format, 128))
            assert len(parts) > 1
            assert torch.equal(torch.cat([part.data for part in parts]), whole.data)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(num_threads)
    restored = PackedMatrix(whole.data, format, 400, 200, 128).unpack()
    error = (restored - weight.float()).norm()
    assert whole.squared_error**0.5 == pytest.approx(float(error), rel=1e-4)


# Rounding for known inputs


def correlated(rows: int, columns: int, seed: int) -> Tensor:
    """Inputs (T, K) that lie near a quarter of all directions, as a model's do."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(columns // 4, columns, generator=torch.Generator().manual_seed(9))
    noise = 0.3 * torch.randn(rows, columns, generator=generator)
    return torch.randn(rows, columns // 4, generator=generator) @ directions + noise


@pytest.mark.parametrize("format", [WeightFormat.INT8, WeightFormat.INT4])
@pytest.mark.parametrize("k", [128, 100])
def test_feedback_moves_outputs_less_on_inputs_it_has_not_seen(
    format: WeightFormat, k: int
) -> None:
    weight = torch.randn(48, k, generator=torch.Generator().manual_seed(0))
    plain = round_int8(weight, 32) if format == WeightFormat.INT8 else round_int4(weight, 32)
    feedback = feedback_of(correlated(600, k, seed=1))
    fed = torch.cat(
        [m.unpack() for m in round_with_feedback(torch.split(weight, 16), feedback, format, 32)]
    )
    unseen = correlated(600, k, seed=2)
    errors = [float(((w - weight) @ unseen.t()).norm()) for w in (plain.unpack(), fed)]
    assert errors[1] < 0.8 * errors[0]
    assert (fed - weight).norm() > (plain.unpack() - weight).norm()


@pytest.mark.parametrize("format", [WeightFormat.INT8, WeightFormat.INT4])
def test_without_feedback_columns_are_rounded_as_ever(format: WeightFormat) -> None:
    weight = torch.randn(48, 100, generator=torch.Generator().manual_seed(0))
    plain = round_int8(weight, 32) if format == WeightFormat.INT8 else round_int4(weight, 32)
    (fed,) = round_with_feedback([weight], torch.eye(100), format, 32)
    errors = [float((matrix.unpack() - weight).norm()) for matrix in (plain, fed)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)
    assert (fed.data == plain.data).float().mean() > 0.9  # sums may differ in their last bit


def test_feedback_is_the_least_squares_answer_to_one_columns_error() -> None:
    """Where column 0 is off by e, what the others must take off solves a regression on them."""
    inputs = correlated(400, 40, seed=3).double()
    hessian = inputs.t() @ inputs
    hessian += DAMPING * hessian.diagonal().mean() * torch.eye(40)
    expected = torch.linalg.solve(hessian[1:, 1:], hessian[1:, 0])
    found = feedback_of(inputs.float())
    torch.testing.assert_close(-found[0, 1:].double(), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(found, found.triu())


def calibration_ids(count: int) -> list[int]:
    return torch.randint(61, (count,), generator=torch.Generator().manual_seed(1)).tolist()


@every_config
@pytest.mark.parametrize(("bits", "share"), [("8", 1), ("4", 0.95)])
def test_a_calibration_text_lowers_the_drift(
    config: M1Config | M2Config, bits: str, share: float, tmp_path: Path
) -> None:
    config = replace(config, hidden_size=64, intermediate_size=64)
    save_model(random_model(config), tmp_path / "in")
    errors = quantize_checkpoint(tmp_path / "in", tmp_path / "plain", settings(bits))
    calibrated = quantize_checkpoint(
        tmp_path / "in", tmp_path / "out", settings(bits), calibration_ids=calibration_ids(4000)
    )
    assert set(calibrated) == set(errors)
    assert all(calibrated[name] > 0 for name in errors)
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert checkpoint.problems() == checkpoint.notes() == []
    files = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) == 1 + config.num_hidden_layers
    original = stream_model(tmp_path / "in")
    ids = torch.randint(61, (600,), generator=torch.Generator().manual_seed(0)).tolist()
    drifts = [measure_drift(original, load_model(tmp_path / x), ids) for x in ("plain", "out")]
    assert drifts[1].mean_logit_drift < drifts[0].mean_logit_drift * share


@pytest.mark.parametrize(("num_bytes", "threads"), [(0, 1), (2**40, 3)])
def test_as_many_threads_round_a_layer_as_memory_allows(
    num_bytes: int, threads: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save_model(random_model(tiny_m2()), tmp_path / "in")
    monkeypatch.setattr("fulmen.quantize.calibration.JOBS_BYTES", num_bytes)
    pools = []

    class Watched(ThreadPoolExecutor):
        def __init__(self, max_workers: int) -> None:
            super().__init__(max_workers)
            pools.append(max_workers)

    monkeypatch.setattr("fulmen.quantize.rounding.ThreadPoolExecutor", Watched)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        quantize_checkpoint(
            tmp_path / "in", tmp_path / "out", settings("4"), calibration_ids=calibration_ids(300)
        )
    finally:
        torch.set_num_threads(num_threads)
    assert pools == [threads] * 3


def test_inputs_that_are_all_zero_ask_for_no_feedback() -> None:
    assert torch.equal(feedback_of(torch.zeros(300, 40)), torch.eye(40))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_inputs_that_are_not_finite_are_one_sentence(value: float) -> None:
    inputs = torch.ones(300, 40)
    inputs[7, 3] = value
    with pytest.raises(ValueError, match="gives inputs that are not finite, or far too large"):
        feedback_of(inputs)


@pytest.mark.parametrize(
    ("tensor", "value", "sentence"),
    [
        (
            "self_attn.v_proj",
            torch.nan,
            r"1\.self_attn\.v_proj\.weight holds values that are not f",
        ),
        (
            "block_sparse_moe.experts.2.w2",
            torch.inf,
            r"2\.w2\.weight holds values that are not fin",
        ),
        ("input_layernorm", torch.nan, "the calibration text gives inputs that are not finite"),
        ("self_attn.k_proj", 1e7, r"k_proj\.weight holds values too large for 4 bits"),
    ],
)
def test_a_model_that_is_not_finite_on_the_calibration_text_is_one_sentence(
    tensor: str, value: float, sentence: str, tmp_path: Path
) -> None:
    model = random_model(tiny_m2(num_local_experts=4))
    with torch.no_grad():
        model.state_dict()[f"model.layers.1.{tensor}.weight"].view(-1)[5] = value
    save_model(model, tmp_path / "in")
    with pytest.raises(ValueError, match=sentence):
        quantize_checkpoint(
            tmp_path / "in", tmp_path / "out", settings("4"), calibration_ids=calibration_ids(2000)
        )


def test_an_expert_that_few_tokens_chose_is_rounded_without_feedback(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2(num_experts_per_tok=1)), tmp_path / "in")
    plain = quantize_checkpoint(tmp_path / "in", tmp_path / "plain", settings("4"))
    ids = calibration_ids(256)  # not all of them choose one expert of the four
    found = quantize_checkpoint(
        tmp_path / "in", tmp_path / "out", settings("4"), calibration_ids=ids
    )
    for name, error in plain.items():
        assert (found[name] == error) == (".experts." in name), name


def test_a_calibrated_run_that_stopped_anywhere_ends_with_the_same_bytes(tmp_path: Path) -> None:
    source, ids = tmp_path / "in", calibration_ids(1200)
    save_model(random_model(tiny_m1()), source)
    quantize_checkpoint(source, tmp_path / "whole", settings("4"), calibration_ids=ids)
    num_threads = torch.get_num_threads()

    def stop_at(share: float) -> Callable[[int, int | None], None]:
        def stop(done: int, total: int | None) -> None:
            assert total is not None
            if done >= share * total:
                raise KeyboardInterrupt

        return stop

    for step, share in enumerate((0.0, 0.6, 0.9)):
        torch.set_num_threads(1 + step % 2)
        with pytest.raises(KeyboardInterrupt):
            quantize_checkpoint(
                source,
                tmp_path / "out",
                settings("4"),
                calibration_ids=ids,
                on_progress=stop_at(share),
            )
    torch.set_num_threads(num_threads)
    quantize_checkpoint(source, tmp_path / "out", settings("4"), calibration_ids=ids)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("lost", "advanced"), [([0], []), ([1], []), ([2], [0]), ([0, 3], [0, 1]), ([], [])]
)
def test_the_text_comes_no_further_than_the_last_layer_that_is_missing(
    lost: list[int], advanced: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, out, ids = tmp_path / "in", tmp_path / "out", calibration_ids(300)
    save_model(random_model(tiny_m2()), source)
    quantize_checkpoint(source, out, settings("4"), calibration_ids=ids)
    whole = contents(out)
    shards = sorted(out.glob("*.safetensors"))  # what lies outside the layers, then three layers
    assert len(shards) == 4
    for number in lost:
        shards[number].unlink()
    seen = []

    class Watched(Calibration):
        def advance(self, index: int, file: Path) -> None:
            seen.append(index)
            super().advance(index, file)

    monkeypatch.setattr("fulmen.quantize.quantize.Calibration", Watched)
    quantize_checkpoint(source, out, settings("4"), calibration_ids=ids)
    assert seen == advanced
    assert contents(out) == whole


def test_a_calibration_text_that_cannot_be_right_is_one_sentence(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    save_model(random_model(tiny_m2()), source)
    for bits, ids, sentence in (
        ("fp8", calibration_ids(300), "fp8 is rounded without one"),
        ("4", calibration_ids(100), "of 100 tokens is too short, at least 256 are needed"),
    ):
        with pytest.raises(ValueError, match=sentence):
            quantize_checkpoint(source, out, settings(bits), calibration_ids=ids)
    assert not out.exists()
    with pytest.raises(ValueError, match="token id 61 is outside the 61 ids known"):
        quantize_checkpoint(source, out, settings("4"), calibration_ids=[61] * 300)
    quantize_checkpoint(source, tmp_path / "plain", settings("4"))
    with pytest.raises(ValueError, match="was begun with another calibration text, or with none"):
        quantize_checkpoint(
            source, tmp_path / "plain", settings("4"), calibration_ids=calibration_ids(300)
        )


# What is written


def written(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, as the stock library reads them."""
    tensors: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as shard:
            tensors |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    return tensors


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
    assert set(after) == set(before)
    for name, tensor in after.items():
        is_packed = name.endswith(("_proj.weight", "output_gate.weight")) or ".experts." in name
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
    quantize_checkpoint(source, tmp_path / "out", settings("4", group_size=64, input_bits=8))
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
        "group_size": 64,
        "input_bits": 8,
    }
    config = read_config(tmp_path / "out")
    assert replace(config, quantization_config=None) == tiny_m2()


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


# Loading


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
    ("bits", "input_bits"), [("8", 8), ("8", 16), ("4", 8), ("4", 16), ("fp8", 16)]
)
def test_a_packed_model_computes_what_its_weights_stand_for(
    config: M1Config | M2Config, bits: str, input_bits: int, tmp_path: Path
) -> None:
    save_model(random_model(config), tmp_path / "in")
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", settings(bits, input_bits=input_bits))
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


# Config


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bits": 3}, "bits is 3, it must be 8 or 4 or fp8"),
        ({"bits": "8"}, "bits is '8', it must be of type int"),
        ({"group_size": 48}, "group_size is 48, it must be 32 or 64 or 128"),
        ({"bits": "fp8", "group_size": 64}, "group_size is 64, it must be 128"),
        ({"group_size": None}, "group_size is missing and has no default"),
        ({"input_bits": 4}, "input_bits is 4, it must be 8 or 16"),
        ({"head_bits": 4}, "head_bits is 4, it must be absent or 8"),
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


# Refusals, and going on


def test_a_run_goes_on_only_with_the_same_settings_and_the_same_input(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    save_model(random_model(tiny_m2()), source)
    quantize_checkpoint(source, out, settings("8"))
    quantize_checkpoint(source, out, settings("8"))
    with pytest.raises(ValueError, match="was begun with bits 8, not 4; go on with the same, or"):
        quantize_checkpoint(source, out, settings("4"))
    with pytest.raises(ValueError, match="was begun with group_size 32, not 64"):
        quantize_checkpoint(source, out, settings("8", group_size=64))
    save_model(random_model(tiny_m2(), seed=1), source)
    with pytest.raises(ValueError, match="was begun from another input"):
        quantize_checkpoint(source, out, settings("8"))


def test_a_run_killed_before_it_wrote_down_its_settings_leaves_the_folder_free(
    tmp_path: Path,
) -> None:
    save_model(random_model(tiny_m2()), tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / f"out/.{RECORD}.0123.part").write_text("{")
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", settings("8"))
    assert not list((tmp_path / "out").glob(".*.part"))


def test_what_cannot_be_rounded_is_one_sentence(tmp_path: Path) -> None:
    source = tmp_path / "in"
    save_model(random_model(tiny_m2()), source)
    with pytest.raises(ValueError, match="exists and fulmen quantize did not begin it"):
        quantize_checkpoint(source, source, settings("8"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="exists and fulmen quantize did not begin it"):
        quantize_checkpoint(source, tmp_path / "file", settings("8"))
    quantize_checkpoint(source, tmp_path / "out", settings("8"))
    with pytest.raises(ValueError, match="is quantised already, the original checkpoint is needed"):
        quantize_checkpoint(tmp_path / "out", tmp_path / "again", settings("4"))
    model = random_model(tiny_m2())
    with torch.no_grad():
        model.get_parameter("model.layers.1.self_attn.k_proj.weight")[3, 5] = torch.nan
    save_model(model, source)
    with pytest.raises(ValueError, match=r"layers.1.self_attn.k_proj.weight holds values that are"):
        quantize_checkpoint(source, tmp_path / "nan", settings("8"))


@pytest.mark.parametrize("value", [2e5, -7e4, 1e7])
def test_values_too_large_for_float16_scales_are_refused_in_4_bits_and_held_in_8(
    value: float, tmp_path: Path
) -> None:
    model = random_model(tiny_m2())
    with torch.no_grad():
        model.get_parameter("model.layers.1.self_attn.k_proj.weight")[3] = value
        model.get_parameter("model.layers.1.self_attn.k_proj.weight")[3, 5] = value / 2
    save_model(model, tmp_path / "in")
    with pytest.raises(ValueError, match=r"k_proj.weight holds values too large for 4 bits"):
        quantize_checkpoint(tmp_path / "in", tmp_path / "4", settings("4"))
    errors = quantize_checkpoint(tmp_path / "in", tmp_path / "8", settings("8"))
    assert max(errors.values()) < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_what_is_not_rounded_is_bfloat16_or_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    packed = settings("4").packed
    with pytest.raises(ValueError, match=r"dtype is float\d\d, it must be bfloat16 or float32, or"):
        QuantizeConfig(packed=packed, dtype=dtype)
    save_model(random_model(tiny_m2()).to(dtype), tmp_path / "in")
    with pytest.raises(ValueError, match=r"is in float\d\d, rounded models are in bfloat16 or flo"):
        quantize_checkpoint(tmp_path / "in", tmp_path / "out", settings("4"))
    assert not (tmp_path / "out").exists()
    given = QuantizeConfig(packed=packed, dtype=torch.bfloat16)
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", given)
    ids = torch.arange(60)[None]
    with torch.no_grad():
        assert load_model(tmp_path / "out")(ids).isfinite().all()


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="file is no folder that we may write to"):
        settings("4").check_out(tmp_path / "file" / "out")
    settings("4").check_out(tmp_path / "new" / "out")
    save_model(random_model(tiny_m2()), tmp_path / "in")
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", settings("4"))
    settings("4").check_out(tmp_path / "out")
    with pytest.raises(ValueError, match="was begun with bits 4, not 8"):
        settings("8").check_out(tmp_path / "out")


def test_two_runs_do_not_write_one_folder(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    save_model(random_model(tiny_m2()), source)

    def run_another(_done: int, _total: int | None) -> None:
        with pytest.raises(ValueError, match="another fulmen quantize is writing"):
            quantize_checkpoint(source, out, settings("8"))

    quantize_checkpoint(source, out, settings("8"), on_progress=run_another)


PROGRAM = """
import sys
from pathlib import Path
from fulmen.quantize import QuantizeConfig, parse_packed, quantize_checkpoint
print("begun", flush=True)
settings = QuantizeConfig(packed=parse_packed(bits="4"), max_shard_bytes=1_000_000)
quantize_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), settings)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_run_killed_at_any_moment_ends_with_the_same_bytes(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    save_model(random_model(tiny_m2(hidden_size=512, intermediate_size=512)), source)
    command = [sys.executable, "-c", PROGRAM, str(source)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    whole = contents(tmp_path / "whole")
    assert len(whole) > 8
    chance = random.Random(0)
    killed = 0
    for _ in range(2):
        with subprocess.Popen([*command, str(out)], stdout=subprocess.PIPE) as run:
            assert run.stdout is not None
            run.stdout.readline()
            time.sleep(chance.uniform(0, 0.25))
            os.kill(run.pid, signal.SIGKILL)
        killed += run.returncode == -signal.SIGKILL
        if (out / "config.json").exists():
            assert Checkpoint.open(out).problems() == []
    assert killed
    finished = {file: file.stat().st_mtime_ns for file in out.glob("*.safetensors")}
    (out / ".model.safetensors.0123.part").write_bytes(b"what a killed run left")
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    assert contents(out) == whole
    assert all(file.stat().st_mtime_ns == when for file, when in finished.items())


# Quality


def test_drift_is_what_a_direct_comparison_finds(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2()), tmp_path / "in")
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", settings("4"))
    ids = torch.randint(61, (600,), generator=torch.Generator().manual_seed(0))
    drift = measure_drift(
        stream_model(tmp_path / "in"), stream_model(tmp_path / "out"), ids.tolist()
    )
    with torch.no_grad():
        a, b = (
            torch.cat([model(part[None])[0] for part in torch.split(ids, 512)]).double()
            for model in (load_model(tmp_path / "in"), load_model(tmp_path / "out"))
        )
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    targets = [(i, int(ids[i + 1])) for i in range(599) if i != 511]
    rows, columns = torch.tensor(targets).T
    assert drift.num_tokens == 600
    for found, expected in (
        (drift.top1_agreement, (a.argmax(-1) == b.argmax(-1)).double().mean()),
        (drift.mean_kl, (p.exp() * (p - q)).sum(-1).mean()),
        (drift.mean_logit_drift, (a - b).abs().mean()),
        (drift.max_logit_drift, (a - b).abs().max()),
        (drift.original_perplexity, (-p[rows, columns].mean()).exp()),
        (drift.perplexity, (-q[rows, columns].mean()).exp()),
    ):
        assert found == pytest.approx(float(expected), rel=1e-3)
    same = stream_model(tmp_path / "in")
    assert measure_drift(same, same, ids.tolist()).max_logit_drift == 0


# What takes a large model


@pytest.mark.slow
@needs_kernels
def test_a_large_model_takes_the_memory_of_its_largest_tensor_and_goes_on_when_killed(
    tmp_path: Path,
) -> None:
    script = Path(__file__).parents[2] / "benchmarks/checkpoints.py"
    source = tmp_path / "in"
    make = [sys.executable, str(script), "m2", str(source), "--size-gb", "3"]
    subprocess.run(make, check=True, capture_output=True)
    largest = 4 * 32_000 * 1024  # the embedding, were it float32
    program = (
        "import re, sys, time\n"
        "from pathlib import Path\n"
        "from fulmen.quantize import QuantizeConfig, parse_packed, quantize_checkpoint\n"
        # Not getrusage: its peak is that of the process before exec, here pytest.
        "status = Path('/proc/self/status')\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1]) * 1024\n"
        "before, began = peak(), time.perf_counter()\n"
        "quantize_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]),\n"
        "         QuantizeConfig(packed=parse_packed(bits='4'), max_shard_bytes=250_000_000))\n"
        "print(peak() - before, peak(), time.perf_counter() - began)"
    )
    command = [sys.executable, "-c", program, str(source)]
    run = subprocess.run(
        [*command, str(tmp_path / "whole")], check=True, capture_output=True, text=True
    )
    grown, whole, seconds = (float(x) for x in run.stdout.split())
    rate = sum(file.stat().st_size for file in source.glob("*.safetensors")) / seconds
    print(f"grew by {grown / 1e6:.0f} MB to {whole / 1e6:.0f} MB, read {rate / 1e6:.0f} MB/s")
    assert grown < 3 * largest
    assert whole < 1.5e9
    assert Checkpoint.open(tmp_path / "whole").problems() == []
    out = tmp_path / "out"
    with subprocess.Popen([*command, str(out)]) as killed:
        while killed.poll() is None and not list(out.glob("*.safetensors")):
            time.sleep(0.1)
        time.sleep(1)
        os.kill(killed.pid, signal.SIGKILL)
    assert not (out / "config.json").exists()
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    names = {file.name for file in out.iterdir()}
    assert names == {file.name for file in (tmp_path / "whole").iterdir()}
    for name in names:
        assert filecmp.cmp(out / name, tmp_path / "whole" / name, shallow=False), name
    shutil.rmtree(tmp_path)


AGREEMENT = {
    ("8", 32, 16): (0.98, 0.99),
    ("8", 32, 8): (0.95, 0.95),
    ("8", 64, 16): (0.98, 0.975),
    ("8", 64, 8): (0.94, 0.95),
    ("4", 32, 16): (0.99, 0.99),
    ("4", 32, 8): (0.95, 0.95),
    ("4", 64, 16): (0.70, 0.75),
}
"""At least so often, by bits, group_size and input_bits, the most likely token stays the same: on a
text, and on what the original itself says. In bfloat16 it does at 0.984 and 0.987; the GGUF
lies on 16 levels in groups of 32, so 4 bits in such groups lose nothing here, which says nothing of
4 bits in general: those in groups of 64 lose much."""
NUM_ANSWERED = 100


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return smollm2_folder()


@pytest.fixture(scope="module")
def greedy(smollm2: Path) -> list[tuple[list[int], list[int]]]:
    """20 prompts and the 100 tokens with which the original goes on, greedily, in float32."""
    from fulmen.chat import Tokenizer, load_format
    from fulmen.engine import Engine, EngineConfig
    from fulmen.sampling import SamplingParams

    tokenizer, format = Tokenizer.from_folder(smollm2), load_format(smollm2)
    engine = Engine(load_model(smollm2), EngineConfig(max_num_seqs=20, max_model_len=256))
    params = SamplingParams(temperature=0, max_tokens=NUM_ANSWERED)
    answers: dict[int, tuple[list[int], list[int]]] = {}
    for prompt in PROMPTS:
        ids = format.encode([{"role": "user", "content": prompt}], tokenizer=tokenizer)
        answers[engine.add_request(ids, params)] = (ids, [])
    while engine.has_unfinished:
        for output in new_tokens(engine.step()):
            answers[output.request_id][1].append(output.token_id)
    return list(answers.values())


def greedy_agreement(model: Model, answers: list[tuple[list[int], list[int]]]) -> float:
    """How often a model that reads the original's answers would have said the same token next."""
    with torch.no_grad():
        logits = model(Packed.of([prompt + answer for prompt, answer in answers]))
    rows = torch.split(logits, [len(prompt) + len(answer) for prompt, answer in answers])
    same = [
        part[len(prompt) - 1 : -1].argmax(-1) == torch.tensor(answer)
        for (prompt, answer), part in zip(answers, rows, strict=True)
    ]
    return float(torch.cat(same).float().mean())


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize(("bits", "group_size", "input_bits"), AGREEMENT)
def test_smollm2_mostly_says_the_same(
    bits: str,
    group_size: int,
    input_bits: int,
    smollm2: Path,
    greedy: list[tuple[list[int], list[int]]],
    tmp_path: Path,
) -> None:
    from fulmen.chat import Tokenizer

    rounding = settings(bits, group_size=group_size, input_bits=input_bits)
    quantize_checkpoint(smollm2, tmp_path / "out", rounding)
    ids = Tokenizer.from_folder(smollm2).encode(sample_text())[:2000]
    model = load_model(tmp_path / "out")
    drift = measure_drift(stream_model(smollm2), model, ids)
    agreement = greedy_agreement(model, greedy)
    shutil.rmtree(tmp_path / "out")
    print(f"SmolLM2, {bits} bits / {group_size}, inputs {input_bits}: {agreement}, {drift}")
    assert drift.num_tokens == sum(len(answer) for _, answer in greedy) == 2000
    on_text, on_answers = AGREEMENT[bits, group_size, input_bits]
    assert drift.top1_agreement >= on_text
    assert agreement >= on_answers
