"""The machine's limits: how fast memory can be read, and how fast numbers can be multiplied.

Every other figure is compared with these two. They are measured, not looked up: a virtual machine
has only what its neighbours leave.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from fulmen.kernels import native, set_num_threads

READ_BYTES: Final = 2**29
"""Bytes that are read: more than the caches that a process gets of a processor."""
MATMUL_SIZES: Final = (256, 1024, 2048)
"""Rows and columns of the matrices whose product is timed, from small to large."""
PROBE_SECONDS: Final = 0.1
"""Time that a probe of products should take at least."""
MATMUL_SECONDS: Final = 0.5
"""Longest product that is timed. torch has no fast bfloat16 product for processors without such
instructions: there one of 2048 x 2048 takes a minute, and is slower than a small one besides."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the median and both ends of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Limits:
    """Rates that the machine reached when they were measured."""

    isa: str | None
    """Instruction set that the C++ kernels use; None without them."""
    read_gb_per_s: dict[int, float]
    """Rate of reading memory by number of threads."""
    register_tops: dict[str, float]
    """Rate of products from registers by dtype, bfloat16 and int8, with all threads: 10^12
    operations a second, two a product. Empty without the C++ kernels."""
    matmul_tflops: dict[str, float]
    """Rate of torch's best product of two matrices by dtype, with all threads."""

    @property
    def bytes_per_s(self) -> float:
        """Return the highest rate of reading memory."""
        return 1e9 * max(self.read_gb_per_s.values())

    def operations_per_s(self, dtype: str) -> float:
        """Return the highest rate of products of a dtype; two operations a product."""
        rates = [
            *(rates[dtype] for rates in (self.register_tops, self.matmul_tflops) if dtype in rates)
        ]
        if not rates:
            known = ", ".join(sorted({*self.register_tops, *self.matmul_tflops}))
            raise ValueError(f"no rate of {dtype} products was measured, only of {known}")
        return 1e12 * max(rates)

    def best(self, other: "Limits") -> "Limits":
        """Return the higher of two measurements of each limit."""
        return Limits(
            self.isa,
            {key: max(x, other.read_gb_per_s[key]) for key, x in self.read_gb_per_s.items()},
            {key: max(x, other.register_tops[key]) for key, x in self.register_tops.items()},
            {key: max(x, other.matmul_tflops[key]) for key, x in self.matmul_tflops.items()},
        )


def use_threads(count: int) -> None:
    """Set the number of threads of torch and of the kernels."""
    torch.set_num_threads(count)
    set_num_threads(count)


def measure_limits(num_threads: int, dtypes: Sequence[torch.dtype] = (torch.bfloat16,)) -> Limits:
    """Measure reading memory with one and with all threads, products from registers, and torch's
    best matrix product of each of `dtypes`. Leaves `num_threads` set."""
    extension = native()
    read_rates = measure_read_rates(num_threads)
    registers = {}
    if extension is not None:
        registers = {"bfloat16": _register_tops(False), "int8": _register_tops(True)}
    matmul = {str(dtype).removeprefix("torch."): _matmul_tflops(dtype) for dtype in dtypes}
    return Limits(None if extension is None else extension.isa(), read_rates, registers, matmul)


def measure_read_rates(num_threads: int, *, max_seconds: float = math.inf) -> dict[int, float]:
    """Measure reading memory with one and with all threads: GB/s by number of threads. Leaves
    `num_threads` set.

    max_seconds  time after which no reading begins for the same number of threads
    """
    extension = native()
    buffer = torch.ones(READ_BYTES, dtype=torch.uint8)

    def read() -> None:
        if extension is None:  # of torch's reductions the integer sum comes closest
            buffer.view(torch.int64).sum()
        else:
            extension.probe_read(buffer.data_ptr(), buffer.nbytes)

    read_rates = {}
    for threads in sorted({1, num_threads}):
        use_threads(threads)
        read_rates[threads] = READ_BYTES / best_seconds(read, 5, max_seconds=max_seconds) / 1e9
    use_threads(num_threads)
    return read_rates


def _register_tops(is_integer: bool) -> float:
    """Measure products from registers, with nothing read and nothing written."""
    extension = native()
    assert extension is not None
    iterations, seconds = 1000, 0.0
    while seconds < PROBE_SECONDS:
        iterations *= 4
        start = time.perf_counter()
        operations: int = extension.probe_products(iterations, is_integer)
        seconds = time.perf_counter() - start
    again = best_seconds(lambda: extension.probe_products(iterations, is_integer), 2)
    return operations / min(seconds, again) / 1e12


def _matmul_tflops(dtype: torch.dtype) -> float:
    """Measure torch's product of two matrices, of each size that does not take too long."""
    best = 0.0
    for size in MATMUL_SIZES:
        operations = 2 * size**3
        if best and operations / best > MATMUL_SECONDS:
            break
        a, b = torch.randn(2, size, size).to(dtype)
        best = max(best, operations / best_seconds(lambda a=a, b=b: a @ b, 3))  # type: ignore[misc]
    return best / 1e12


def best_seconds(
    call: Callable[[], object], repeats: int, *, max_seconds: float = math.inf
) -> float:
    """Return the time of the shortest of several calls, after one that does not count.

    max_seconds  time after which no call begins but the first that counts
    """
    start = time.perf_counter()
    call()
    best = seconds_of(call)
    for _ in range(repeats - 1):
        if time.perf_counter() - start >= max_seconds:
            break
        best = min(best, seconds_of(call))
    return best


def seconds_of(call: Callable[[], object]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def device_name() -> str:
    """Return the processor's model and number, as the system names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else "unknown"
