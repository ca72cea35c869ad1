"""The commands that serve a model on GPUs: vLLM 0.23 for M1, SGLang and vLLM for M2."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fulmen.models import Config, Fp8Config, M1Config, PackedConfig
from fulmen.plan.forecast import USABLE, Forecast, Reading, on_gpus
from fulmen.plan.hardware import Gpus

_NODE_SIZES: Final = (1, 2, 4, 8)
"""Numbers of GPUs of a node that engines split a model over."""

NO_COMMAND: Final = "no launch command: "
"""Beginning of the note that says why there is none"""
_REMOTE_CODE: Final = (
    "--trust-remote-code is in the makers' commands; it runs Python from the repository"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """The commands that serve a model on GPUs, or a note that says why there are none."""

    commands: dict[str, str]
    """Commands by engine"""
    precision: str | None
    """Precision that they serve"""
    max_model_len: int
    """Tokens that they allow a sequence; 0 without a command"""
    notes: list[str]


def no_launch(reason: str) -> Launch:
    """Return no command, for a reason."""
    return Launch(commands={}, precision=None, max_model_len=0, notes=[f"{NO_COMMAND}{reason}"])


def launch_commands(
    config: Config, checkpoint: str, gpus: Gpus, rows: Sequence[Reading], max_context: int
) -> Launch:
    """Return a command for each engine, and notes about them.

    checkpoint   the name that the engine loads: a hub id or a path
    rows         a reading for each precision
    max_context  tokens that the command allows if they fit
    """
    if isinstance(config.quantization_config, PackedConfig):
        return no_launch("only fulmen reads what fulmen quantize wrote")
    if gpus.count not in _NODE_SIZES:
        return no_launch("engines split a model over 1, 2, 4 or 8 GPUs of a node")
    rows = [row for row in rows if row.precision in served_precisions(config)]
    context = rows[0].context
    forecasts = on_gpus(rows, gpus, config, context)
    # The first precision that holds the planned length, else the one that holds the most.
    best = max(forecasts, key=lambda row: (row.fits, 0 if row.fits else row.max_model_len))
    if not best.max_model_len:
        return no_launch(_too_few(config, gpus, rows))
    length = min(max(max_context, context), best.max_model_len)
    notes = []
    if not best.fits:
        notes.append(
            f"{context:,} tokens do not fit, the limit in the command is {length:,}; --context "
            f"{length} forecasts the speed at that length"
        )
    elif length < best.max_model_len < config.max_position_embeddings:
        notes.append(
            f"the command allows {length:,} tokens, {best.max_model_len:,} fit; --context raises "
            "the limit"
        )
    if isinstance(config, M1Config):
        commands, more = _m1_commands(shlex.quote(checkpoint), gpus, best, length)
    else:
        limit = length if length < config.max_position_embeddings else None
        commands, more = _m2_commands(config, shlex.quote(checkpoint), gpus, limit)
    notes += [*more, _in_front(shlex.quote(checkpoint), commands)]
    return Launch(commands=commands, precision=best.precision, max_model_len=length, notes=notes)


def served_precisions(config: Config) -> tuple[str, ...]:
    """Return the precisions in which engines serve a checkpoint on GPUs."""
    if isinstance(config.quantization_config, PackedConfig):
        return ()
    if isinstance(config, M1Config):
        return ("bf16", "int8-experts")
    return ("fp8",) if config.quantization_config else ("bf16",)


def _m1_commands(
    checkpoint: str, gpus: Gpus, best: Forecast, length: int
) -> tuple[dict[str, str], list[str]]:
    quantization = " --quantization experts_int8" if best.precision == "int8-experts" else ""
    command = (
        f"SAFETENSORS_FAST_GPU=1 vllm serve {checkpoint} --trust-remote-code "
        f"--tensor-parallel-size {gpus.count}{quantization} --dtype bfloat16 "
        f"--gpu-memory-utilization {USABLE['minimax_m1']:.2f} --max-model-len {length} "
        "--enable-auto-tool-choice --tool-call-parser minimax"
    )
    versions = (
        "vLLM carries M1 from 0.9.2 to 0.23.0 (pip install 'vllm>=0.9.2,<=0.23.0'); earlier "
        "versions lose precision, later ones removed the model"
    )
    return {"vllm": command}, [versions, _REMOTE_CODE]


def _m2_commands(
    config: Config, checkpoint: str, gpus: Gpus, limit: int | None
) -> tuple[dict[str, str], list[str]]:
    """limit: tokens that a sequence may have; None leaves the model's own limit."""
    notes = [_REMOTE_CODE]
    sglang_split, vllm_split = f"--tp-size {gpus.count}", f"--tensor-parallel-size {gpus.count}"
    if isinstance(config.quantization_config, Fp8Config):
        block = config.quantization_config.weight_block_size[0]
        if config.intermediate_size // gpus.count % block:
            sglang_split += f" --ep-size {gpus.count}"
            vllm_split += " --enable-expert-parallel"
            notes.append(
                f"experts are spread whole over the GPUs: {config.intermediate_size} columns in "
                f"{gpus.count} parts are no whole blocks of {block}"
            )
        if gpus.accelerator.fp8_flops is None:
            notes.append(
                f"{gpus.accelerator.name} has no FP8 products: an engine must expand the weights "
                "as it multiplies, its native FP8 kernels fail there"
            )
    sglang = (
        f"python -m sglang.launch_server --model-path {checkpoint} {sglang_split} "
        "--tool-call-parser minimax-m2 --reasoning-parser minimax-append-think "
        f"--trust-remote-code --mem-fraction-static {USABLE['minimax_m2']:.2f}"
    )
    vllm = (
        f"SAFETENSORS_FAST_GPU=1 vllm serve {checkpoint} --trust-remote-code {vllm_split} "
        "--enable-auto-tool-choice --tool-call-parser minimax_m2 "
        "--reasoning-parser minimax_m2_append_think"
    )
    if limit is not None:
        sglang += f" --context-length {limit}"
        vllm += f" --max-model-len {limit}"
    return {"sglang": sglang, "vllm": vllm}, notes


def _in_front(checkpoint: str, engines: Iterable[str]) -> str:
    """Say how Fulmen serves in front of an engine."""
    said = (
        f"fulmen serve {checkpoint} --upstream http://HOST:PORT serves in front of it, with "
        "thinking budgets, structured output and histories"
    )
    if "sglang" in engines:
        said += (
            "; start SGLang with SGLANG_RETURN_ORIGINAL_LOGPROB=1 and "
            "--incremental-streaming-output for that"
        )
    return said


def _too_few(config: Config, gpus: Gpus, rows: Sequence[Reading]) -> str:
    """Say why the model cannot be launched, and how many of these GPUs it takes."""
    least = min(row.weights.total for row in rows)
    needed = f"the engines need {least / 1e9:.0f} GB for the weights alone"
    for count in _NODE_SIZES:
        node = replace(gpus, count=count)
        if any(row.max_model_len for row in on_gpus(rows, node, config, rows[0].context)):
            return f"{needed}, it takes {node} at least"
    return f"{needed}, it takes more than a node of {node}"
