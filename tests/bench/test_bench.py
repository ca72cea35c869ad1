"""The measuring code: its limits add up, its operations are right, and it warms up until the pace
is steady."""

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fulmen.bench import (
    Limits,
    ModelTimer,
    Op,
    Prepared,
    Shapes,
    Spread,
    Workload,
    check_workloads,
    describe_op,
    list_ops,
    report_ops,
    tokens_per_s_limit,
    until_steady,
)
from fulmen.bench.machine import best_seconds
from fulmen.kernels import HeadOutput, Program
from fulmen.models import PackedConfig, decode_bytes, prefill_flops
from fulmen.models.flops import checkpoint_bytes
from tests.kernels.helpers import needs_native
from tests.models.helpers import random_model, tiny_m1, tiny_m2

LIMITS = Limits("some", {1: 10.0, 2: 20.0}, {"bfloat16": 1.0, "int8": 2.0}, {"bfloat16": 0.5})
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = (
    *("checkpoints", "engine", "gguf_files", "guesses", "kernels", "logit_error"),
    *("million", "over_http"),
    *("serving", "training", "worker"),
)
SMALL = list_ops(
    Shapes(
        hidden_size=64,
        qkv_size=96,
        vocab_size=200,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rotary_dim=8,
        num_experts=8,
        top_k=2,
        intermediate_size=32,
        prompt=70,
        long_prompt=130,
        context=100,
        long_context=300,
        working_set=2**16,
    )
)


@pytest.mark.parametrize("op", SMALL, ids=str)
def test_an_operation_that_is_timed_gives_what_its_definition_does(op: Op) -> None:
    prepared = op.prepare()
    # Inputs of 4-bit weights are rounded to 8 bits, others to 16 or to bfloat16.
    assert prepared.error() < (2e-2 if op.format == "int4" else 1e-2)
    with torch.inference_mode():
        outputs = [prepared.run(0), prepared.run(prepared.num_copies)]
        first, again = ([x] if isinstance(x, torch.Tensor) else x for x in outputs)
        theirs = None if prepared.run_torch is None else prepared.run_torch(0)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    if isinstance(theirs, torch.Tensor):
        assert theirs.numel() == first[0].numel()
    assert op.num_bytes > 0


def test_names_of_operations_with_their_work_are_their_own() -> None:
    for ops in (SMALL, list_ops()):
        assert len({str(op) for op in ops}) == len(ops)


_EVERY_HELP = """
import os, runpy, sys
import torch, fulmen.bench, fulmen.llm  # once for all scripts
for script in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        sys.argv, sys.path[0] = [script, "--help"], os.path.dirname(script)
        runpy.run_path(script, run_name="__main__")
        sys.exit()
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(f"{script} failed")
"""


def test_every_benchmark_script_says_what_it_takes() -> None:
    pytest.importorskip("gguf")
    scripts = [str(BENCHMARKS / f"{script}.py") for script in SCRIPTS]
    program = [sys.executable, "-c", _EVERY_HELP, *scripts]
    run = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.lower().count("usage: ") == len(SCRIPTS)


@needs_native
def test_every_format_and_operation_is_listed() -> None:
    ops = list_ops()
    assert {op.format for op in ops} == {"bfloat16", "int8", "int4", "fp8"}
    assert len({(op.name, op.format, op.work) for op in ops}) == len(ops)


def test_the_slower_of_reading_and_multiplying_binds_an_operation() -> None:
    few, many = (
        next(op for op in list_ops() if op.name == "linear" and op.work.startswith(rows))
        for rows in ("1 ", "512 ")
    )
    told = describe_op(few, Spread.of([2 * few.num_bytes / 20e9]), LIMITS)
    assert (told["limit"], told["unit"]) == ("memory", "GB/s")
    assert told["of_limit"] == pytest.approx(0.5)
    assert told["rate"] == pytest.approx(10)
    told = describe_op(many, Spread.of([many.operations / 0.25e12]), LIMITS)
    assert (told["limit"], told["unit"]) == ("products", "TFLOP/s")
    assert told["of_limit"] == pytest.approx(0.25)


def test_an_interrupted_bench_reports_what_it_measured() -> None:
    def interrupted() -> Prepared:
        raise KeyboardInterrupt

    ops = [op for op in SMALL if op.name == "rms norm"][:1]
    ops += [replace(ops[0], prepare=interrupted), *SMALL]
    told: list[str] = []
    report = report_ops(ops, threads=1, rounds=1, say=told.append)
    assert not report.is_complete
    assert [row["name"] for row in report.values["ops"]] == ["rms norm"]
    assert told == [
        "measuring the machine",
        *(f"measuring {n} of {len(ops)}: {ops[0]}" for n in (1, 2)),
    ]


def test_limits_keep_the_higher_of_two_measurements() -> None:
    later = Limits("some", {1: 12.0, 2: 18.0}, {"bfloat16": 0.9, "int8": 2.5}, {"bfloat16": 0.6})
    best = LIMITS.best(later)
    assert best.read_gb_per_s == {1: 12.0, 2: 20.0}
    assert best.operations_per_s("int8") == 2.5e12
    assert best.bytes_per_s == 20e9
    with pytest.raises(ValueError, match="no rate of float64 products was measured"):
        best.operations_per_s("float64")


