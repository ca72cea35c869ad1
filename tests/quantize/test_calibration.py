"""Rounding for a calibration text: feedback, layer by layer, resumed anywhere."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fulmen.checkpoints import Checkpoint, load_model, save_model, stream_model
from fulmen.kernels import WeightFormat
from fulmen.models import M1Config, M2Config
from fulmen.quantize import (
    measure_drift,
    quantize_checkpoint,
)
from fulmen.quantize.calibration import Calibration
from fulmen.quantize.gptq import DAMPING, feedback_of, round_with_feedback
from fulmen.quantize.rounding import round_codebook4, round_int4, round_int8
from tests.models.helpers import random_model, tiny_m1, tiny_m2
from tests.quantize.helpers import calibration_ids, contents, every_config, settings, written

ROUNDINGS = {
    WeightFormat.INT8: round_int8,
    WeightFormat.INT4: round_int4,
    WeightFormat.CODEBOOK4: round_codebook4,
}


def correlated(rows: int, columns: int, seed: int) -> Tensor:
    """Inputs (T, K) that lie near a quarter of all directions, as a model's do."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(columns // 4, columns, generator=torch.Generator().manual_seed(9))
    noise = 0.3 * torch.randn(rows, columns, generator=generator)
    return torch.randn(rows, columns // 4, generator=generator) @ directions + noise


@pytest.mark.parametrize("format", ROUNDINGS)
@pytest.mark.parametrize("k", [128, 100])
def test_feedback_moves_outputs_less_on_inputs_it_has_not_seen(
    format: WeightFormat, k: int
) -> None:
    weight = torch.randn(48, k, generator=torch.Generator().manual_seed(0))
    plain = ROUNDINGS[format](weight, 32)
    feedback = feedback_of(correlated(600, k, seed=1))
    fed = torch.cat(
        [m.unpack() for m in round_with_feedback(torch.split(weight, 16), feedback, format, 32)]
    )
    unseen = correlated(600, k, seed=2)
    errors = [float(((w - weight) @ unseen.t()).norm()) for w in (plain.unpack(), fed)]
    assert errors[1] < 0.8 * errors[0]
    assert (fed - weight).norm() > (plain.unpack() - weight).norm()


@pytest.mark.parametrize("format", ROUNDINGS)
def test_without_feedback_columns_are_rounded_as_ever(format: WeightFormat) -> None:
    weight = torch.randn(48, 100, generator=torch.Generator().manual_seed(0))
    plain = ROUNDINGS[format](weight, 32)
    (fed,) = round_with_feedback([weight], torch.eye(100), format, 32)
    errors = [float((matrix.unpack() - weight).norm()) for matrix in (plain, fed)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)
    assert (fed.data == plain.data).float().mean() > 0.9  # sums may differ in their last bit


def test_feedback_is_the_least_squares_answer_to_one_columns_error() -> None:
    """Solve the regression that says what the others must take off where column 0 is off by e."""
    inputs = correlated(400, 40, seed=3).double()
    hessian = inputs.t() @ inputs
    hessian += DAMPING * hessian.diagonal().mean() * torch.eye(40)
    expected = torch.linalg.solve(hessian[1:, 1:], hessian[1:, 0])
    found = feedback_of(inputs.float())
    torch.testing.assert_close(-found[0, 1:].double(), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(found, found.triu())


@every_config
@pytest.mark.parametrize(
    ("bits", "levels", "share"), [("8", None, 1), ("4", None, 0.95), ("4", "even", 0.95)]
)
def test_a_calibration_text_lowers_the_drift(
    config: M1Config | M2Config, bits: str, levels: str | None, share: float, tmp_path: Path
) -> None:
    config = replace(config, hidden_size=64, intermediate_size=64)
    save_model(random_model(config), tmp_path / "in")
    rounding = settings(bits, levels=levels, head_bits=16)
    errors = quantize_checkpoint(tmp_path / "in", tmp_path / "plain", rounding)
    calibrated = quantize_checkpoint(
        tmp_path / "in", tmp_path / "out", rounding, calibration_ids=calibration_ids(4000)
    )
    assert set(calibrated) == set(errors)
    assert all(calibrated[name] > 0 for name in errors)
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert checkpoint.problems() == checkpoint.notes() == []
    assert [file.name for file in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]
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
            tmp_path / "in",
            tmp_path / "out",
            settings("4", head_bits=16),
            calibration_ids=calibration_ids(300),
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
            tmp_path / "in",
            tmp_path / "out",
            settings("4", levels="even"),
            calibration_ids=calibration_ids(2000),
        )


def test_an_expert_that_few_tokens_chose_is_rounded_without_feedback(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2(num_experts_per_tok=1)), tmp_path / "in")
    rounding = settings("4", head_bits=16)
    plain = quantize_checkpoint(tmp_path / "in", tmp_path / "plain", rounding)
    ids = calibration_ids(256)  # not all of them choose one expert of the four
    found = quantize_checkpoint(tmp_path / "in", tmp_path / "out", rounding, calibration_ids=ids)
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
    config = settings("4", max_shard_bytes=20_000)
    quantize_checkpoint(source, out, config, calibration_ids=ids)
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
    quantize_checkpoint(source, out, config, calibration_ids=ids)
    assert seen == advanced
    assert contents(out) == whole


def test_a_small_model_that_was_rounded_for_a_text_is_one_file(tmp_path: Path) -> None:
    source, out, sharded, ids = *(tmp_path / name for name in "abc"), calibration_ids(300)
    save_model(random_model(tiny_m2()), source)
    errors = quantize_checkpoint(source, out, settings("4"), calibration_ids=ids)
    several = settings("4", max_shard_bytes=20_000)
    assert quantize_checkpoint(source, sharded, several, calibration_ids=ids) == errors
    assert [file.name for file in out.glob("model*")] == ["model.safetensors"]
    one, other = written(out), written(sharded)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)

    kept = (out / "model.safetensors").read_bytes()
    for file in sharded.glob("model-*"):  # of a run that was killed before it deleted them
        shutil.copy(file, out)
    (out / "config.json").unlink()
    assert quantize_checkpoint(source, out, settings("4"), calibration_ids=ids) == errors
    (out / "model.safetensors").unlink()  # of one that was killed before it joined them
    for file in sharded.glob("model-*"):
        shutil.copy(file, out)
    assert quantize_checkpoint(source, out, settings("4"), calibration_ids=ids) == errors
    assert [file.name for file in out.glob("model*")] == ["model.safetensors"]
    assert (out / "model.safetensors").read_bytes() == kept


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
