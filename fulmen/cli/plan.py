"""fulmen plan and fulmen figure1: what a model needs, before any download."""

import shutil
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer

from fulmen.cli import completion
from fulmen.cli.help import examples
from fulmen.cli.options import IgnoreOption, checked, or_none
from fulmen.cli.output import print_json
from fulmen.files import write_text
from fulmen.units import parse_bytes, parse_count, parse_rate

PLAN_EXAMPLES: Final = examples(
    """
fulmen plan minimax-m2                       on this machine, measured
fulmen plan minimax-m2 --ram 128GiB          with 128 GiB, without GPUs
fulmen plan minimax-m2 --ram 192GiB --memory 200GB/s
fulmen plan minimax-m1-80k --gpus 8xH800     and the command that serves it
fulmen plan minimax-m2 --verbose             every number with its formula
""",
    {
        "JSON": """
fits, name, model_type, total_parameters, active_parameters, active_with_head,
active_with_head_and_embedding, num_tensors, checkpoint_bytes, weight_bytes (by precision),
kv_bytes_per_token, kv_formula, state_bytes, state_formula, max_context, context, prefill_flops,
hardware, is_on_gpus, ram, memory, memory_source, disk, notes; launch (commands by engine),
launch_precision, launch_max_model_len; ways: precision, is_published, needed_bytes, fits,
decode_low, decode_high, commands, from_disk; forecasts: precision, weight_bytes, fits,
cache_tokens, max_model_len, expert_share, decode_bound, decode_low, decode_high, streams,
streams_bound, prompt_seconds; flops and flops_as_drawn: model, per_token, per_position; rl: gpus,
relative_flops, gpu_hours, days, usd, usd_per_gpu_hour, optimizer_bytes
"""
    },
)
FIGURE1_EXAMPLES: Final = examples("""
fulmen figure1
fulmen figure1 --out figure1.svg
""")
_WIDEST: Final = 100
"""Columns of the widest text, which is read more easily than a line across a large screen"""
_NARROWEST: Final = 30
_MEASURING_SECONDS: Final = 1.0
"""Time to measure this machine's memory in, roughly"""


def _none_or(text: str, metavar: str) -> typer.models.OptionInfo:
    """Return an option whose value may be `none`."""
    read = {"SIZE": parse_bytes, "RATE": parse_rate, "GPUS": _parse_gpus}[metavar]
    parser = checked(read, or_none=True)
    option: typer.models.OptionInfo = typer.Option(metavar=metavar, parser=parser, help=text)
    return option


def _parse_gpus(text: str) -> object:
    from fulmen.plan import parse_gpus

    return parse_gpus(text)


