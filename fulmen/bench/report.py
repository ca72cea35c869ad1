"""Reports of `fulmen bench`: the same numbers as JSON values and as tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from fulmen.bench.account import WITHIN, Account, Work, check_account, measure_account
from fulmen.bench.machine import (
    Limits,
    Spread,
    device_name,
    measure_limits,
    measure_read_rates,
)
from fulmen.bench.model import check_workloads, measure_model, tokens_per_s_limit
from fulmen.bench.op import Op, describe_op, measure_op
from fulmen.bench.workload import Workload
from fulmen.checkpoints import load_model, read_config
from fulmen.kernels import native

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


def report_account(
    folder: Path,
    workload: Workload,
    *,
    dtype: torch.dtype | None,
    threads: int,
    rounds: int,
    has_layers: bool,
    say: Say,
    ignore_config_fields: Sequence[str] = (),
) -> Report:
    """Measure where the time of a decoded token goes; with a table of each layer if it is to have
    one. The values hold the layers in any case."""
    config = read_config(folder, ignore_config_fields=ignore_config_fields)
    check_workloads(config, [workload])
    check_account(dtype or config.torch_dtype)
    extension = native()
    assert extension is not None
    say("loading the model")
    model = load_model(folder, dtype=dtype, ignore_config_fields=ignore_config_fields)
    say("measuring the machine")
    limits = Limits(extension.isa(), measure_read_rates(threads), {}, {})
    say("measuring the model")
    account = measure_account(
        model,
        batch=workload.batch,
        depth=workload.depth,
        num_tokens=workload.num_tokens,
        rounds=rounds,
    )
    say("measuring the machine again")
    limits = limits.best(Limits(limits.isa, measure_read_rates(threads), {}, {}))
    rate = 1e9 * limits.read_gb_per_s[threads]
    whole = account.total.seconds
    values = {
        "model": str(folder),
        "dtype": str(model.model.embed_tokens.weight.dtype).removeprefix("torch."),
        "account": {
            "batch": workload.batch,
            "depth": account.depth,
            "seconds": whole,
            "plain_seconds": account.plain_seconds,
            "agreement": account.agreement,
            "is_recorded": account.is_recorded,
            "rows": [_describe_work(work, rate, whole) for work in account.by_kind()],
            "layers": [
                {"layer": work.layer} | _describe_work(work, rate, whole) for work in account.works
            ],
        },
    }
    tables = [limits_table(limits), account_table(account, rate)]
    if has_layers:
        tables.append(layers_table(account, rate))
    return Report(_head(threads, limits) | values, tables)


def _describe_work(work: Work, bytes_per_s: float, whole: float) -> dict[str, Any]:
    parts = {
        "reading": work.reading(bytes_per_s),
        "rounding": work.rounding,
        "handing_over": work.handing_over,
        "arithmetic": work.arithmetic(bytes_per_s),
        "in_cache": work.in_cache,
    }
    return {
        "work": work.kind,
        "calls": work.calls,
        "bytes": work.num_bytes,
        "seconds": work.seconds,
        "share": work.seconds / whole,
        **(parts if work.is_kernel else dict.fromkeys(parts)),
    }


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


def account_table(account: Account, bytes_per_s: float) -> Table:
    """Return a table with a row for each kind of work, and what they add up to."""
    table = _work_table("a decoded token")
    total = account.total
    for work in [*account.by_kind(), total]:
        _add_work(table, work.kind, work, bytes_per_s, total.seconds)
    plain = account.plain_seconds
    table.add_row("timed without instruments", "", "", _ms(plain), f"{plain / total.seconds:.1%}")
    notes = []
    if abs(account.agreement - 1) > WITHIN:
        notes.append(
            f"the rows are {account.agreement:.0%} of a token without instruments, not within "
            f"{WITHIN:.0%}: the machine is too busy for an account"
        )
    if not account.is_recorded:
        notes.append("the steps are not recorded, as torch works between the kernels")
    if notes:
        table.caption = "\n".join(notes)
        table.caption_justify = "left"
    return table


def layers_table(account: Account, bytes_per_s: float) -> Table:
    """Return a table with a row for each kind of work in each layer."""
    table = _work_table("layer by layer")
    whole = account.total.seconds
    for work in account.works:
        name = work.kind if work.layer is None else f"{work.layer} {work.kind}"
        _add_work(table, name, work, bytes_per_s, whole)
    return table


def _work_table(first: str) -> Table:
    parts = ("reading", "rounding", "handing over", "arithmetic", "in cache")
    return _table(first, ("calls", "MB", "ms", "share", *parts))


def _add_work(table: Table, name: str, work: Work, bytes_per_s: float, whole: float) -> None:
    parts = [""] * 4
    if work.is_kernel:
        numbers = (
            work.reading(bytes_per_s),
            work.rounding,
            work.handing_over,
            work.arithmetic(bytes_per_s),
        )
        parts = [_ms(seconds) for seconds in numbers]
    table.add_row(
        name,
        f"{work.calls}" if work.calls else "",
        f"{work.num_bytes / 1e6:.2f}" if work.is_kernel else "",
        _ms(work.seconds),
        f"{work.seconds / whole:.1%}",
        *parts,
        "" if work.in_cache is None else _ms(work.in_cache),
    )


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1e3, 3) + 0.0:.3f}"  # + 0.0: no minus before a zero


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
