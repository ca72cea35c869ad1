"""Speed of a whole model, beside what the machine's limits allow.

A decoded token must read the weights it uses, and its past, from memory; a prompt must multiply.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from fulmen.bench.machine import Limits, Spread
from fulmen.bench.timer import ModelTimer
from fulmen.bench.workload import TOUCH_TOKENS, Workload, until_steady
from fulmen.kernels import backend_for
from fulmen.models import Config, Model, PackedConfig, decode_bytes, prefill_flops


def check_workloads(config: Config, workloads: Sequence[Workload]) -> None:
    """Raise a ValueError for a workload that the model's context does not hold."""
    longest = config.max_position_embeddings
    for workload in workloads:
        needed = workload.depth + workload.num_tokens
        if needed > longest:
            raise ValueError(
                f"{workload} needs room for {needed:,} tokens, the model's context is {longest:,}"
            )


def measure_model(
    model: Model, workloads: Sequence[Workload], *, rounds: int = 3, chunk: int = 1024
) -> dict[Workload, Spread]:
    """Measure the tokens a second of each workload, in `rounds` that alternate between workloads.

    chunk   tokens of one forward pass of a prompt

    Each workload is warmed up before it is timed.
    """
    touched = min(TOUCH_TOKENS, model.config.max_position_embeddings)
    timer = ModelTimer(model, chunk=chunk)
    rates: dict[Workload, list[float]] = {workload: [] for workload in workloads}
    for _ in range(rounds):
        for workload in workloads:
            timer.reserve(workload.batch, workload.depth + workload.num_tokens)
            timer.prefill(touched)
            until_steady(lambda workload=workload: _seconds(timer, workload.shortened()))  # type: ignore[misc]
            seconds = _seconds(timer, workload)
            rates[workload].append(workload.batch * workload.num_tokens / seconds)
    return {workload: Spread.of(values) for workload, values in rates.items()}


def _seconds(timer: ModelTimer, workload: Workload) -> float:
    if workload.kind == "prefill":
        return timer.prefill(workload.num_tokens).seconds
    tokens, batch, depth = workload.num_tokens, workload.batch, workload.depth
    return timer.decode(tokens, batch=batch, depth=depth).seconds


def tokens_per_s_limit(
    config: Config,
    workload: Workload,
    limits: Limits,
    *,
    weight_scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> float:
    """Return the tokens a second that the machine's measured rates allow.

    weight_scale  bytes of a weight over those of the config, for another engine's format
    dtype         dtype that the model runs in, by default the config's
    """
    config = replace(config, torch_dtype=dtype or config.torch_dtype)
    if backend_for(torch.empty(0, dtype=config.torch_dtype)) is None:
        # Without kernels the loader unpacks rounded weights, and the model runs on floats.
        config = replace(config, quantization_config=None)
    if workload.kind == "prefill":
        flops = prefill_flops(config, workload.num_tokens)
        return workload.num_tokens * _operations_per_s(config, limits) / flops
    depth = workload.depth + workload.num_tokens / 2
    needed = decode_bytes(config, batch=workload.batch, depth=depth, weight_scale=weight_scale)
    return workload.batch * limits.bytes_per_s / needed


def _operations_per_s(config: Config, limits: Limits) -> float:
    """Return the rate of products of a prompt. Weights of 8 and 4 bits are multiplied as integers:
    once by inputs of 8 bits, twice by inputs of 16."""
    rounded = config.quantization_config
    if isinstance(rounded, PackedConfig) and rounded.bits != "fp8":
        return limits.operations_per_s("int8") * 8 / rounded.input_bits
    return limits.operations_per_s(str(config.torch_dtype).removeprefix("torch."))
