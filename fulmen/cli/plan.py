"""fulmen plan: what a model needs, before any download."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fulmen.files import write_text


def plan(
    name: Annotated[str, typer.Argument(help="A catalog name, a local config, or figure1.")],
    gpus: Annotated[str | None, typer.Option(help="As 8xH800.")] = None,
    ram: Annotated[str | None, typer.Option(help="Of one machine without GPUs, as 24GiB.")] = None,
    disk: Annotated[
        str | None, typer.Option(help="How fast it reads, as 3GB/s: experts may stay there.")
    ] = None,
    memory: Annotated[str, typer.Option(help="How fast memory reads.")] = "40GB/s",
    context: Annotated[int | None, typer.Option(help="The length to plan for, in tokens.")] = None,
    rl_gpus: Annotated[str, typer.Option(help="For the cost of an RL run.")] = "512xH800",
    out: Annotated[Path | None, typer.Option(help="Where figure1 goes, an SVG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All numbers as JSON.")] = False,
) -> None:
    """What a model needs and what it will reach; or the report's FIGURE1, redrawn."""
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
