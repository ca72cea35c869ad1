"""fulmen bench: the speed of this machine, and the share of it that Fulmen reaches."""

import json
from typing import Annotated

import typer

from fulmen.cli.options import DtypeOption, print_table, read_dtype
from fulmen.cli.progress import byte_progress


def bench(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Time this model, not the operations one by one."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="All cores if absent.")] = None,
    prompt: Annotated[int | None, typer.Option(help="Tokens read; 512 if absent.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens decoded; 64 if absent.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences decoded together.")] = None,
    depth: Annotated[int | None, typer.Option(help="Tokens before the decoded ones.")] = None,
    dtype: DtypeOption = None,
    only: Annotated[
        str | None, typer.Option(help="Operations that begin so, as linear; not with --model.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often each is measured.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="All numbers as one JSON line.")] = False,
) -> None:
    """How fast this machine is, and what share of that its operations reach, or a model; on the
    CPU."""
    import torch
    from rich.console import Console

    from fulmen import bench as room
    from fulmen.catalog import resolve

    of_model = {"prompt": prompt, "tokens": tokens, "batch": batch, "depth": depth}
    least = {"threads": 1, "rounds": 1, "batch": 1}
    for name, value in {**of_model, "threads": threads, "rounds": rounds}.items():
        if value is not None and value < least.get(name, 0):
            raise ValueError(f"--{name} is {value}, it must be at least {least.get(name, 0)}")
    count = torch.get_num_threads() if threads is None else threads
    status = Console(stderr=True).status("measuring")
    if model is None:
        for name, flag in {**of_model, "dtype": dtype}.items():
            if flag is not None:
                raise ValueError(f"--{name} is for a model, --model names one")
        ops = [op for op in room.list_ops() if op.name.startswith(only or "")]
        if not ops:
            names = ", ".join(dict.fromkeys(op.name for op in room.list_ops()))
            raise ValueError(f"--only is {only!r}, no operation begins so, there are {names}")
        with status:
            report = room.report_ops(ops, threads=count, rounds=rounds, say=status.update)
    else:
        if only is not None:
            raise ValueError("--only chooses operations, a model is timed whole")
        workloads = []
        if prompt != 0:
            workloads.append(room.Workload(kind="prefill", num_tokens=prompt or 512))
        if tokens != 0:
            past = {"batch": batch or 1, "depth": depth or 0}
            workloads.append(room.Workload(kind="decode", num_tokens=tokens or 64, **past))
        if not workloads:
            raise ValueError("--prompt and --tokens are both 0, there is nothing to time")
        kind = read_dtype(dtype)
        with byte_progress("fetching", model) as on_progress:
            folder = resolve(model, on_progress=on_progress)
        with status:
            report = room.report_model(
                folder, workloads, dtype=kind, threads=count, rounds=rounds, say=status.update
            )
    if as_json:
        print(json.dumps(report.values))
        return
    for table in report.tables:
        print_table(table)
