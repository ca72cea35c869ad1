"""Threads, and how fast they read memory."""

import math
import os
from collections.abc import Mapping
from typing import Final

from fulmen.doctor.finding import Finding
from fulmen.doctor.machine import available_memory, usable_cores

SLOW_READ: Final = 10.0
"""GB/s below which memory is slow: one channel of DDR4 reads twice as fast."""
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def find_threads() -> Finding:
    """Compare the threads of torch and of the C++ kernels with the cores there are."""
    import torch

    from fulmen.kernels import native

    extension = native()
    cores, of_torch = usable_cores(), torch.get_num_threads()
    of_kernels = None if extension is None else int(extension.num_threads())
    return Finding(
        name="threads",
        found=f"torch {of_torch}, kernels {'-' if of_kernels is None else of_kernels}",
        advice=threads_advice(cores, of_torch, os.environ),
        values={"torch": of_torch, "kernels": of_kernels, "cores": cores},
    )


def threads_advice(cores: int, of_torch: int, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return advice where a variable gives torch fewer threads than cores, or more."""
    if of_torch == cores:
        return ()
    given = [f"{name}={environment[name]}" for name in _THREAD_VARIABLES if environment.get(name)]
    if not given:
        return ()  # torch counts real cores only, where two threads share one
    verb = "limits" if of_torch < cores else "raises"
    return (
        f"{' and '.join(given)} {verb} torch to {_counted(of_torch)} on {cores} cores; unset it",
    )


def read_rates(*, max_seconds: float = math.inf) -> dict[int, float] | None:
    """Measure how fast memory is read: GB/s by number of threads, one and all of them. None where
    so little memory is free that it would be swapped out.

    max_seconds  time to take, roughly: each number of threads gets half of it
    """
    import torch

    from fulmen.bench import READ_BYTES, measure_read_rates, use_threads
    from fulmen.kernels import native, set_num_threads

    memory = available_memory()
    if memory is not None and memory[1] < 3 * READ_BYTES:
        return None
    extension = native()
    of_torch = torch.get_num_threads()
    of_kernels = of_torch if extension is None else int(extension.num_threads())
    try:
        return measure_read_rates(max(of_torch, of_kernels), max_seconds=max_seconds / 2)
    finally:
        use_threads(of_torch)
        set_num_threads(of_kernels)


def find_memory_rate() -> Finding:
    """Measure how fast memory is read: no token comes faster than its weights are read."""
    from fulmen.bench import READ_BYTES

    rates = read_rates()
    if rates is None:
        return Finding(
            name="memory rate",
            found=f"not measured: that takes {READ_BYTES / 2**20:.0f} MiB, memory is nearly full",
        )
    best = max(rates.values())
    advice = []
    if best < SLOW_READ:
        advice.append(
            "slow: no token comes faster than its weights are read; end other programs, or have "
            "less to read with `fulmen quantize NAME OUT --bits 4`"
        )
    listed = ", ".join(f"{rate:.0f} GB/s with {_counted(n)}" for n, rate in rates.items())
    return Finding(
        name="memory rate",
        found=f"{listed}; `fulmen plan NAME --memory {max(best, 1):.0f}GB/s` plans with it",
        advice=tuple(advice),
        values={"gb_per_s": {str(n): round(rate, 2) for n, rate in rates.items()}},
    )


def _counted(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"
