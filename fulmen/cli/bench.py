"""fulmen bench: the speed of this machine, and the share of it that Fulmen reaches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fulmen.cli.help import examples
from fulmen.cli.options import (
    MODEL_OPTION,
    DtypeOption,
    IgnoreOption,
    JsonOption,
    or_none,
    parse_whole,
    read_dtype,
)
from fulmen.cli.output import print_json, print_table
from fulmen.cli.progress import byte_progress, check_fits, step_progress

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    from fulmen.bench import Report, Workload

_RANGES = {
    "threads": (1, 1024),
    "rounds": (1, 1000),
    "batch": (1, 1024),
    "prompt": (0, 2**31 - 1),
    "tokens": (0, 2**31 - 1),
    "depth": (0, 2**31 - 1),
}
"""Least and most of each numeric flag"""


EXAMPLES: Final = examples(
    """
fulmen bench                     each operation
fulmen bench --only linear
fulmen bench --model smollm2     speed of a model
fulmen bench --model m2-int4 --depth 16384 --batch 4
fulmen bench --model m2-int4 --account     where a token's time goes
""",
    {
        "JSON": """
limits: isa, read_gb_per_s by threads, matmul_tflops by dtype;
ops, or workloads with --model: an object for each row of the table;
account with --account: rows by kind of work, and layers
"""
    },
)


def _option(text: str, metavar: str = "INTEGER") -> Any:
    """Return an option that takes a whole number, or `none` for its default."""
    return typer.Option(metavar=metavar, parser=or_none(parse_whole), help=text)


def bench(
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Time this model, not the operations one by one.", **MODEL_OPTION
        ),
    ] = None,
    threads: Annotated[int | None, _option("Threads to use. Default: all cores.")] = None,
    prompt: Annotated[
        int | None, _option("Tokens of the prompt to read. Default: 512.", "TOKENS")
    ] = None,
    tokens: Annotated[int | None, _option("Tokens to decode. Default: 64.", "TOKENS")] = None,
    batch: Annotated[int | None, _option("Sequences to decode together. Default: 1.")] = None,
    depth: Annotated[
        int | None,
        _option("Tokens of each sequence before the decoded ones. Default: 0.", "TOKENS"),
    ] = None,
    account: Annotated[
        bool,
        typer.Option("--account", help="Tell where the time of a decoded token goes."),
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="Tell it layer by layer too, with --account.")
    ] = False,
    dtype: DtypeOption = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Time operations whose name begins with this, such as linear."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Measurements of each operation or workload.")] = 3,
    as_json: JsonOption = False,
    ignore_config_field: IgnoreOption = None,
) -> None:
    """Measure this machine, and Fulmen on it.

    Every operation is timed on the CPU, or a whole model, and compared with what the machine could
    reach. Ctrl-C ends the measuring; operations that are done are printed.

    With --account each kernel call of a decoded token is timed. A row's time is divided: reading
    its weights (or the past) at the rate of memory, rounding inputs, handing over (a thread has
    nothing to do), and arithmetic, which is the rest. In cache is what the products would take if
    no weight had to come from memory. Numbers are milliseconds unless they say otherwise.
    """
    of_model = {"prompt": prompt, "tokens": tokens, "batch": batch, "depth": depth}
    for name, value in {**of_model, "threads": threads, "rounds": rounds}.items():
        least, most = _RANGES[name]
        if value is not None and not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most}"
            raise ValueError(f"--{name} is {value}, it must be {bound}")
    if model is None:
        loading = {"dtype": dtype, "ignore-config-field": ignore_config_field or None}
        for name, flag in {**of_model, **loading}.items():
            if flag is not None:
                raise ValueError(f"--{name} is for a model, --model names one")
        if account or layers:
            raise ValueError(
                f"--{'account' if account else 'layers'} is for a model, --model names one"
            )
    elif layers and not account:
        raise ValueError("--layers belongs to --account, which is not given")
    elif account and prompt is not None:
        raise ValueError("--prompt is given, an account is of decoded tokens alone")
    elif account and tokens == 0:
        raise ValueError("--tokens is 0, an account needs at least one decoded token")

    import torch

    count = torch.get_num_threads() if threads is None else threads
    if model is None:
        report = _bench_ops(only or "", threads=count, rounds=rounds)
    else:
        if only is not None:
            raise ValueError("--only chooses operations, a model is timed whole")
        report = _bench_model(
            model,
            _workloads(0 if account else prompt, tokens, batch or 1, depth or 0),
            has_account=account,
            has_layers=layers,
            dtype=read_dtype(dtype),
            threads=count,
            rounds=rounds,
            ignored=ignore_config_field or (),
        )
    if as_json:
        print_json(report.values)
    else:
        for table in report.tables:
            print_table(table)
    if not report.is_complete:
        raise typer.Exit(130)


def _bench_ops(only: str, *, threads: int, rounds: int) -> "Report":
    from fulmen.bench import list_ops, report_ops

    ops = [op for op in list_ops() if op.name.startswith(only)]
    if not ops:
        names = ", ".join(dict.fromkeys(op.name for op in list_ops()))
        raise ValueError(f"--only is {only!r}, no operation begins so, there are {names}")
    with step_progress() as say:
        return report_ops(ops, threads=threads, rounds=rounds, say=say)


def _workloads(prompt: int | None, tokens: int | None, batch: int, depth: int) -> "list[Workload]":
    from fulmen.bench import Workload

    workloads = []
    if prompt != 0:
        workloads.append(Workload(kind="prefill", num_tokens=prompt or 512))
    if tokens != 0:
        workloads.append(Workload(kind="decode", num_tokens=tokens or 64, batch=batch, depth=depth))
    if not workloads:
        raise ValueError("--prompt and --tokens are both 0, there is nothing to time")
    return workloads


def _bench_model(
    name: str,
    workloads: "list[Workload]",
    *,
    has_account: bool,
    has_layers: bool,
    dtype: Any,
    threads: int,
    rounds: int,
    ignored: Sequence[str],
) -> "Report":
    from fulmen.bench import report_account, report_model
    from fulmen.catalog import resolve

    check_fits(name)
    with byte_progress("fetching", name) as on_progress:
        folder = resolve(name, on_progress=on_progress)
    with step_progress() as say:
        if has_account:
            return report_account(
                folder,
                workloads[0],
                dtype=dtype,
                threads=threads,
                rounds=rounds,
                has_layers=has_layers,
                say=say,
                ignore_config_fields=ignored,
            )
        return report_model(
            folder,
            workloads,
            dtype=dtype,
            threads=threads,
            rounds=rounds,
            say=say,
            ignore_config_fields=ignored,
        )
