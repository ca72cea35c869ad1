"""Operations: their work, how they are prepared, and how they are timed.

    Shapes -> Op (bytes and products of a call) -> Prepared (inputs in memory) -> Clock -> seconds

Inputs stand in memory so many times over that no cache holds them, and each call takes the next
copy: a decoded token finds its weights in memory, not in a cache, and so does an operation here.
The operations themselves are in ops_products.py, ops_attention.py and ops_rows.py.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Final, Literal

import torch
from torch import Tensor

from fulmen.bench.machine import Limits, Spread
from fulmen.bench.workload import until_steady

FormatName = Literal["bfloat16", "int8", "int4", "fp8"]
Output = Tensor | Sequence[Tensor]

MIN_SECONDS: Final = 0.1
"""Shortest stretch of calls that is timed as one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """Sizes of the operations; tests make them small."""

    hidden_size: int = 1024
    qkv_size: int = 3072
    vocab_size: int = 32_000
    num_heads: int = 16
    num_kv_heads: int = 4
    head_dim: int = 64
    rotary_dim: int = 32
    num_experts: int = 64
    top_k: int = 8
    intermediate_size: int = 512
    prompt: int = 512
    long_prompt: int = 4096
    context: int = 1024
    long_context: int = 16_384
    working_set: int = 2**28
    """Bytes of inputs that calls go through in turn."""

    def copies(self, num_bytes: float) -> int:
        """Return the copies of so many bytes that fill the working set."""
        return max(1, round(self.working_set / num_bytes))


@dataclass(frozen=True, slots=True)
class Prepared:
    """An operation with its inputs in memory; call i works on copy i % num_copies of them."""

    run: Callable[[int], Output]
    num_copies: int
    define: Callable[[], Output]
    """Return the answer of run(0) by the plain-torch definition, in float64."""
    run_torch: Callable[[int], Output] | None = None
    """Call torch's own operation in bfloat16; None where torch has none."""

    def error(self) -> float:
        """Return the relative error of run(0): the root mean square of its difference to the
        definition, over that of the definition; of several tensors the largest."""
        with torch.inference_mode():
            found, expected = _tensors(self.run(0)), _tensors(self.define())
        pairs = zip(found, expected, strict=True)
        return max(float((x.double() - y).norm() / y.norm()) for x, y in pairs)


def _tensors(output: Output) -> Sequence[Tensor]:
    return [output] if isinstance(output, Tensor) else output


@dataclass(frozen=True, kw_only=True, slots=True)
class Op:
    """An operation to time, of a known size."""

    name: str
    format: FormatName
    """Format of the weights; of the activations where there are no weights."""
    work: str
    """Size of a call, in words."""
    num_bytes: float
    """Bytes that a call must read and write."""
    operations: float
    """Multiplications and additions of a call; two a product."""
    prepare: Callable[[], Prepared]

    @property
    def products(self) -> str:
        """Return the dtype whose rate of products bounds the operation."""
        return "int8" if self.format in ("int8", "int4") else "bfloat16"

    def limit_seconds(self, limits: Limits) -> tuple[float, str]:
        """Return the least time of a call, and what bounds it: memory or products."""
        reading = self.num_bytes / limits.bytes_per_s
        multiplying = self.operations / limits.operations_per_s(self.products)
        return max((reading, "memory"), (multiplying, "products"))

    def __str__(self) -> str:
        return f"{self.name} {self.format}, {self.work}"


class Clock:
    """Times one implementation of an operation, stretch by stretch."""

    def __init__(self, run: Callable[[int], Output]) -> None:
        self._run = run
        self._calls = 1
        self._next = 0

    def warm_up(self) -> None:
        """Choose the number of calls of a stretch, and run until their pace is steady."""
        self._stretch()  # the first call allocates, so its time says nothing
        while (taken := self._stretch()) < MIN_SECONDS:
            wanted = round(1.2 * self._calls * MIN_SECONDS / taken)
            self._calls = min(max(self._calls + 1, wanted), 10 * self._calls)
        until_steady(self._stretch, max_seconds=2.0)

    def seconds(self) -> float:
        """Return the seconds of one call, on average over a stretch."""
        return self._stretch() / self._calls

    def _stretch(self) -> float:
        with torch.inference_mode():
            start = time.perf_counter()
            for index in range(self._next, self._next + self._calls):
                self._run(index)
            seconds = time.perf_counter() - start
        self._next += self._calls
        return seconds


def measure_op(op: Op, *, rounds: int = 3) -> Spread:
    """Prepare and warm up an operation, and return the seconds of a call."""
    prepared = op.prepare()
    clock = Clock(prepared.run)
    clock.warm_up()
    return Spread.of([clock.seconds() for _ in range(rounds)])


def describe_op(op: Op, seconds: Spread, limits: Limits) -> dict[str, Any]:
    """Return a measurement for JSON; `rate`, in `unit`, is of what bounds the operation."""
    least, limit = op.limit_seconds(limits)
    if limit == "memory":
        rate, unit = op.num_bytes / seconds.median / 1e9, "GB/s"
    else:
        unit = "TOP/s" if op.products == "int8" else "TFLOP/s"
        rate = op.operations / seconds.median / 1e12
    return {
        "name": op.name,
        "format": op.format,
        "work": op.work,
        "seconds": asdict(seconds),
        "bytes": op.num_bytes,
        "operations": op.operations,
        "rate": rate,
        "unit": unit,
        "limit": limit,
        "of_limit": least / seconds.median,
    }


def tokens_text(count: int) -> str:
    """Return a number of tokens in words."""
    return "1 token" if count == 1 else f"{count} tokens"


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Draw a standard normal tensor in bfloat16."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def gradients(
    apply: Callable[..., Tensor],
    copies: Sequence[Sequence[Tensor]],
    dtype: torch.dtype | None = None,
) -> Callable[[int], Output]:
    """Return a function whose call i returns the gradients of all inputs of copy i.

    dtype   dtype to compute in, by default that of the inputs

    The graphs are built at the first call and kept, so that a call is the backward pass alone.
    """

    @cache
    def graphs() -> tuple[list[tuple[Tensor, list[Tensor]]], Tensor]:
        made = []
        for inputs in copies:
            leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
            made.append((apply(*leaves), leaves))
        return made, normal(*made[0][0].shape, seed=9).to(made[0][0].dtype)

    def run(i: int) -> Output:
        with torch.inference_mode(False):
            made, dout = graphs()
            out, leaves = made[i % len(made)]
            return torch.autograd.grad(out, leaves, dout, retain_graph=True)

    return run


def prepare_backward(
    s: Shapes,
    inputs: Sequence[Tensor],
    apply: Callable[..., Tensor],
    in_torch: Callable[..., Tensor] | None = None,
) -> Prepared:
    """Prepare the gradients of apply(*inputs); their definition is autograd in float64."""
    num_copies = s.copies(sum(x.nbytes for x in inputs))
    copies = [inputs, *([x.clone() for x in inputs] for _ in range(1, num_copies))]
    return Prepared(
        run=gradients(apply, copies),
        num_copies=num_copies,
        define=lambda: gradients(apply, [inputs], torch.float64)(0),
        run_torch=None if in_torch is None else gradients(in_torch, copies),
    )
