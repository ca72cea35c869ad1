"""Times of single kernel calls: how long each took, and what of it was no product.

The kernels read the processor's clock a few times a call, so calls that are timed take hardly
longer than others. Replayed calls are timed like direct ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from fulmen.kernels.cpu.extension import loaded


class StageTimes(NamedTuple):
    """Seconds of one product of a call."""

    seconds: float
    """From its first moment to its last"""
    preparing: float
    """Part in which its inputs were laid out: rounded, or widened"""
    idle: float
    """Part, outside of `preparing`, in which a thread had nothing to do; the mean over threads"""


class CallTimes(NamedTuple):
    """One call of a kernel."""

    kernel: str
    weights: int
    """Address of the first weight that it reads; 0 for a kernel without"""
    num_matrices: int
    """Number of experts that were multiplied; 0 for other kernels"""
    stages: tuple[StageTimes, ...]
    """One; two for experts, whose second product follows the first"""


class CallClock:
    """The clock that `time_calls` holds."""

    def __init__(self) -> None:
        self._log: Any = loaded().CallLog()

    def num_calls(self) -> int:
        """Return the number of calls so far, also while it runs."""
        return len(self._log)

    def calls(self) -> list[CallTimes]:
        """Return the calls since the clock last started, in their order; once it has stopped."""
        return [
            CallTimes(kernel, weights, count, tuple(StageTimes(*stage) for stage in stages))
            for kernel, weights, count, stages in self._log.times()
        ]


@contextmanager
def time_calls() -> Iterator[CallClock]:
    """Time every kernel call that this thread makes in the block.

    Needs the extension. A block within a block ends the timing of the outer one.
    """
    clock = CallClock()
    clock._log.start()
    try:
        yield clock
    finally:
        clock._log.stop()
