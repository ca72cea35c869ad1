"""Kinds of programs that repositories are made of, one a file."""

from fulmen.envs.repairs.kinds import (
    bank,
    booking,
    calculator,
    codec,
    dates,
    graph,
    inventory,
    machine,
    matrix,
    records,
    scheduler,
    words,
)

KINDS = tuple(
    module.KIND
    for module in (
        bank,
        booking,
        calculator,
        codec,
        dates,
        graph,
        inventory,
        machine,
        matrix,
        records,
        scheduler,
        words,
    )
)
"""All of them"""

__all__ = ["KINDS"]
