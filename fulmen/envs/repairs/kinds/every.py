"""The list of all kinds."""

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
