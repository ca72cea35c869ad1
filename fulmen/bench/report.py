"""Reports of `fulmen bench`: the same numbers as JSON values and as tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from fulmen.bench.machine import Limits, Spread, device_name, measure_limits
from fulmen.bench.model import check_workloads, measure_model, tokens_per_s_limit
from fulmen.bench.op import Op, describe_op, measure_op
from fulmen.bench.workload import Workload
from fulmen.checkpoints import load_model, read_config

Say = Callable[[str], None]
"""Receiver of a sentence on what is being done."""


@dataclass(frozen=True, slots=True)
class Report:
    """Measurements as JSON values and as tables."""

    values: dict[str, Any]
    tables: list[Table]
    is_complete: bool = True
    """False if the measuring was interrupted; the report then holds what was done by then."""


def report_ops(ops: Sequence[Op], *, threads: int, rounds: int, say: Say) -> Report:
    """Measure the machine and single operations.

    KeyboardInterrupt ends the measuring; operations that are done are reported.
    """
    say("measuring the machine")
    limits = measure_limits(threads)
    seconds = {}
    try:
        for number, op in enumerate(ops, 1):
            say(f"measuring {number} of {len(ops)}: {op}")
            seconds[op] = measure_op(op, rounds=rounds)
        say("measuring the machine again")
        limits = limits.best(measure_limits(threads))
        is_complete = True
    except KeyboardInterrupt:
        is_complete = False
    rows = [describe_op(op, spread, limits) for op, spread in seconds.items()]
    values = _head(threads, limits) | {"ops": rows}
    return Report(values, [limits_table(limits), ops_table(rows)], is_complete)


def report_model(
    folder: Path,
    workloads: Sequence[Workload],
    *,
    dtype: torch.dtype | None,
    threads: int,
    rounds: int,
    say: Say,
    ignore_config_fields: Sequence[str] = (),
) -> Report:
    """Measure the machine and a whole model."""
    config = read_config(folder, ignore_config_fields=ignore_config_fields)
    check_workloads(config, workloads)
    say("loading the model")
    model = load_model(folder, dtype=dtype, ignore_config_fields=ignore_config_fields)
    dtype = model.model.embed_tokens.weight.dtype
    say("measuring the machine")
    limits = measure_limits(threads, [dtype])
    say("measuring the model")
    rates = measure_model(model, workloads, rounds=rounds)
    limits = limits.best(measure_limits(threads, [dtype]))
    most = {
        workload: tokens_per_s_limit(model.config, workload, limits, dtype=dtype)
        for workload in workloads
    }
    rows = [
        {
            **asdict(workload),
            "tokens_per_s": asdict(rate),
            "limit": most[workload],
            "of_limit": rate.median / most[workload],
        }
        for workload, rate in rates.items()
    ]
    about = {"model": str(folder), "dtype": str(dtype).removeprefix("torch."), "workloads": rows}
    tables = [limits_table(limits), model_table(rates, most)]
    return Report(_head(threads, limits) | about, tables)


def _head(threads: int, limits: Limits) -> dict[str, Any]:
    return {"device": device_name(), "threads": threads, "limits": asdict(limits)}


def limits_table(limits: Limits) -> Table:
    """Return a table with a row for each limit."""
    table = _table("the machine's limits", ("rate",))
    for threads, rate in limits.read_gb_per_s.items():
        table.add_row(f"reading memory, {threads} thread{'s' * (threads > 1)}", f"{rate:.1f} GB/s")
    for dtype, rate in limits.register_tops.items():
        unit = "TOP/s" if dtype == "int8" else "TFLOP/s"
        table.add_row(f"{dtype} products from registers, {limits.isa}", f"{_short(rate)} {unit}")
    for dtype, rate in limits.matmul_tflops.items():
        table.add_row(f"torch's best {dtype} product", f"{_short(rate)} TFLOP/s")
    return table


def ops_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with a row for each measurement of `describe_op`."""
    table = _table("operation", ("work", "time", "low to high", "rate", "of limit"), ("limit",))
    for row in rows:
        seconds = Spread(**row["seconds"])
        table.add_row(
            f"{row['name']} {row['format']}",
            row["work"],
            time_text(seconds.median),
            f"{time_text(seconds.low)} to {time_text(seconds.high)}",
            f"{row['rate']:.2f} {row['unit']}",
            f"{row['of_limit']:.0%}",
            row["limit"],
        )
    return table


def model_table(rates: Mapping[Workload, Spread], limits: Mapping[Workload, float]) -> Table:
    """Return a table with the tokens a second of each workload, and the most that is possible."""
    table = _table("model", ("tokens/s", "low to high", "limit", "of limit"))
    for workload, rate in rates.items():
        table.add_row(
            str(workload),
            f"{rate.median:.1f}",
            f"{rate.low:.1f} to {rate.high:.1f}",
            f"{limits[workload]:.0f}",
            f"{rate.median / limits[workload]:.0%}",
        )
    return table


def _table(first: str, numbers: Sequence[str], words: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    for column in words:
        table.add_column(column, no_wrap=True)
    return table


def _short(rate: float) -> str:
    return f"{rate:.2f}" if rate >= 0.1 else f"{rate:.2g}"


def time_text(seconds: float) -> str:
    """Write seconds as milliseconds, or as microseconds below one."""
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"
