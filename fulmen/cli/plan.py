"""fulmen plan: memory, speed and cost of a model, before any download."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fulmen.files import write_text


def plan(
    name: Annotated[
        str, typer.Argument(help="A catalog name, a folder, a config.json, a GGUF; or figure1.")
    ],
    gpus: Annotated[str | None, typer.Option(help="GPUs to serve on, such as 8xH800.")] = None,
    ram: Annotated[
        str | None, typer.Option(help="Memory of one machine without GPUs, such as 24GiB.")
    ] = None,
    disk: Annotated[
        str | None,
        typer.Option(
            help="Read speed of its disk, such as 3GB/s; experts that exceed memory stay on it."
        ),
    ] = None,
    memory: Annotated[str, typer.Option(help="Read speed of its memory.")] = "40GB/s",
    context: Annotated[int | None, typer.Option(help="Tokens of a sequence to plan for.")] = None,
    rl_gpus: Annotated[
        str, typer.Option(help="GPUs of the reinforcement learning run.")
    ] = "512xH800",
    out: Annotated[Path | None, typer.Option(help="SVG file to write figure1 to.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all numbers as one JSON line.")
    ] = False,
) -> None:
    """Plan memory, speed and cost before a download.

    The name figure1 stands for Figure 1 (right) of the M1 report, redrawn.

    \b
    Examples:
      fulmen plan minimax-m2 --gpus 8xH800
      fulmen plan minimax-m2 --ram 24GiB --disk 3GB/s
      fulmen plan figure1 --out figure1.svg
    """
    from fulmen.plan import figure1_svg, figure1_text, make_plan, render_plan

    if name.lower() == "figure1":
        if out is not None:
            write_text(out, figure1_svg())
        print(figure1_text(), end="")
        return
    if out is not None:
        raise ValueError("--out is where figure1 goes, a plan is printed")
    made = make_plan(
        name, gpus=gpus, ram=ram, disk=disk, memory=memory, context=context, rl_gpus=rl_gpus
    )
    print(json.dumps(made.to_dict()) if as_json else render_plan(made), end="\n" * as_json)
