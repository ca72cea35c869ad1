"""A plan's numbers are those of the published files and of the makers' own statements."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fulmen.catalog.cards import list_cards, published_config
from fulmen.models import PackedConfig
from fulmen.plan import Plan, make_plan, render_plan
from fulmen.plan.forecast import (
    HEADROOM,
    Forecast,
    Reading,
    forecast_machine,
    readings,
    weights_at,
)
from fulmen.plan.hardware import ACCELERATORS, parse_gpus
from fulmen.units import parse_rate

M1, M2 = "minimax-m1-80k", "minimax-m2"


def forecast(plan: Plan, precision: str) -> Forecast:
    return next(row for row in plan.forecasts if row.precision == precision)


def readings_of_m2(context: int) -> list[Reading]:
    config = published_config(M2)
    return readings(config, kv_bytes=253_952, state_bytes=0, context=context)


# Hardware as a user writes it.


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [
        ("8xH800", 8, "H800"),
        ("h20", 1, "H20"),
        ("4 x A100-80GB", 4, "A100-80"),
        ("2*rtx 4090", 2, "RTX4090"),
        ("5090", 1, "RTX5090"),
        ("16XMI300X", 16, "MI300X"),
    ],
)
def test_gpus_are_read_as_people_write_them(text: str, count: int, name: str) -> None:
    gpus = parse_gpus(text)
    assert (gpus.count, gpus.accelerator.name) == (count, name)
    assert str(gpus) == f"{count}x{name}"


@pytest.mark.parametrize("text", ["8xH900", "", "x", "8", "H800x8", "8 H800"])
def test_gpus_nobody_knows_are_refused_with_those_that_are_known(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be like 8xH800 with one of H800, H100, .*MI325X"):
        parse_gpus(text)


def test_no_gpus_are_refused() -> None:
    with pytest.raises(ValueError, match="asks for 0 GPUs, it must be one or more"):
        parse_gpus("0xH800")


def test_data_sheets_are_in_plausible_units() -> None:
    for gpu in ACCELERATORS.values():
        assert 10e9 < gpu.memory_bytes < 1e12
        assert 0.5e12 < gpu.bytes_per_second < 10e12
        assert 1e14 < gpu.bf16_flops < 1e16
        assert gpu.fp8_flops is None or 1.9 < gpu.fp8_flops / gpu.bf16_flops < 2.1


# Sizes.


def test_m1_has_the_published_sizes() -> None:
    plan = make_plan(M1)
    assert plan.total_parameters == 456_089_655_296
    assert plan.active_parameters == 45_944_920_064
    assert round(plan.active_with_head / 1e9, 2) == 47.17
    assert round(plan.active_with_head_and_embedding / 1e9, 2) == 48.40
    assert plan.checkpoint_bytes == plan.weight_bytes["bf16"] == 912_210_767_872
    assert plan.num_tensors == 8243
    assert plan.kv_bytes_per_token == 40 * 1024
    assert plan.state_bytes == 280 * 1024**2
    assert plan.max_context == 1_000_000


def test_m2_has_the_published_sizes() -> None:
    plan = make_plan(M2)
    assert plan.total_parameters == 228_689_764_864
    assert round(plan.active_parameters / 1e9, 2) == 9.80
    assert round(plan.active_with_head / 1e9, 2) == 10.42
    assert plan.checkpoint_bytes == plan.weight_bytes["fp8"] == 230_121_630_720
    assert plan.num_tensors == 96_103
    assert plan.kv_bytes_per_token == 253_952
    assert plan.state_bytes == 0
    assert plan.max_context == 196_608


def test_quantised_weights_have_their_bits_and_the_rest_stays() -> None:
    config = published_config(M2)
    # 15,872 experts of 14.2 M parameters; 7.0 B of them a token: 3.74 GB at 4.25 bits, with 4
    # bytes for each of their 6,144 outputs.
    int4 = weights_at(config, "int4")
    assert int4.experts == 62 * 256 * (3 * 3072 * 1536 * 17 // 32 + 4 * (1536 + 1536 + 3072))
    assert round(int4.experts * 8 / 256 / 1e9, 2) == 3.74
    assert round(int4.total / 1e9) == 123
    int8 = weights_at(config, "int8")
    assert int8.experts == 62 * 256 * 3 * 3072 * 1536 * 17 // 16
    assert int8.embedding == int4.embedding == 200_064 * 3072 * 2
    only_experts = weights_at(config, "int8-experts")
    assert only_experts.experts == 62 * 256 * (3 * 3072 * 1536 + 4 * (1536 + 1536 + 3072))
    assert only_experts.rest == weights_at(config, "bf16").rest


def test_weights_that_are_rounded_already_have_the_bytes_they_have() -> None:
    even = PackedConfig(bits=4, group_size=32)
    config = replace(published_config(M2), quantization_config=even)
    assert weights_at(config, "int4").experts == 62 * 256 * 3 * 3072 * 1536 * 5 // 8
    assert round(weights_at(config, "int4").total / 1e9) == 145
    assert weights_at(config, "int8") == weights_at(published_config(M2), "int8")


def test_a_rounded_head_is_no_longer_the_embedding() -> None:
    config = published_config("smollm2")
    found = weights_at(config, "int4")
    assert found.embedding == 49_152 * 576 * 2
    alone = weights_at(replace(config, tie_word_embeddings=False), "int4")
    assert found == alone


def test_a_tied_head_is_stored_once_and_read_whole() -> None:
    config = published_config("smollm2")
    tied = weights_at(config, "bf16")
    assert tied.embedding == 0
    untied = weights_at(replace(config, tie_word_embeddings=False), "bf16")
    assert untied.embedding == 49_152 * 576 * 2
    assert untied.rest == tied.rest
    plan = make_plan("smollm2")
    assert plan.active_with_head == plan.active_with_head_and_embedding == plan.total_parameters


# Forecasts on GPUs, against what the makers say fits.


@pytest.mark.parametrize(
    ("name", "gpus", "precision", "computed", "stated"),
    [
        (M2, "4xH20", "fp8", 380_000, 400_000),
        (M1, "8xH800", "int8-experts", 2_402_000, 2_000_000),
        (M1, "8xH20", "int8-experts", 5_214_000, 5_000_000),
    ],
)
def test_the_context_that_fits_is_near_the_makers_statement(
    name: str, gpus: str, precision: str, computed: int, stated: int
) -> None:
    row = forecast(make_plan(name, gpus=gpus), precision)
    assert row.cache_tokens == pytest.approx(computed, rel=3e-3)
    assert row.cache_tokens == pytest.approx(stated, rel=0.25)


def test_m1_in_bf16_fits_eight_h200_and_not_eight_h800() -> None:
    assert forecast(make_plan(M1, gpus="8xH200"), "bf16").fits
    row = forecast(make_plan(M1, gpus="8xH800"), "bf16")
    assert not row.fits
    assert (row.cache_tokens, row.max_model_len, row.streams, row.decode_bound) == (0, 0, 0, 0)


def test_the_longest_sequence_is_told_where_the_planned_one_does_not_fit() -> None:
    plan = make_plan(M2, gpus="2xH200")
    row = forecast(plan, "fp8")
    assert not row.fits
    # 2 x 141 GB x 0.85, less 230.1 GB of weights, at 253,952 bytes a token.
    assert row.cache_tokens == (239_700_000_000 - 230_121_630_720) // 253_952 == 37_717
    assert 33_000 < row.max_model_len <= 37_717 * (1 - HEADROOM)
    text = render_plan(plan, width=100)
    assert re.search(rf"37,717 +{row.max_model_len:,}  too short for 131,072 tokens", text)
    assert f"--max-model-len {row.max_model_len} " in plan.launch["vllm"] + " "
    assert f"--context-length {row.max_model_len} " in plan.launch["sglang"] + " "
    sentence = f"131,072 tokens do not fit, the limit in the command is {row.max_model_len:,}"
    assert any(sentence in note for note in plan.notes)
    assert forecast(make_plan(M2, gpus="2xH200", context=row.max_model_len), "fp8").fits


def test_the_state_of_a_sequence_takes_room_from_its_cache() -> None:
    row = forecast(make_plan(M1, gpus="4xH200"), "int8-experts")
    free = round(4 * 141e9 * 0.90) - row.weight_bytes
    state, token = 280 * 1024**2, 40_960
    assert row.cache_tokens == (free - state) // token
    assert row.max_model_len * token + state <= (1 - HEADROOM) * free + HEADROOM * state


def test_a_sequence_is_never_longer_than_the_models_positions() -> None:
    row = forecast(make_plan(M2, gpus="8xB200"), "fp8")
    assert row.cache_tokens > row.max_model_len == 196_608


def test_decoding_is_bound_by_active_weights_and_cache_over_bandwidth() -> None:
    plan = make_plan(M1, gpus="8xH200", context=100_000)
    row = forecast(plan, "bf16")
    routers = 80 * 32 * 6144
    active = 2 * plan.active_with_head + 2 * routers  # the routers are float32
    cache = 100_000 * 40_960 + 280 * 1024**2
    assert row.decode_bound == pytest.approx(8 * 4.8e12 / (active + cache))
    assert row.decode_low is None


def test_a_prompt_is_bound_by_its_flops() -> None:
    plan = make_plan(M2, gpus="8xH100", context=100_000)
    fp8, int8 = forecast(plan, "fp8"), forecast(plan, "int8")
    assert fp8.prompt_seconds == pytest.approx(plan.prefill_flops / (8 * 1978.9e12))
    assert int8.prompt_seconds == pytest.approx(plan.prefill_flops / (8 * 989.4e12))
    on_a100 = make_plan(M2, gpus="8xA100-80", context=100_000)
    assert forecast(on_a100, "fp8").prompt_seconds == forecast(on_a100, "int8").prompt_seconds


def test_streams_share_the_experts_they_read() -> None:
    (_, _, _, _, int4) = readings_of_m2(context=1)
    experts = int4.weights.experts
    # Of 256 experts a layer, 32 tokens with eight choices each visit 163, and 128 visit 252.
    assert round(256 * int4.experts_read(32) / experts) == 163
    assert round(256 * int4.experts_read(128) / experts) == 252


# Forecasts on one machine.


def test_a_machine_with_room_reads_memory_alone() -> None:
    row = forecast(make_plan(M2, ram="256GiB", memory="100GB/s"), "int8")
    assert row.expert_share == 1
    assert row.decode_low is not None
    assert row.decode_high is not None
    assert row.decode_low == pytest.approx(0.2 * row.decode_bound)
    assert row.decode_high == pytest.approx(0.7 * row.decode_bound)
    assert row.prompt_seconds is None
    text = render_plan(make_plan(M2, ram="256GiB", memory="100GB/s"))
    assert "expect, with all in memory: 20% to 70% of the bound" in text
    assert "GPUs decide" not in text


def test_experts_that_do_not_fit_are_read_from_disk_at_an_honest_rate() -> None:
    row = forecast(make_plan(M2, ram="24GiB", disk="7GB/s", context=2048), "int4")
    assert 0.12 < row.expert_share < 0.18
    assert row.decode_low is not None
    assert row.decode_high is not None
    # A token reads 3.74 GB of experts and 2.8 GB besides, all of it from memory at 20 to 70 % of
    # 40 GB/s, and those of its experts that a disk holds from there before.
    weights = weights_at(published_config(M2), "int4")
    experts = weights.experts * 8 / 256
    read = experts + weights.rest + 2048 * 253_952
    for rate, hits, reached in (
        (row.decode_low, row.expert_share, 0.2),
        (row.decode_high, row.expert_share**0.3, 0.7),
    ):
        seconds = experts * (1 - hits) / 7e9 + read / (reached * 40e9)
        assert rate == pytest.approx(1 / seconds)
    assert 0.6 < row.decode_low < row.decode_high < 2.5
    assert row.prompt_seconds == pytest.approx(
        weights_at(published_config(M2), "int4").experts * (1 - row.expert_share) / 7e9
    )


@pytest.mark.parametrize("disk", ["1GB/s", "3GB/s", "50GB/s", "1TB/s"])
def test_what_is_read_from_disk_costs_time(disk: str) -> None:
    for reading in readings_of_m2(context=8192):
        needed = reading.weights.total + reading.sequence_bytes + 2 * 1024**3
        whole = forecast_machine(reading, ram_bytes=needed, memory=40e9, disk=None)
        for missing in (1e9, 10e9, 100e9):
            row = forecast_machine(
                reading, ram_bytes=needed - int(missing), memory=40e9, disk=parse_rate(disk)
            )
            assert row.expert_share < 1
            assert row.decode_low is not None
            assert row.decode_high is not None
            assert whole.decode_low is not None
            assert whole.decode_high is not None
            assert 0 < row.decode_low < whole.decode_low
            assert row.decode_low < row.decode_high < whole.decode_high
            assert row.decode_high <= row.decode_bound < whole.decode_bound


def test_without_a_disk_nothing_fits_that_exceeds_memory() -> None:
    plan = make_plan(M2, ram="24GiB")
    assert not any(row.fits for row in plan.forecasts)
    text = render_plan(plan)
    assert "does not fit" in text
    assert "of the bound" not in text


def test_a_machine_tells_the_longest_sequence_that_fits() -> None:
    row = forecast(make_plan(M2, ram="145GiB", context=196_608), "int4")
    assert not row.fits
    room = (145 - 2) * 1024**3 - row.weight_bytes
    assert row.cache_tokens == row.max_model_len == room // 253_952
    longest = make_plan(M2, ram="145GiB", context=row.max_model_len)
    assert forecast(longest, "int4").fits


def test_what_must_stay_in_memory_decides_even_with_a_disk() -> None:
    assert not forecast(make_plan(M1, ram="8GiB", disk="7GB/s"), "int4").fits


def test_more_of_anything_never_makes_decoding_slower() -> None:
    for reading in readings_of_m2(context=2048):
        last = 0.0
        for gib in (16, 24, 32, 64, 128, 192, 256, 512):
            row = forecast_machine(reading, ram_bytes=gib * 1024**3, memory=40e9, disk=3e9)
            if row.fits and row.expert_share < 1:
                assert row.decode_low is not None
                assert row.decode_high is not None
                assert last <= row.decode_low <= row.decode_high
                last = row.decode_low


# Launch commands.


def test_m1_starts_in_the_last_vllm_that_carries_it() -> None:
    plan = make_plan(M1, gpus="8xH800")
    command = plan.launch["vllm"]
    assert list(plan.launch) == ["vllm"]
    assert command.split(" vllm ")[1].startswith("serve MiniMaxAI/MiniMax-M1-80k ")
    for flag in (
        "--tensor-parallel-size 8",
        "--quantization experts_int8",
        "--max-model-len 1000000",
        "--tool-call-parser minimax",
    ):
        assert flag in command
    assert any("0.23.0" in note for note in plan.notes)
    assert "--quantization" not in make_plan(M1, gpus="8xH200").launch["vllm"]


def test_m2_on_eight_gpus_needs_expert_parallelism_and_on_four_does_not() -> None:
    eight, four = make_plan(M2, gpus="8xH100").launch, make_plan(M2, gpus="4xH20").launch
    assert "--tp-size 8 --ep-size 8" in eight["sglang"]
    assert "--tensor-parallel-size 8 --enable-expert-parallel" in eight["vllm"]
    assert "--tp-size 4 " in four["sglang"]
    assert "--ep-size" not in four["sglang"]
    assert "--enable-expert-parallel" not in four["vllm"]
    for command, tools, thinking in (
        (four["sglang"], "minimax-m2", "minimax-append-think"),
        (four["vllm"], "minimax_m2", "minimax_m2_append_think"),
    ):
        assert f"--tool-call-parser {tools} " in command
        assert f"--reasoning-parser {thinking}" in command


def test_a_short_cache_limits_the_length_in_the_command() -> None:
    plan = make_plan(M2, gpus="4xA100-80", context=1000)
    row = forecast(plan, "fp8")
    length = row.max_model_len
    assert 0 < length <= row.cache_tokens * (1 - HEADROOM) < 196_608
    assert f"--max-model-len {length}" in plan.launch["vllm"]
    assert f"--context-length {length}" in plan.launch["sglang"]
    assert any("A100-80 has no FP8 products" in note for note in plan.notes)


def test_no_command_is_printed_that_could_not_start() -> None:
    small = make_plan(M1, gpus="4xH100")
    assert small.launch == {}
    assert any("477" in note or "478" in note for note in small.notes)
    odd = make_plan(M2, gpus="6xH200")
    assert odd.launch == {}
    assert any("1, 2, 4 or 8 GPUs" in note for note in odd.notes)
    assert make_plan("smollm2", gpus="H100").launch == {}


@pytest.mark.parametrize(
    ("name", "gpus", "sentence"),
    [
        # 478 GB of 230 GB each are three GPUs, 230 GB of 27 GB each are nine.
        (M1, "MI325X", "478 GB for the weights alone, it takes 4xMI325X at least"),
        (M2, "8xRTX5090", "230 GB for the weights alone, it takes more than a node of 8xRTX5090"),
    ],
)
def test_too_few_gpus_are_told_a_number_that_can_be_launched(
    name: str, gpus: str, sentence: str
) -> None:
    plan = make_plan(name, gpus=gpus)
    assert plan.launch == {}
    assert any(sentence in note for note in plan.notes)


def test_the_number_of_gpus_that_a_note_asks_for_can_be_launched() -> None:
    for name in (M1, M2):
        for gpu in ACCELERATORS:
            for note in make_plan(name, gpus=gpu).notes:
                found = re.search(r"takes (\d)x", note)
                if found:
                    assert make_plan(name, gpus=f"{found[1]}x{gpu}").launch


def test_m1_takes_the_precision_that_holds_the_planned_length() -> None:
    plan = make_plan(M1, gpus="8xH200", context=3_000_000)
    assert 0 < forecast(plan, "bf16").max_model_len < 3_000_000
    assert "--quantization experts_int8" in plan.launch["vllm"]
    assert "--max-model-len 3000000" in plan.launch["vllm"]


# Reinforcement learning.


def test_the_reports_run_costs_what_the_report_says() -> None:
    rl = make_plan(M1).rl
    assert rl.gpu_hours == pytest.approx(258_048)
    assert rl.usd == pytest.approx(534_700)
    assert rl.days == pytest.approx(21)
    assert round(rl.usd_per_gpu_hour, 2) == 2.07
    assert rl.optimizer_bytes == 16 * 456_089_655_296


def test_the_same_run_scales_with_model_and_gpus() -> None:
    m2 = make_plan(M2).rl
    assert m2.relative_flops == pytest.approx(0.506, abs=1e-3)
    assert m2.gpu_hours == pytest.approx(258_048 * m2.relative_flops)
    half = make_plan(M1, rl_gpus="256xH800").rl
    assert half.days == pytest.approx(42)
    assert half.usd == pytest.approx(534_700)
    other = make_plan(M1, rl_gpus="512xA100-80").rl
    assert other.usd is None
    assert other.gpu_hours == pytest.approx(258_048 * 989.4 / 312)


# The whole plan.


def test_a_plan_becomes_json_and_back() -> None:
    plan = make_plan(M1, gpus="8xH800")
    values = json.loads(json.dumps(plan.to_dict()))
    assert values["total_parameters"] == plan.total_parameters
    assert values["forecasts"][0]["precision"] == "bf16"
    assert values["rl"]["usd"] == pytest.approx(534_700)
    assert values["flops_as_drawn"]["per_position"] == 8 * 64 * 2 * 3 * 128


def test_the_text_gives_each_number_with_its_formula() -> None:
    text = render_plan(make_plan(M1, gpus="8xH800"))
    for part in (
        "456,089,655,296",
        "45,944,920,064 without embedding and head",
        "912,210,767,872 bytes (849.6 GiB) in 8,243 tensors",
        "40,960 bytes = 10 layers x 2 x 8 heads x 128 x 2 bytes",
        "293,601,280 bytes = 70 layers x 64 heads x 128 x 128 x 4 bytes",
        "F(N) = 9.461e+10 N + 3.277e+05 N^2 / 2",
        "F(N) = 1.045e+11 N + 3.932e+05 N^2 / 2",
        "bandwidth / (active weights + cache + state)",
        "258,048, 21.0 days, 534,700 USD at 2.07 USD an hour",
        "= 512 H800 x 21 days x 24 h x 1.000",
    ):
        assert part in re.sub(r"\s+", " ", text)
    assert "as the report draws" not in render_plan(make_plan(M2))


@pytest.mark.parametrize("name", [card.name for card in list_cards()])
@pytest.mark.parametrize(
    "hardware", [{}, {"gpus": "8xB200"}, {"ram": "24GiB", "disk": "3GB/s"}, {"ram": "1TiB"}]
)
def test_every_plan_can_be_printed(name: str, hardware: dict[str, str]) -> None:
    plan = make_plan(name, **hardware)  # type: ignore[arg-type]
    for width in (40, 80, 100, 120):
        assert max(len(line) for line in render_plan(plan, width=width).splitlines()) <= width


def test_a_local_config_is_planned_by_its_path(tmp_path: Path) -> None:
    values = published_config(M2).to_dict()
    values |= {"num_hidden_layers": 31, "attn_type_list": [1] * 31}
    (tmp_path / "config.json").write_text(json.dumps(values))
    plan = make_plan(str(tmp_path), gpus="4xH100")
    assert plan.kv_bytes_per_token == 253_952 // 2
    assert plan.max_context == 196_608
    assert str(tmp_path) in plan.launch["vllm"]


def test_a_model_without_softmax_layers_has_a_state_and_no_cache(tmp_path: Path) -> None:
    values = published_config(M1).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(values | {"attn_type_list": [0] * 80}))
    plan = make_plan(str(tmp_path), gpus="8xB200")
    assert plan.kv_bytes_per_token == plan.flops.per_position == 0
    assert forecast(plan, "bf16").fits
    assert "as the report draws" not in render_plan(plan)


@pytest.mark.parametrize(
    ("hardware", "sentence"),
    [
        ({"gpus": "H100", "ram": "24GiB"}, "--gpus and --ram are two plans"),
        ({"disk": "3GB/s"}, "--disk is about a machine without GPUs and needs --ram"),
        ({"gpus": "H100", "memory": "3GB/s"}, "--memory is about a machine without GPUs and"),
        ({"ram": "128"}, "128 is not a size, it must be like 128GiB or 128GB"),
        ({"ignore_config_fields": ("x",)}, "such a file, minimax-m2 is neither"),
        ({"context": 0}, "--context 0 must be between 1 and"),
        ({"context": 196_609}, "max_position_embeddings, 196608"),
    ],
)
def test_questions_that_make_no_sense_are_refused(hardware: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make_plan(M2, **hardware)
