"""fulmen train speedrun: a small model of ours made anew, from nothing, in so many hours.

Stdout gets the scores of the finished model and its folder. Each part says on stderr that it
begins, with the time until all is done (`train_speedrun_view.py`).
"""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fulmen.cli import completion
from fulmen.cli.help import examples
from fulmen.cli.options import in_flags
from fulmen.cli.output import print_table

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    from fulmen.train import Recipe

SPEEDRUN_EXAMPLES: Final = examples("""
fulmen train speedrun mini-m1 --hours 2         begin, or go on
fulmen train speedrun mini-m2 --hours 3 --out runs/out/mine
fulmen train speedrun mini-m1 --hours 2 --show  print the plan alone
""")
_STOPPED: Final = 130
"""Exit code of a run that was interrupted"""


def speedrun(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Model to make: mini-m1, mini-m2, or the folder of a recipe of your own.",
            autocompletion=completion.recipes,
        ),
    ],
    hours: Annotated[
        float, typer.Option(metavar="HOURS", help="Time for all of it.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the run. Default: runs/out/NAME-speedrun.",
            show_default=False,
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Measure the speed, print the plan, and train nothing.")
    ] = False,
) -> None:
    """Make a small model anew, from nothing, in so many hours.

    It makes a tokenizer, measures the speed of this machine, learns, practises by reinforcement
    learning, rounds to 8 bits and scores what came of it. The same command goes on where a run
    stopped. Ctrl-C saves a state after the step at hand.
    """
    from fulmen.cli.train import stopping
    from fulmen.cli.train_speedrun_view import SpeedrunView, record_table
    from fulmen.train import Speedrun, find_recipe

    recipe = find_recipe(name)
    folder = Path("runs/out") / f"{recipe.name}-speedrun" if out is None else out
    try:
        run = Speedrun(recipe, folder, hours)
    except ValueError as error:
        raise ValueError(in_flags(str(error), {"hours": "--hours"})) from None
    if show:
        _show(recipe, run.out if run.has_plan else None, hours)
        return
    with stopping() as should_stop:
        record = run.run(SpeedrunView(), should_stop=should_stop)
    if record is None:
        print(
            f"stopped in {run.stage}, all of it is saved; the same command goes on from {folder}",
            file=sys.stderr,
        )
        raise typer.Exit(_STOPPED)
    print_table(record_table(record))
    print(run.model_folder)


def _show(recipe: "Recipe", out: Path | None, hours: float) -> None:
    """Print the plan of a run's folder, or one that is made for now."""
    from fulmen.cli.train_speedrun_view import SpeedrunView, plan_table
    from fulmen.train import Speedrun

    with tempfile.TemporaryDirectory(prefix="fulmen-plan-") as folder:
        plan = Speedrun(recipe, out or Path(folder) / "run", hours).plan(SpeedrunView())
    print_table(plan_table(plan, recipe))
