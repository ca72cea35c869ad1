"""The examination: one probe after another, each alone.

A probe looks at one thing and returns a finding. One that fails becomes a finding that says why,
and the next goes on.
"""

from collections.abc import Callable, Iterator
from typing import Final

from fulmen.doctor.finding import Finding
from fulmen.doctor.machine import find_cores, find_memory, find_processor, find_sandbox
from fulmen.doctor.software import (
    find_fulmen,
    find_gpus,
    find_kernels,
    find_packages,
    find_python,
    find_torch,
)
from fulmen.doctor.speed import find_memory_rate, find_threads
from fulmen.doctor.storage import (
    find_history,
    find_hub,
    find_models,
    find_sessions,
    find_terminal,
)

PROBES: Final[dict[str, Callable[[], Finding]]] = {
    "fulmen": find_fulmen,
    "python": find_python,
    "packages": find_packages,
    "processor": find_processor,
    "cores": find_cores,
    "memory": find_memory,
    "torch": find_torch,
    "kernels": find_kernels,
    "threads": find_threads,
    "memory rate": find_memory_rate,
    "gpu": find_gpus,
    "models": find_models,
    "sessions": find_sessions,
    "history": find_history,
    "hub": find_hub,
    "terminal": find_terminal,
    "sandbox": find_sandbox,
}
"""Probes by name, in the order they run. Those without torch come first."""


def examine() -> Iterator[Finding]:
    """Run all probes and give each finding as soon as it is there."""
    for name, probe in PROBES.items():
        try:
            yield probe()
        except Exception as error:  # an outer edge: one probe's failure is a finding of its own
            reason = " ".join(str(error).split()) or type(error).__name__
            yield Finding(
                name=name,
                found=f"cannot be examined: {reason[:300]}",
                is_unknown=True,
            )
