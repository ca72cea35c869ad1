"""fulmen plan and fulmen figure1: what a model needs, before any download."""

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from fulmen.cli import completion
from fulmen.cli.help import examples
from fulmen.cli.options import or_none
from fulmen.cli.output import print_json
from fulmen.files import write_text
from fulmen.units import parse_count

PLAN_EXAMPLES: Final = examples(
    """
fulmen plan minimax-m2                       on this machine
fulmen plan minimax-m2 --ram 128GiB          with 128 GiB, without GPUs
fulmen plan minimax-m2 --ram 192GiB --memory 200GB/s
fulmen plan minimax-m1-80k --gpus 8xH800     and the command that serves it
fulmen plan minimax-m2 --verbose             every number with its formula
""",
    {
        "JSON": """
fits, name, hardware, context, notes, launch (commands by engine);
ways: precision, fits, needed_bytes, decode_low, decode_high, commands;
forecasts, and the sizes and FLOPs that --verbose explains
"""
    },
)
FIGURE1_EXAMPLES: Final = examples("""
fulmen figure1
fulmen figure1 --out figure1.svg
""")
_DEFAULT_MEMORY: Final = "40GB/s"


def _none_or(text: str, metavar: str) -> typer.models.OptionInfo:
    """Return an option whose value may be `none`."""
    option: typer.models.OptionInfo = typer.Option(metavar=metavar, parser=or_none(str), help=text)
    return option


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
        str,
        typer.Option(metavar="RATE", help="Read speed of its memory; fulmen bench measures it."),
    ] = _DEFAULT_MEMORY,
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
        str,
        typer.Option(metavar="GPUS", help="GPUs of a training run, whose cost --verbose shows."),
    ] = "512xH800",
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show every number with its formula.")
    ] = False,
    out: Annotated[Path | None, typer.Option(hidden=True)] = None,  # of fulmen plan figure1
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all numbers as one JSON value.")
    ] = False,
) -> None:
    """Tell whether a model fits, how fast it is, what to type.

    Nothing is downloaded. Without --ram and --gpus the plan is for this machine.
    """
    from fulmen.plan import make_plan, render_answer, render_plan, this_machine

    if name.lower() == "figure1":
        figure1(out)
        return
    if out is not None:
        raise ValueError("--out is where fulmen figure1 draws, a plan is printed")
    said = ""
    if ram is None and gpus is None:
        here = this_machine()
        said = f"this machine has {here.ram} of memory"
        if here.gpu_names:
            said += f" and {len(here.gpu_names)} GPUs ({', '.join(sorted(set(here.gpu_names)))})"
        else:
            said += " and no GPU"
        if here.gpus is not None and disk is None:
            gpus = str(here.gpus)
            said += f"; --ram {here.ram} plans for its memory alone"
        else:
            ram = here.ram
        if ram is not None and memory == _DEFAULT_MEMORY:
            said += f"; its memory is taken to read {memory}, --memory says otherwise"
    made = make_plan(
        name, gpus=gpus, ram=ram, disk=disk, memory=memory, context=context, rl_gpus=rl_gpus
    )
    if said:
        print(said, file=sys.stderr)
    if as_json:
        print_json(made.to_dict())
        return
    print(render_answer(made), end="")
    if verbose:
        print("\n" + render_plan(made), end="")
    else:
        print("\n--verbose shows every number with its formula", file=sys.stderr)


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
