"""A plan leads with an answer: does it fit, how fast, and what to type."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fulmen.catalog.cards import list_cards, published_config
from fulmen.models import PackedConfig
from fulmen.plan import Plan, make_plan, render_answer
from fulmen.plan.hardware import ACCELERATORS
from fulmen.plan.this_machine import _known, read_gpus, this_machine

M1, M2 = "minimax-m1-80k", "minimax-m2"
GIB = 2**30


def answer(name: str, **hardware: str) -> tuple[Plan, str]:
    plan = make_plan(name, **hardware)  # type: ignore[arg-type]
    return plan, render_answer(plan)


def test_m2_does_not_fit_in_128_gib_and_the_answer_says_what_it_would_take() -> None:
    plan, text = answer(M2, ram="128GiB")
    assert plan.fits is False
    assert text.startswith("No: MiniMax-M2 does not fit in 128GiB of memory.")
    for way in ("bf16", "FP8 (as published)", "8 bits", "4 bits"):
        assert re.search(rf"^  {re.escape(way)} +[0-9.]+ GiB  no ", text, re.M), way
    # 228.7 B weights: 5 bits of attention and experts, 16 of the rest, are 135 GiB; a cache of
    # 8,192 x 248 KiB is 1.9 GiB and the system takes 2.
    smallest = plan.ways[-1].needed_bytes
    assert smallest == plan.weight_bytes["int4"] + 8192 * 253_952 + 2 * GIB
    assert "needs\n138.8 GiB" in text or "needs 138.8\nGiB" in text or "needs 138.8 GiB" in text
    assert "Experts on disk: not yet" in text
    assert "fulmen quantize minimax-m2 minimax-m2-int4 --bits 4\n" in text
    assert "fulmen chat --model minimax-m2-int4\n" in text
    assert not any(way.fits for way in plan.ways)


@pytest.mark.parametrize(
    ("ram", "precision"), [("139GiB", "int4"), ("218GiB", "int4"), ("219GiB", "fp8")]
)
def test_the_way_that_loses_least_is_what_to_type(ram: str, precision: str) -> None:
    plan, text = answer(M2, ram=ram)
    assert plan.fits is True
    assert text.startswith(f"Yes: MiniMax-M2 fits in {ram} of memory, in ")
    assert "not yet" not in text
    typed = text.partition("What to type\n")[2]
    if precision == "fp8":
        assert typed.startswith("  fulmen chat --model minimax-m2\n")
    else:
        assert typed.startswith("  fulmen quantize minimax-m2 minimax-m2-int4 --bits 4\n")


def test_a_way_fits_from_the_memory_on_that_it_says_it_needs() -> None:
    for way in make_plan(M2, ram="1TiB").ways:
        for size, fits in ((way.needed_bytes, True), (way.needed_bytes - 1, False)):
            found = make_plan(M2, ram=f"{size}B").ways
            assert [w.fits for w in found if w.precision == way.precision] == [fits]


def test_the_speed_is_that_of_the_forecast() -> None:
    plan = make_plan(M2, ram="1TiB", memory="200GB/s")
    rows = {row.precision: row for row in plan.forecasts}
    for way in plan.ways:
        assert (way.decode_low, way.decode_high) == (
            rows[way.precision].decode_low,
            rows[way.precision].decode_high,
        )


def test_a_disk_makes_nothing_faster_than_memory_that_holds_all() -> None:
    for ram in ("16GiB", "24GiB", "64GiB", "128GiB", "256GiB"):
        for disk in ("1GB/s", "7GB/s", "100GB/s"):
            for way in make_plan(M2, ram=ram, disk=disk).ways:
                if way.from_disk is not None:
                    low, high = way.from_disk
                    assert 0 < low <= high <= way.decode_high


def test_a_long_conversation_is_given_the_cache_that_it_needs() -> None:
    plan = make_plan(M2, ram="1TiB", context=100_000)
    # 100,000 x 248 KiB are 23.7 GiB.
    assert plan.ways[1].commands == ("fulmen chat --model minimax-m2 --kv-cache 24GiB",)


def test_what_is_rounded_already_runs_as_it_is(tmp_path: Path) -> None:
    for bits, size, precision in ((4, 32, "int4"), (8, 64, "int8"), ("fp8", 128, "fp8")):
        packed = PackedConfig(bits=bits, group_size=size)
        config = replace(published_config(M2), quantization_config=packed)
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
        (way,) = make_plan(str(tmp_path), ram="1TiB").ways
        assert (way.precision, way.is_published) == (precision, True)
        assert way.commands == (f"fulmen chat --model {tmp_path}",)


def test_a_name_is_quoted_as_a_shell_needs_it(tmp_path: Path) -> None:
    folder = tmp_path / "my models;"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(published_config("smollm2").to_dict()))
    ways = make_plan(str(folder), ram="8GiB").ways
    assert ways[0].commands == (f"fulmen chat --model '{folder}'",)
    assert ways[3].commands[1] == "fulmen chat --model 'my models;-int4'"


def test_gpus_are_answered_with_the_commands_that_serve() -> None:
    plan, text = answer(M1, gpus="8xH800")
    assert plan.fits is True
    assert text.startswith("Yes: MiniMax-M1-80k runs on 8xH800 with vLLM")
    assert "vllm serve MiniMaxAI/MiniMax-M1-80k" in text
    plan, text = answer(M1, gpus="H100")
    assert plan.fits is False
    assert text.startswith("No: MiniMax-M1-80k does not fit on 1xH100.")


@pytest.mark.parametrize("name", [card.name for card in list_cards()])
@pytest.mark.parametrize("hardware", [{}, {"gpus": "8xB200"}, {"ram": "1GiB"}, {"ram": "1TiB"}])
def test_every_answer_can_be_printed(name: str, hardware: dict[str, str]) -> None:
    plan, text = answer(name, **hardware)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith({True: "Yes: ", False: "No: ", None: plan.name}[plan.fits])
    assert json.loads(json.dumps(plan.to_dict()))["fits"] == plan.fits


def test_this_machine_is_looked_at() -> None:
    here = this_machine()
    assert 2**28 < here.memory_bytes < 2**50
    assert make_plan("smollm2", ram=here.ram).ways


@pytest.mark.parametrize(
    ("listing", "gpus"),
    [
        ("NVIDIA H100 80GB HBM3, 81559\n" * 8, "8xH100"),
        ("NVIDIA H200, 143771\n", "1xH200"),
        ("NVIDIA A100-SXM4-80GB, 81920\n", "1xA100-80"),
        ("NVIDIA A100-SXM4-40GB, 40960\n", None),
        ("NVIDIA GeForce RTX 4090, 24564\n" * 2, "2xRTX4090"),
        ("NVIDIA L40S, 46068\n", "1xL40S"),
        ("NVIDIA H100 80GB HBM3, 81559\nNVIDIA L40S, 46068\n", None),
        ("NVIDIA Something New, 99999\n", None),
        ("", None),
        ("no devices were found", None),
        (", \n,,,\nx, -1\n", None),
    ],
)
def test_gpus_are_known_by_what_their_driver_says(listing: str, gpus: str | None) -> None:
    found = _known(read_gpus(listing))
    assert (None if found is None else str(found)) == gpus
    assert found is None or found.accelerator.name in ACCELERATORS
