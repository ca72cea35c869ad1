"""Runs of quantisation that are refused, stopped or killed, and end with the same bytes."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from fulmen.checkpoints import Checkpoint, load_model, save_model
from fulmen.quantize import (
    QuantizeConfig,
    quantize_checkpoint,
)
from fulmen.quantize.quantize import RECORD
from tests.models.helpers import random_model, tiny_m2
from tests.quantize.helpers import contents, settings
from tests.warm import python


def test_a_run_goes_on_only_with_the_same_settings_and_the_same_input(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    save_model(random_model(tiny_m2()), source)
    quantize_checkpoint(source, out, settings("8"))
    quantize_checkpoint(source, out, settings("8"))
    with pytest.raises(ValueError, match="was begun with bits 8, not 4; go on with the same, or"):
        quantize_checkpoint(source, out, settings("4"))
    with pytest.raises(ValueError, match="was begun with group_size 64, not 32"):
        quantize_checkpoint(source, out, settings("8", group_size=32))
    save_model(random_model(tiny_m2(), seed=1), source)
    with pytest.raises(ValueError, match="was begun from another input"):
        quantize_checkpoint(source, out, settings("8"))


def test_a_run_that_began_before_there_was_a_choice_of_levels_goes_on_with_even_ones(
    tmp_path: Path,
) -> None:
    save_model(random_model(tiny_m2()), tmp_path / "in")
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", settings("4", levels="even"))
    whole = contents(tmp_path / "out")
    record = json.loads(whole[RECORD])
    assert record.pop("levels") == "even"
    (tmp_path / "out" / RECORD).write_text(json.dumps(record))
    (tmp_path / "out/model.safetensors").unlink()
    with pytest.raises(ValueError, match="was begun with levels even, not codebook"):
        quantize_checkpoint(tmp_path / "in", tmp_path / "out", settings("4"))
    quantize_checkpoint(tmp_path / "in", tmp_path / "out", settings("4", levels="even"))
    assert contents(tmp_path / "out") == whole | {RECORD: json.dumps(record).encode()}


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
def test_values_too_large_for_float16_scales_are_refused_with_even_levels_and_held_else(
    value: float, tmp_path: Path
) -> None:
    model = random_model(tiny_m2())
    with torch.no_grad():
        model.get_parameter("model.layers.1.self_attn.k_proj.weight")[3] = value
        model.get_parameter("model.layers.1.self_attn.k_proj.weight")[3, 5] = value / 2
    save_model(model, tmp_path / "in")
    with pytest.raises(ValueError, match=r"k_proj.weight holds values too large for 4 bits"):
        quantize_checkpoint(tmp_path / "in", tmp_path / "even", settings("4", levels="even"))
    for bits, largest in (("8", 0.01), ("4", 0.1)):
        errors = quantize_checkpoint(tmp_path / "in", tmp_path / bits, settings(bits))
        assert max(errors.values()) < largest


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


def test_a_run_killed_at_any_moment_ends_with_the_same_bytes(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    save_model(random_model(tiny_m2(hidden_size=512, intermediate_size=512)), source)
    command = python("-c", PROGRAM, source)
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
            run.stdout.read()  # until it has ended
        killed += run.returncode == -signal.SIGKILL
        if (out / "config.json").exists():
            assert Checkpoint.open(out).problems() == []
    assert killed
    finished = {file: file.stat().st_mtime_ns for file in out.glob("*.safetensors")}
    (out / ".model.safetensors.0123.part").write_bytes(b"what a killed run left")
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    assert contents(out) == whole
    assert all(file.stat().st_mtime_ns == when for file, when in finished.items())
