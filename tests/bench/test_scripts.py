"""The scripts in benchmarks/: they say what they ran on, stop at once where a competitor's tool is
missing, and compare what has as many bits."""

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from importlib import import_module
from itertools import pairwise, product
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from fulmen.bench import Limits, Spread, Workload, device_name, tokens_per_s_limit
from fulmen.checkpoints import Checkpoint, read_config, save_model
from fulmen.kernels import native
from fulmen.models import (
    Config,
    Fp8Config,
    M1Config,
    M2Config,
    PackedConfig,
    multiplied_weights,
)
from fulmen.quantize import QuantizeConfig, parse_packed, quantize_checkpoint
from tests.kernels.helpers import needs_native
from tests.models.helpers import random_model, tiny_m1, tiny_m2
from tests.tiny import write_checkpoint

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
DECODE = Workload(kind="decode", num_tokens=4)
PROMPT = Workload(kind="prefill", num_tokens=8)
LIMITS = Limits("some", {1: 10.0, 2: 20.0}, {"bfloat16": 1.0, "int8": 2.0}, {"bfloat16": 0.5})
every_bits = pytest.mark.parametrize("bits", ["8", "4", "fp8"])


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a script as the others import it: by its name, from its folder."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module(name)


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("measure", monkeypatch)


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("peers", monkeypatch)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("engine", monkeypatch)


