"""A plan leads with an answer: does it fit, how fast, and what to type."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from fulmen.catalog.cards import list_cards, published_config
from fulmen.models import ROUNDED_AS, PackedConfig
from fulmen.plan import Plan, make_plan, render_answer, render_plan
from fulmen.plan.hardware import ACCELERATORS
from fulmen.plan.layout import command, table
from fulmen.plan.this_machine import _known, read_gpus, this_machine

M1, M2 = "minimax-m1-80k", "minimax-m2"
GIB = 2**30


def answer(name: str, **hardware: str) -> tuple[Plan, str]:
    plan = make_plan(name, **hardware)  # type: ignore[arg-type]
    return plan, render_answer(plan)


def test_m2_does_not_fit_in_96_gib_and_the_answer_says_what_it_would_take() -> None:
    plan, text = answer(M2, ram="96GiB")
    assert plan.fits is False
    assert text.startswith("No: MiniMax-M2 does not fit in 96GiB of memory.")
    for way in ("bf16", "FP8 (as published)", "8 bits", "4 bits"):
        assert re.search(rf"^  {re.escape(way)} +[0-9.]+ GiB  no ", text, re.M), way
    # 228.7 B weights: 4.25 bits of attention and experts, 9 of the head and 16 of the rest, are 115
    # GiB; a cache of 8,192 x 248 KiB is 1.9 GiB and the system takes 2.
    smallest = plan.ways[-1].needed_bytes
    assert smallest == plan.weight_bytes["int4"] + 8192 * 253_952 + 2 * GIB
    assert "needs 118.8 GiB" in " ".join(text.split())
    assert "Experts on disk: not yet" in text
    assert "fulmen quantize minimax-m2 minimax-m2-int4 --bits 4\n" in text
    assert "fulmen chat --model minimax-m2-int4\n" in text
    assert not any(way.fits for way in plan.ways)


@pytest.mark.parametrize(
    ("ram", "precision"),
    [("119GiB", "int4"), ("128GiB", "int4"), ("218GiB", "int4"), ("219GiB", "fp8")],
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
                    assert 0 < low < high < way.decode_high
                    assert low < way.decode_low


def test_a_long_conversation_is_given_the_cache_that_it_needs() -> None:
    plan = make_plan(M2, ram="1TiB", context=100_000)
    # 100,000 x 248 KiB are 23.7 GiB.
    assert plan.ways[1].commands == ("fulmen chat --model minimax-m2 --kv-cache 24GiB",)


def test_what_is_rounded_already_runs_as_it_is(tmp_path: Path) -> None:
    for packed, precision in (
        (PackedConfig(bits=4, group_size=32), "int4"),
        (ROUNDED_AS[4], "int4"),
        (ROUNDED_AS[8], "int8"),
        (ROUNDED_AS["fp8"], "fp8"),
    ):
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


@pytest.mark.parametrize(
    ("name", "gpus", "context", "first", "limit"),
    [
        (M2, "2xH200", None, "Only up to 33,792 tokens: MiniMax-M2 runs on 2xH200", 33_792),
        (M2, "2xH200", 33_792, "Yes: MiniMax-M2 runs on 2xH200", 33_792),
        (M2, "2xH200", 33_793, "Only up to 33,792 tokens: ", 33_792),
        (M2, "8xH100", None, "Yes: MiniMax-M2 runs on 8xH100", 196_608),
        (M1, "8xH800", None, "Yes: MiniMax-M1-80k runs on 8xH800", 1_000_000),
        (M1, "8xH800", 4_000_000, "Only up to 2,155,520 tokens: MiniMax-M1-80k", 2_155_520),
        (M1, "8xH200", None, "Yes: MiniMax-M1-80k runs on 8xH200", 1_000_000),
        (M2, "3xH100", None, "No: MiniMax-M2 cannot be served on 3xH100. Engines split", None),
        (M2, "MI325X", None, "No: MiniMax-M2 cannot be served on 1xMI325X. The engines", None),
        (M1, "H100", None, "No: MiniMax-M1-80k does not fit on 1xH100. The engines need", None),
        ("smollm2", "H100", None, "No: SmolLM2-135M-Instruct cannot be served on 1xH100.", None),
    ],
)
def test_the_answer_about_gpus_is_that_of_the_command(
    name: str, gpus: str, context: int | None, first: str, limit: int | None
) -> None:
    plan = make_plan(name, gpus=gpus, context=context)
    text = " ".join(render_answer(plan).split())
    assert text.startswith(first)
    assert plan.fits is first.startswith("Yes")
    assert bool(plan.launch) is (limit is not None)
    if limit is None:
        assert "What to type" not in text
        assert (plan.launch_precision, plan.launch_max_model_len) == (None, 0)
        return
    assert plan.launch_max_model_len == limit
    headline = text.partition(" on the GPUs ")[0]
    assert f"{limit:,} tokens" in headline
    assert plan.launch_precision is not None
    assert {"bf16": "in bf16", "fp8": "in FP8", "int8-experts": "with 8-bit experts"}[
        plan.launch_precision
    ] in headline
    typed = re.search(r"--max-model-len (\d+)", plan.launch["vllm"])
    # M2's own limit needs no flag.
    assert limit == (int(typed[1]) if typed else 196_608)
    assert ("experts_int8" in plan.launch["vllm"]) == (plan.launch_precision == "int8-experts")


def test_experts_in_8_bits_are_listed_where_an_engine_serves_them() -> None:
    cases: list[tuple[str, dict[str, str], bool]] = [
        (M1, {"gpus": "8xH800"}, True),
        (M1, {}, True),
        (M1, {"ram": "1TiB"}, False),
        (M2, {"gpus": "8xH800"}, False),
        (M2, {}, False),
    ]
    for name, hardware, is_listed in cases:
        plan, _ = answer(name, **hardware)
        listed = {row.precision for row in plan.forecasts}
        assert ("int8-experts" in plan.weight_bytes) is is_listed
        assert not listed or ("int8-experts" in listed) is is_listed


def test_sizes_are_the_same_in_the_answer_and_in_every_number() -> None:
    plan, text = answer(M2, ram="64GiB")
    assert "It takes 214.3 GiB of disk" in text
    assert "230,121,630,720 bytes (214.3 GiB)" in render_plan(plan)
    assert "FP8 (served) 214.3 GiB" in " ".join(answer(M2, gpus="4xH200")[1].split())


@pytest.mark.parametrize("hardware", [{}, {"ram": "256GiB"}, {"gpus": "4xH200"}])
def test_a_licence_that_forbids_commercial_use_is_told(hardware: dict[str, str]) -> None:
    sentence = "its licence is non-commercial: commercial use needs the written consent"
    assert sentence in " ".join(answer("minimax-m2.7", **hardware)[1].split())
    assert "licence" not in answer(M2, **hardware)[1]


def test_a_disk_that_changes_nothing_is_told() -> None:
    assert "--disk has no effect, all weights fit" in answer(M2, ram="1TiB", disk="3GB/s")[1]
    assert "--disk has no effect, what must be" in answer(M1, ram="8GiB", disk="3GB/s")[1]
    for ram in ("96GiB", "160GiB"):
        text = answer(M2, ram=ram, disk="3GB/s")[1]
        assert "no effect" not in text
        assert "fit from disk (3GB/s), the forecast" in " ".join(text.split())
    assert "(3GB/s, a usual speed; --disk names another)" in " ".join(
        answer(M2, ram="96GiB")[1].split()
    )


@pytest.mark.parametrize("width", [1, 20, 30, 57, 80])
def test_a_command_on_several_lines_is_the_same_to_a_shell(width: int) -> None:
    typed = "A=1 tool serve 'my --models; it'\"'\"'s' --limit 5 \"a  b\" --flag"
    lines = command(typed, width)
    assert shlex.split(lines.replace("\\\n", "")) == shlex.split(typed)


def test_a_table_too_wide_is_a_paragraph_for_each_row() -> None:
    header, rows = ("", "size", "speed"), [("bf16", "10 GB", "-"), ("int4", "does not fit")]
    assert table(header, rows, 40, right=(1,)) == (
        "         size  speed\n  bf16  10 GB  -\n  int4  does not fit"
    )
    assert table(header, rows, 19) == "  bf16: size 10 GB\n  int4: does not\n    fit"


@pytest.mark.parametrize("name", [card.name for card in list_cards()])
@pytest.mark.parametrize("hardware", [{}, {"gpus": "8xB200"}, {"ram": "1GiB"}, {"ram": "1TiB"}])
def test_every_answer_can_be_printed(name: str, hardware: dict[str, str]) -> None:
    plan, text = answer(name, **hardware)
    lines = text.splitlines()
    for width in (40, 60, 80, 100):
        assert max(map(len, render_answer(plan, width=width).splitlines())) <= width
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
