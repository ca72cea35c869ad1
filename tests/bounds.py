"""Bounds on time, memory and work, whatever a file or a client says."""

import resource
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def bounded(*, seconds: float = 15.0, megabytes: float = 120.0) -> Iterator[None]:
    """Fail if the block takes longer (of this process's own time) or more of Python's memory.

    The seconds allow for a slow machine and for the tracing itself, which makes Python three
    times as slow. Memory that only C code takes is bounded by the process's peak.
    """
    tracemalloc.start()
    try:
        peak, start = _peak_megabytes(), time.process_time()
        yield
        taken, traced = time.process_time() - start, tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
    assert taken < seconds, f"the block took {taken:.1f} s, at most {seconds} s are allowed"
    assert traced < megabytes, f"the block took {traced:.0f} MB, at most {megabytes} are allowed"
    assert _peak_megabytes() - peak < 4 * megabytes


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def num_lines(work: Callable[[], object]) -> int:
    """Return how many lines of Python a call runs: the same on every machine, at any load."""
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count