@pytest.fixture
def gguf_files(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("gguf_files", monkeypatch)


def rounded(packed: PackedConfig | None) -> M2Config:
    return replace(tiny_m2(torch_dtype="bfloat16"), quantization_config=packed)


def program(file: Path, lines: str) -> Path:
    """A tool that does what some lines of shell say."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{lines}\n", encoding="utf-8")
    file.chmod(0o755)
    return file


# What a number was measured on


@every_bits
def test_a_checkpoint_written_as_it_comes_is_called_default(
    bits: str, tmp_path: Path, measure: ModuleType
) -> None:
    save_model(random_model(tiny_m2()), tmp_path / "in")
    quantize_checkpoint(
        tmp_path / "in", tmp_path / "out", QuantizeConfig(packed=parse_packed(bits=bits))
    )
    config = read_config(tmp_path / "out")
    assert measure.is_default(config)
    assert measure.label("a", config) == "a, default"
    assert f"the default of fulmen quantize --bits {bits}" in measure.settings_text(config)


@every_bits
def test_any_other_setting_is_not_the_default(bits: str, measure: ModuleType) -> None:
    usual = parse_packed(bits=bits)
    names = [field.name for field in fields(usual) if field.name != "bits"]
    found = 0
    for name, value in product(names, (None, 8, 16, 32, 64, 128, "even", "codebook")):
        try:
            other = PackedConfig(**{**asdict(usual), name: value})
        except ValueError:
            continue
        if other != usual:
            found += 1
            config = rounded(other)
            assert not measure.is_default(config)
            assert measure.label("a", config) == "a"
            assert f"not the default of fulmen quantize --bits {bits}" in (
                measure.settings_text(config)
            )
    assert found


def test_weights_that_are_not_rounded_are_no_default(measure: ModuleType) -> None:
    assert not measure.is_default(rounded(None))
    assert measure.settings_text(rounded(None)) == "all in bfloat16"
    blocks = Fp8Config(weight_block_size=(128, 128), modules_to_not_convert=("lm_head",))
    text = measure.settings_text(replace(rounded(None), quantization_config=blocks))
    assert "weight_block_size [128, 128]" in text
    assert "default" not in text


@every_bits
def test_settings_name_every_field_of_the_format(bits: str, measure: ModuleType) -> None:
    packed = parse_packed(bits=bits)
    text, settings = (
        told(rounded(packed)) for told in (measure.settings_text, measure.settings_of)
    )
    for field in fields(packed):
        value = getattr(packed, field.name)
        assert settings[field.name] == value
        assert f"{field.name} {'as stored' if value is None else value}" in text


def test_the_setup_names_the_processor_the_kernels_and_memorys_rate(
    measure: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = parse_packed(bits="4")
    setup = measure.print_setup(2, {"mine": rounded(packed)}, read_gb_per_s={1: 10.26, 2: 20.0})
    said = capsys.readouterr().err
    extension = native()
    for part in (
        device_name(),
        "plain torch" if extension is None else f"kernels for {extension.isa()}",
        "threads: 2",
        "10.3 GB/s with 1 and 20.0 GB/s with 2",
        "mine: bits 4, ",
        f"group_size {packed.group_size}, ",
    ):
        assert part in said
    assert setup["isa"] == (None if extension is None else extension.isa())
    assert (setup["threads"], setup["read_gb_per_s"]) == (2, {1: 10.26, 2: 20.0})
    assert setup["settings"]["mine"]["is_default"]


def test_memory_is_measured_where_nobody_has_yet(measure: ModuleType) -> None:
    threads = torch.get_num_threads()
    rates = measure.print_setup(threads, {})["read_gb_per_s"]
    assert set(rates) == {1, threads}
    assert min(rates.values()) > 0


# Competitors' tools


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("echo version 3", None),
        ("echo 'usage: tool [options]' >&2; exit 1", None),
        ("kill -ILL $$", "it was ended by SIGILL"),
        ("echo one; echo 'no libllama.so' >&2; exit 127", "no libllama.so"),
        ("exit 3", "its exit status is 3"),
        ("exec sleep 60", "it was not done within 0.5 s"),
    ],
)
def test_a_tool_that_cannot_start_is_known_by_its_end(
    lines: str, reason: str | None, tmp_path: Path, measure: ModuleType
) -> None:
    command = [str(program(tmp_path / "tool", lines)), "--version"]
    seconds = 0.5 if "sleep" in lines else 60.0
    assert measure.why_not_started(command, timeout_seconds=seconds) == reason


def test_a_file_that_is_no_program_does_not_start(tmp_path: Path, measure: ModuleType) -> None:
    assert measure.why_not_started([str(tmp_path / "none")]) == "no such file or directory"
    assert measure.why_not_started([str(tmp_path)]) == "permission denied"


def test_a_tool_is_found_where_it_was_built_if_it_starts(tmp_path: Path, peers: ModuleType) -> None:
    (tmp_path / "llama-bench").mkdir()  # a folder of its sources
    with pytest.raises(ValueError, match="holds no llama-bench, build that target first"):
        peers.find_tool(tmp_path, "llama-bench")
    tool = program(tmp_path / "bin/llama-bench", "kill -ILL $$")
    with pytest.raises(ValueError, match="llama-bench does not start: it was ended by SIG"):
        peers.find_tool(tmp_path, "llama-bench")
    program(tool, "echo version")
    assert peers.find_tool(tmp_path, "llama-bench") == tool


def test_an_engine_in_python_must_be_importable(tmp_path: Path, peers: ModuleType) -> None:
    save_model(random_model(tiny_m2()), tmp_path / "m2")
    with pytest.raises(ValueError, match=r"cannot import vllm: .*; give --vllm-python a Python"):
        peers.vllm_cpu(tmp_path / "python", tmp_path / "m2", dtype="bfloat16", threads=1)
    with pytest.raises(ValueError, match=r"holds no config\.json, vLLM needs a checkpoint folder"):
        peers.vllm_cpu(Path(sys.executable), tmp_path, dtype="bfloat16", threads=1)


@pytest.mark.parametrize(
    ("name", "flags", "sentence"),
    [
        ("engine", ("--llama-cpp", "{}", "--gguf", "a.gguf"), "{} holds no llama-bench, build"),
        ("engine", ("--gguf", "a.gguf"), "--gguf is given without --llama-cpp"),
        ("serving", ("--llama-cpp", "{}", "--gguf", "a.gguf"), "{} holds no llama-server, build"),
    ],
)
def test_a_script_ends_with_a_sentence_before_it_measures(
    name: str, flags: Sequence[str], sentence: str, tmp_path: Path
) -> None:
    save_model(random_model(tiny_m2(torch_dtype="bfloat16")), tmp_path / "m2")
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), "--checkpoint", str(tmp_path / "m2")]
    command += ["--no-transformers", "--depths", "16"] if name == "engine" else []
    command += [flag.format(tmp_path) for flag in flags]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{name}.py: {sentence.format(tmp_path)}")
    assert result.stdout == ""


# GGUF files


@pytest.mark.parametrize("config", [tiny_m1(rotary_dim=8), tiny_m2()], ids=["m1", "m2"])
def test_a_gguf_has_the_weights_of_its_checkpoint(
    config: M1Config | M2Config, tmp_path: Path, gguf_files: ModuleType, peers: ModuleType
) -> None:
    config = replace(config, torch_dtype=torch.bfloat16)
    save_model(random_model(config), tmp_path / "tiny")
    (file,) = gguf_files.make_ggufs(tmp_path / "tiny", tmp_path / "out", tmp_path, ["bf16"])
    assert file == tmp_path / "out/tiny-bf16.gguf"
    assert peers.gguf_bits(file) == 16
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    checkpoint = Checkpoint.open(tmp_path / "tiny")
    parts = gguf_files._gguf_parts(list(config.tensors()))
    assert set(found) == set(parts)
    for name, specs in parts.items():
        kept = found[name].tensor_type == gguf.GGMLQuantizationType.BF16
        bits = np.array(found[name].data)
        tensor = torch.from_numpy(bits).view(torch.bfloat16 if kept else torch.float32)
        expected = torch.stack([checkpoint.read(spec.name) for spec in specs]).to(tensor.dtype)
        assert torch.equal(tensor.flatten(), expected.flatten()), name


def test_a_gguf_that_cannot_be_made_leaves_nothing(tmp_path: Path, gguf_files: ModuleType) -> None:
    save_model(random_model(tiny_m2(torch_dtype="bfloat16")), tmp_path / "tiny")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="holds no llama-quantize"):
        gguf_files.make_ggufs(tmp_path / "tiny", out, tmp_path, ["bf16", "q4_0"])
    assert not out.exists()
    half = 'case "$1" in --version) exit 0;; esac; echo half > "$2"; echo no error; exit 1'
    program(tmp_path / "llama-quantize", half)
    with pytest.raises(ValueError, match=r"q4_0\.gguf cannot be made: llama-quantize ended with 1"):
        gguf_files.make_ggufs(tmp_path / "tiny", out, tmp_path, ["q4_0"])
    assert [file.name for file in out.iterdir()] == ["tiny-bf16.gguf"]


def empty_gguf(file: Path, kind: gguf.LlamaFileType | None) -> Path:
    writer = gguf.GGUFWriter(file, "minimax-m2")
    if kind is not None:
        writer.add_file_type(kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        *(("ALL_F32", 32), ("MOSTLY_F16", 16), ("MOSTLY_BF16", 16), ("MOSTLY_Q8_0", 8)),
        *(("MOSTLY_Q6_K", 6), ("MOSTLY_Q4_0", 4), ("MOSTLY_Q4_K_M", 4), ("MOSTLY_IQ4_XS", 4)),
    ],
)
def test_bits_of_a_gguf_are_those_of_its_type(
    kind: str, bits: int, tmp_path: Path, peers: ModuleType
) -> None:
    file = empty_gguf(tmp_path / "a.gguf", gguf.LlamaFileType[kind])
    assert peers.gguf_bits(file) == bits


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, peers: ModuleType) -> None:
    file = tmp_path / "a.gguf"
    with pytest.raises(ValueError, match="is missing, gguf_files"):
        peers.gguf_bits(file)
    whole = empty_gguf(file, gguf.LlamaFileType.MOSTLY_Q4_0).read_bytes()
    for content in (b"", bytes(1000), *(whole[:end] for end in range(4, len(whole) - 8, 5))):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(str(file))):
            peers.gguf_bits(file)
    with pytest.raises(ValueError, match=r"has no general\.file_type"):
        peers.gguf_bits(empty_gguf(file, None))
    with pytest.raises(ValueError, match="file_type 1024, which tells no bits"):
        peers.gguf_bits(empty_gguf(file, gguf.LlamaFileType.GUESSED))


# Rounds


class Paced:
    """An engine that takes known times, one after the other; 0 is a failure."""

    weight_bytes: float | None = None

    def __init__(self, name: str, seconds: Sequence[float], weight_bits: int | None = None) -> None:
        self.name = name
        self.weight_bits = weight_bits
        self._seconds = iter(seconds)

    def measure(self, case: Workload, timeout_seconds: float) -> dict[str, Any]:
        seconds = next(self._seconds)
        if seconds == 0:
            raise import_module("peers").Unmeasured("it broke")
        return {"seconds": seconds}

    def close(self) -> None:
        """Nothing stays open."""


def test_a_share_is_of_the_rate_that_memory_had_beside_the_measurement(
    engine: ModuleType,
) -> None:
    config: Config = rounded(parse_packed(bits="4"))
    mine, other = Paced("mine", [1.0, 0.5, 2.0]), Paced("other", [2.0, 2.0, 2.0], 4)
    reads = [10.0, 20.0, 5.0, 8.0, 7.0, 6.0, 4.0, 3.0, 9.0]
    given = iter(reads)
    results = engine.run_rounds([mine, other], [DECODE], 3, 1.0, read=lambda: next(given))
    assert next(given, None) is None  # before each round, and after each measurement
    configs = {"mine": config, "other": config}
    rows = engine.make_rows(configs, [DECODE], [mine, other], [mine], results, LIMITS, 1)
    # The order turns round: mine is first, last, first.
    best = [max(pair) for pair in pairwise(reads)]
    beside = {"mine": (best[0], best[4], best[6]), "other": (best[1], best[3], best[7])}
    seconds = {"mine": (1.0, 0.5, 2.0), "other": (2.0, 2.0, 2.0)}
    for row in rows:
        shares = [
            DECODE.num_tokens
            / took
            / tokens_per_s_limit(config, DECODE, replace(LIMITS, read_gb_per_s={2: rate}))
            for took, rate in zip(seconds[row["engine"]], beside[row["engine"]], strict=True)
        ]
        expected = Spread.of(shares)
        for end in ("median", "low", "high"):
            assert row["of_bandwidth"][end] == pytest.approx(getattr(expected, end))
    assert rows[1]["ratios"]["mine"] == {"median": 2.0, "low": 1.0, "high": 4.0}


def test_prompts_and_failures_have_no_share(engine: ModuleType) -> None:
    mine, other = Paced("mine", [1.0, 1.0, 1.0, 1.0]), Paced("other", [1.0, 0, 1.0], 4)
    results = engine.run_rounds([mine, other], [PROMPT, DECODE], 2, 1.0, read=lambda: 10.0)
    configs = dict.fromkeys(("mine", "other"), rounded(None))
    rows = engine.make_rows(configs, [PROMPT, DECODE], [mine, other], [mine], results, LIMITS, 1)
    assert [row["of_bandwidth"] is None for row in rows] == [True, True, False, True]
    assert rows[3]["ratios"]["mine"] is None
    assert rows[3]["note"] == "it broke"


def test_engines_are_set_beside_those_of_as_many_bits(
    engine: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = {"m": None, "m-int8": parse_packed(bits="8"), "m-int4": parse_packed(bits="4")}
    configs: dict[str, Config] = {name: rounded(one) for name, one in packed.items()}
    ours = [Paced(name, [1.0]) for name in configs]
    others = [
        Paced(name, [2.0], bits) for name, bits in (("Q4_0", 4), ("Q8_0", 8), ("plain", None))
    ]
    configs |= dict.fromkeys((other.name for other in others), configs["m"])
    results = engine.run_rounds([*ours, *others], [DECODE], 1, 1.0, read=lambda: 10.0)
    rows = engine.make_rows(configs, [DECODE], [*ours, *others], ours, results, LIMITS, 1)
    labels = {"m": "m", "m-int8": "m-int8, default", "m-int4": "m-int4"}
    engine.print_same_bits(rows, labels)
    lines = [
        [cell.strip() for cell in line.split("│")[2:-1]]
        for line in capsys.readouterr().err.splitlines()
        if "2.00x" in line
    ]
    assert [(line[0], line[1], line[5], line[6]) for line in lines] == [
        ("m", "16", "plain", "2.00x"),
        ("m-int8, default", "8", "Q8_0", "2.00x"),
        ("m-int4", "4", "Q4_0", "2.00x"),
    ]


@pytest.mark.parametrize(
    ("bits", "expected"), [("8", 8), ("4", 4), ("fp8", 8), (None, 16)], ids=str
)
def test_bits_of_a_checkpoint_are_those_of_its_weights(
    bits: str | None, expected: int, engine: ModuleType
) -> None:
    packed = None if bits is None else parse_packed(bits=bits)
    assert engine.weight_bits(rounded(packed)) == expected


# Training steps


def test_the_floor_of_a_step_has_each_matrix_forward_and_twice_backward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training_step = script("training_step", monkeypatch)
    for config in training_step.CONFIGS.values():
        products = training_step.products_of(config).items()
        flops = sum(2 * rows * inputs * outputs * n for (rows, inputs, outputs), n in products)
        assert flops == 3 * 2 * training_step.NUM_TOKENS * multiplied_weights(config)


@needs_native
def test_the_account_of_a_step_tells_its_kernels_of_both_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training_step = script("training_step", monkeypatch)
    parts = training_step.account(training_step.Step(torch.float32, tiny_m1()))
    assert min(parts["linear"]) > 0
    assert parts["head"][0] > 0 == parts["head"][1]
    assert parts["outer"][0] == 0 < parts["outer"][1]
    assert list(parts)[-1] == training_step.REST


# A model and its rounded copy


@pytest.fixture
def mini_rounding(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("mini_rounding", monkeypatch)


def test_a_model_agrees_with_itself_on_every_task(
    mini_rounding: ModuleType, tmp_path: Path
) -> None:
    model = str(write_checkpoint(tmp_path, "m1"))
    names = ["basics:add:test", "basics:compare:test"]
    first, second = (mini_rounding.play("default", model, names, 2, 4, 8) for _ in range(2))
    found = mini_rounding.compared(first, second)
    assert list(found) == [*names, "all"]
    assert all(one[kind]["mean"] == 1 for one in found.values() for kind in ("text", "answer"))


def test_texts_and_answers_are_counted_apart(mini_rounding: ModuleType) -> None:
    def a_run(*plays: tuple[str, str, float]) -> dict[str, Any]:
        fields = ("text", "answer", "score")
        return {
            "plays": {
                "x": [{"prompt": "p", **dict(zip(fields, one, strict=True))} for one in plays]
            }
        }

    first = a_run(("1+1=2; 2", "2", 1.0), ("3", "3", 0.0))
    second = a_run(("2", "2", 1.0), ("4", "4", 1.0))
    found = mini_rounding.compared(first, second)["x"]
    assert (found["text"]["mean"], found["answer"]["mean"]) == (0, 0.5)
    assert found["solved"] == [0.5, 1.0]
    with pytest.raises(ValueError, match="played other tasks"):
        mini_rounding.compared(first, a_run(("2", "2", 1.0)))