def plan(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A name that fulmen models list shows, a folder, a config.json or a GGUF file.",
            autocompletion=completion.models,
        ),
    ],
    ram: Annotated[
        str | None, _none_or("Memory of a machine without GPUs, such as 128GiB.", "SIZE")
    ] = None,
    memory: Annotated[
        str | None,
        _none_or(
            "Read speed of its memory, such as 200GB/s. Default: measured on this machine, 40GB/s "
            "with --ram.",
            "RATE",
        ),
    ] = None,
    disk: Annotated[
        str | None,
        _none_or("Read speed of its disk, such as 3GB/s, to hold experts in the forecast.", "RATE"),
    ] = None,
    gpus: Annotated[str | None, _none_or("GPUs, such as 8xH800.", "GPUS")] = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            parser=or_none(parse_count),
            help="Tokens of a conversation. Default: 8,192 in memory, 131,072 on GPUs.",
        ),
    ] = None,
    rl_gpus: Annotated[
        str | None,
        _none_or(
            "GPUs of a training run, whose cost --verbose and --json show. Default: 512xH800.",
            "GPUS",
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show every number with its formula.")
    ] = False,
    out: Annotated[Path | None, typer.Option(hidden=True)] = None,  # of fulmen plan figure1
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all numbers as one JSON value.")
    ] = False,
    ignore_config_field: IgnoreOption = None,
) -> None:
    """Tell whether a model fits, how fast it is, what to type.

    Nothing is downloaded. Without --ram and --gpus the plan is for this machine.
    """
    from fulmen.plan import TYPICAL_MEMORY, make_plan, render_answer, render_plan, this_machine

    if name.lower() == "figure1":
        others = {
            "ram": ram,
            "memory": memory,
            "disk": disk,
            "gpus": gpus,
            "context": context,
            "rl-gpus": rl_gpus,
            "ignore-config-field": ignore_config_field,
            "verbose": verbose or None,
            "json": as_json or None,
        }
        for flag, value in others.items():
            if value is not None:
                raise ValueError(f"--{flag} is not for fulmen figure1, it has no option but --out")
        figure1(out)
        return
    if out is not None:
        raise ValueError("--out is where fulmen figure1 draws, a plan is printed")
    if rl_gpus is not None and not verbose and not as_json:
        raise ValueError("--rl-gpus has no effect without --verbose or --json")
    if verbose and as_json:
        raise ValueError("--verbose has no effect with --json, which has every number")
    make = partial(
        make_plan,
        name,
        context=context,
        rl_gpus=rl_gpus or "512xH800",
        ignore_config_fields=ignore_config_field or (),
    )
    said = ""
    made = measured = None
    if ram is None and gpus is None:
        here = this_machine()
        said = f"this machine has {here.ram} of memory"
        if here.gpu_names:
            said += f" and {len(here.gpu_names)} GPUs ({', '.join(sorted(set(here.gpu_names)))})"
        else:
            said += " and no GPU"
        ram = here.ram
        if here.gpus is not None and disk is None and memory is None:
            served = make(gpus=str(here.gpus))
            if served.launch:
                made = served
                said += f"; --ram {ram} plans for its memory alone"
            else:
                said += f"; --gpus {here.gpus} tells why no engine serves {name} there"
        if made is None:
            if memory is None:
                measured = _measured_memory()
                said += (
                    f"; its memory reads {measured}, measured just now"
                    if measured is not None
                    else f"; its memory is assumed to read {TYPICAL_MEMORY}, too little of it is "
                    "free to measure that"
                )
            said += "; for another machine type its numbers: --ram 128GiB --memory 200GB/s"
    if made is None:
        made = make(gpus=gpus, ram=ram, disk=disk, memory=memory, measured_memory=measured)
    width = _width()
    if said:
        print(textwrap.fill(said, width), file=sys.stderr)
    if as_json:
        print_json(made.to_dict())
        return
    print(render_answer(made, width=width), end="")
    if verbose:
        print("\n" + render_plan(made, width=width), end="")
    else:
        hint = "--verbose shows every number with its formula"
        print("\n" + textwrap.fill(hint, width), file=sys.stderr)


def _measured_memory() -> str | None:
    """Return how fast this machine's memory is read, measured in about a second; None where too
    little of it is free for that."""
    from fulmen.doctor import read_rates

    rates = read_rates(max_seconds=_MEASURING_SECONDS)
    if rates is None:
        return None
    best = max(rates.values())
    return f"{best:.0f}GB/s" if best >= 10 else f"{max(best, 0.1):.1f}GB/s"


def _width() -> int:
    """Return the columns to print in: the terminal's or those that COLUMNS names, else 80."""
    return min(max(shutil.get_terminal_size((80, 24)).columns, _NARROWEST), _WIDEST)


def figure1(
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="SVG file to draw the figure into.")
    ] = None,
) -> None:
    """Redraw Figure 1 (right) of the M1 report.

    It shows what generating costs as an answer grows. Prints the numbers; --out draws the curves.
    """
    from fulmen.plan import figure1_svg, figure1_text

    if out is not None:
        write_text(out, figure1_svg())
    print(figure1_text(), end="")
