"""The command that serves a model at scale."""

import shlex
from dataclasses import replace
from typing import Final

from fulmen.models import (
    Config,
    M1Config,
    PackedConfig,
)
from fulmen.plan.forecast import (
    USABLE,
    Gpus,
    Reading,
    on_gpus,
)

_NODE_SIZES: Final = (1, 2, 4, 8)


def launch_commands(
    config: Config, checkpoint: str, gpus: Gpus, rows: list[Reading], max_context: int
) -> tuple[dict[str, str], list[str]]:
    """The command of each engine, by its name, and what to know about them."""
    if isinstance(config.quantization_config, PackedConfig):
        return {}, ["no launch command: only fulmen reads what fulmen quantize wrote"]
    if gpus.count not in _NODE_SIZES:
        return {}, ["no launch command: engines split a model over 1, 2, 4 or 8 GPUs of a node"]
    is_m1 = isinstance(config, M1Config)
    stored = "fp8" if config.quantization_config else "bf16"
    wanted = ("bf16", "int8-experts") if is_m1 else (stored,)
    rows = [row for row in rows if row.precision in wanted]
    context = rows[0].context
    forecasts = on_gpus(rows, gpus, config, context)
    # The first that holds a sequence of the planned length, else the one with the longest.
    row = max(forecasts, key=lambda row: (row.fits, 0 if row.fits else row.max_model_len))
    if not row.max_model_len:
        return {}, [f"no launch command: {_too_few(config, gpus, rows)}"]
    checkpoint = shlex.quote(checkpoint)
    length = min(max(max_context, context), row.max_model_len)
    notes = []
    if not row.fits:
        notes.append(
            f"{context:,} tokens do not fit, the limit in the command is {length:,}; --context "
            f"{length} forecasts the speed at that length"
        )
    is_limited = length < config.max_position_embeddings
    if is_m1:
        quantisation = " --quantization experts_int8" if row.precision == "int8-experts" else ""
        command = (
            f"SAFETENSORS_FAST_GPU=1 vllm serve {checkpoint} --trust-remote-code "
            f"--tensor-parallel-size {gpus.count}{quantisation} --dtype bfloat16 "
            f"--gpu-memory-utilization {USABLE['minimax_m1']:.2f} --max-model-len {length} "
            "--enable-auto-tool-choice --tool-call-parser minimax"
        )
        return {"vllm": command}, [
            *notes,
            "vLLM carries M1 from 0.9.2 to 0.23.0 (pip install 'vllm>=0.9.2,<=0.23.0'); earlier "
            "versions lose precision, later ones removed the model",
            _REMOTE_CODE,
        ]
    notes.append(_REMOTE_CODE)
    sglang_split, vllm_split = f"--tp-size {gpus.count}", f"--tensor-parallel-size {gpus.count}"
    if config.quantization_config is not None:
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
    return {
        "sglang": f"python -m sglang.launch_server --model-path {checkpoint} {sglang_split} "
        "--tool-call-parser minimax-m2 --reasoning-parser minimax-append-think "
        f"--trust-remote-code --mem-fraction-static {USABLE['minimax_m2']:.2f}"
        + (f" --context-length {length}" if is_limited else ""),
        "vllm": f"SAFETENSORS_FAST_GPU=1 vllm serve {checkpoint} --trust-remote-code {vllm_split} "
        "--enable-auto-tool-choice --tool-call-parser minimax_m2 "
        "--reasoning-parser minimax_m2_append_think"
        + (f" --max-model-len {length}" if is_limited else ""),
    }, notes


def _too_few(config: Config, gpus: Gpus, rows: list[Reading]) -> str:
    """Why no launch is possible, and the smallest number of such GPUs with which one is."""
    least = min(row.weights.total for row in rows)
    needed = f"the engines need {least / 1e9:.0f} GB for the weights alone"
    for count in _NODE_SIZES:
        node = replace(gpus, count=count)
        if any(row.max_model_len for row in on_gpus(rows, node, config, rows[0].context)):
            return f"{needed}, it takes {node} at least"
    return f"{needed}, it takes more than a node of {node}"


_REMOTE_CODE: Final = (
    "--trust-remote-code is in the makers' commands; it runs Python from the repository"
)
