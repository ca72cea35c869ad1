"""Tables of engine.py: the rows of its JSON line, as a reader compares them."""

from collections.abc import Mapping, Sequence
from typing import Any

from measure import print_wide
from rich.table import Table

from fulmen.bench import Workload


def print_table(rows: Sequence[dict[str, Any]], ours: Mapping[str, str], title: str) -> None:
    """Tokens a second, and how many times faster each of ours was.

    ours  text for the row of each of ours, by name
    """
    table = Table(title=title)
    for column in ("case", "engine"):
        table.add_column(column)
    for column in ("tokens/s", "low to high", "of limit", *(f"{name} / it" for name in ours)):
        table.add_column(column, justify="right")
    table.add_column("note")
    previous = None
    for row in rows:
        case = Workload(**row["case"])
        if previous not in (None, case):
            table.add_section()
        rates, share = row["tokens_per_s"], row["softmax_share"]
        note = row["note"] if share is None else f"softmax layers {share:.0%} {row['note']}"
        table.add_row(
            str(case) if case != previous else "",
            ours.get(row["engine"], row["engine"]),
            *(
                ("-", "-", "-")
                if rates is None
                else (
                    f"{rates['median']:.1f}",
                    f"{rates['low']:.1f} to {rates['high']:.1f}",
                    f"{row['of_limit']:.0%}",
                )
            ),
            *(
                _spread_cells(row["ratios"][name], "{:.2f}x")[0] if name != row["engine"] else ""
                for name in ours
            ),
            note,
        )
        previous = case
    print_wide(table)


def print_same_bits(rows: Sequence[dict[str, Any]], ours: Mapping[str, str]) -> None:
    """Print the share of memory's rate that each of ours reached, and how many times faster it was
    than each engine whose weights have as many bits."""
    table = Table(title="beside memory, and beside engines with weights of as many bits")
    for column in ("case", "fulmen"):
        table.add_column(column)
    for column in ("bits", "tokens/s", "of memory's rate", "low to high"):
        table.add_column(column, justify="right")
    table.add_column("beside")
    for column in ("faster", "low to high"):
        table.add_column(column, justify="right")
    for row in rows:
        if row["engine"] not in ours or row["tokens_per_s"] is None:
            continue
        others = [
            (other["engine"], other["ratios"][row["engine"]])
            for other in rows
            if other["case"] == row["case"]
            and other["weight_bits"] == row["weight_bits"]
            and other["engine"] not in ours
        ]
        for place, (name, ratio) in enumerate(others or [("", None)]):
            head = (
                str(Workload(**row["case"])),
                ours[row["engine"]],
                str(row["weight_bits"]),
                f"{row['tokens_per_s']['median']:.1f}",
                *_spread_cells(row["of_bandwidth"], "{:.0%}"),
            )
            table.add_row(
                *(head if place == 0 else [""] * len(head)), name, *_spread_cells(ratio, "{:.2f}x")
            )
    print_wide(table)


def _spread_cells(spread: Mapping[str, float] | None, form: str) -> tuple[str, str]:
    """Write a median, and both ends beside it."""
    if spread is None:
        return "-", "-"
    median, low, high = (form.format(spread[name]) for name in ("median", "low", "high"))
    return median, f"{low} to {high}"


def print_depths(rows: Sequence[dict[str, Any]]) -> None:
    """Print the time of a hybrid's decoded token at each depth: the softmax layers' attention, and
    all the rest, which should stay as it was at the smallest depth."""
    table = Table(title="one sequence at depth, milliseconds a token")
    table.add_column("engine")
    for column in ("depth", "in all", "softmax layers", "the rest", "of the first"):
        table.add_column(column, justify="right")
    first: dict[str, float] = {}
    for row in rows:
        case, rest = Workload(**row["case"]), row["rest_seconds"]
        if case.kind != "decode" or not case.depth or rest is None:
            continue
        whole = rest / (1 - row["softmax_share"])
        table.add_row(
            row["engine"],
            f"{case.depth:,}",
            f"{whole * 1e3:.2f}",
            f"{(whole - rest) * 1e3:.2f}",
            f"{rest * 1e3:.2f}",
            f"{rest / first.setdefault(row['engine'], rest):.2f}",
        )
    if first:
        print_wide(table)