def test_a_models_limit_is_reading_for_decode_and_multiplying_for_prompts() -> None:
    config = tiny_m2(torch_dtype="bfloat16")
    decode = Workload(kind="decode", num_tokens=4, batch=2, depth=10)
    needed = decode_bytes(config, batch=2, depth=12)
    assert tokens_per_s_limit(config, decode, LIMITS) == pytest.approx(2 * 20e9 / needed)
    prompt = Workload(kind="prefill", num_tokens=8)
    expected = 8 * 1e12 / prefill_flops(config, 8)
    assert tokens_per_s_limit(config, prompt, LIMITS) == pytest.approx(expected)


@needs_native
def test_the_limit_of_rounded_weights_is_theirs_only_where_they_stay_rounded() -> None:
    rounded = PackedConfig(bits=8, group_size=32)
    config = replace(tiny_m2(torch_dtype="bfloat16"), quantization_config=rounded)
    plain = replace(config, quantization_config=None)
    decode, prompt = Workload(kind="decode", num_tokens=4), Workload(kind="prefill", num_tokens=8)
    rates = {"bfloat16": 1.0, "float32": 0.5, "float16": 0.5}
    limits = replace(LIMITS, matmul_tflops=rates)
    for dtype in (torch.bfloat16, torch.float32):
        told = tokens_per_s_limit(config, decode, limits, dtype=dtype)
        assert told == pytest.approx(
            4 * 20e9 / (4 * decode_bytes(replace(config, torch_dtype=dtype), depth=2))
        )
        assert tokens_per_s_limit(config, prompt, limits, dtype=dtype) == pytest.approx(
            8 * 1e12 / prefill_flops(plain, 8)
        )  # int8's 2 TOP/s, twice the products
    for workload in (decode, prompt):
        assert tokens_per_s_limit(config, workload, limits, dtype=torch.float16) == (
            tokens_per_s_limit(plain, workload, limits, dtype=torch.float16)
        )


def test_a_step_reads_what_it_uses_and_its_past() -> None:
    config = tiny_m2(torch_dtype="bfloat16")
    one, more = decode_bytes(config), decode_bytes(config, depth=100)
    assert more - one == 100 * 3 * 2 * 2 * 8 * 2  # layers, keys and values, heads, width, bytes
    # A thousand tokens choose every expert between them.
    embedding = 2 * config.vocab_size * config.hidden_size
    everything = checkpoint_bytes(config) - embedding
    assert decode_bytes(config, batch=1000) == pytest.approx(everything, rel=1e-6)
    assert decode_bytes(config, weight_scale=0.5) == pytest.approx(one / 2)


@pytest.mark.parametrize(
    ("seconds", "calls"), [([9.0, 3.0, 2.0, 2.05, 7.0], 4), ([1.0, 1.0], 2), ([30.0, 1.0], 1)]
)
def test_warming_up_ends_when_two_stretches_agree_or_time_is_up(
    seconds: Sequence[float], calls: int
) -> None:
    left = list(seconds)
    agreed = until_steady(lambda: left.pop(0))
    assert len(seconds) - len(left) == calls
    assert agreed == (calls > 1)


def test_a_timer_tells_what_softmax_layers_take_of_a_hybrid() -> None:
    hybrid, plain = (
        ModelTimer(random_model(config), chunk=16) for config in (tiny_m1(), tiny_m2())
    )
    for timer in (hybrid, plain):
        for timing in (timer.prefill(40), timer.decode(3, batch=2, depth=70)):
            assert timing.seconds > 0
            if timer is plain:
                assert timing.softmax_seconds is None
            else:
                assert timing.softmax_seconds is not None
                assert 0 < timing.softmax_seconds < timing.seconds
    assert not any(module._forward_hooks for module in hybrid.model.modules())


def test_a_timer_keeps_its_recorded_steps_while_its_cache_is_large_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    def remembering(self: Program[HeadOutput], call: Callable[[], HeadOutput]) -> None:
        made.append(call)
        init(self, call)

    init = Program.__init__
    monkeypatch.setattr(Program, "__init__", remembering)
    model = random_model(tiny_m2())
    model.pack()
    timer = ModelTimer(model, chunk=16)
    timer.reserve(1, 300 + 64)
    runner = timer._runner
    timer.prefill(40)
    timer.decode(16, depth=300)
    assert len(made) == model.is_packed
    timer.decode(64, depth=300)
    assert timer._runner is runner
    assert len(made) == model.is_packed
    timer.reserve(2, 300)
    assert timer._runner is not runner


def test_steps_of_a_timer_give_what_one_pass_does() -> None:
    for config in (tiny_m1(), tiny_m2()):
        model = random_model(config)
        model.pack()
        input_ids = list(range(50))
        with torch.inference_mode():
            logits = model(torch.tensor([input_ids]))[0].float()
        best, sums = ModelTimer(model).best_logits(input_ids)
        torch.testing.assert_close(best, logits.amax(-1))
        torch.testing.assert_close(sums, logits.logsumexp(-1))


def test_a_workload_longer_than_the_context_is_refused() -> None:
    workload = Workload(kind="decode", num_tokens=4, depth=1021)
    with pytest.raises(
        ValueError, match=r"needs room for 1,025 tokens, the model's context is 1,024"
    ):
        check_workloads(tiny_m2(), [workload])


@pytest.mark.parametrize(("max_seconds", "calls"), [(0.0, 2), (math.inf, 4)])
def test_the_shortest_of_several_calls_is_looked_for_no_longer_than_allowed(
    max_seconds: float, calls: int
) -> None:
    made = []
    assert best_seconds(lambda: made.append(1), 3, max_seconds=max_seconds) >= 0
    assert len(made) == calls
