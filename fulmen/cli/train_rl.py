"""fulmen train rl: reinforcement learning from a run file, seen as it goes.

Stdout gets the folder of the trained model, or with --json a line a step. Everything that happens
is shown on stderr (`train_rl_view.py`).
"""

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from fulmen.cli.help import examples
from fulmen.cli.train import stopping

RL_EXAMPLES: Final = examples("""
fulmen train rl runs/fork.toml
fulmen train rl runs/fork.toml --set trainer.num_steps=60
""")


def rl(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Run file, TOML.")],
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Value that beats the file: optimizer.eps=1e-15."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each step as JSON.")] = False,
) -> None:
    """Train a model by reinforcement learning.

    A run whose folder has a saved state goes on from it. Ctrl-C ends it after the step under way, a
    second one at once.
    """
    from fulmen.cli.train_rl_view import TrainingView
    from fulmen.train import (
        RLRun,
        RolloutError,
        TrainingError,
        latest_state,
        model_folder,
        open_run,
        read_run_file,
    )

    run = read_run_file(file, RLRun, assign or ())
    most = run.trainer.max_seconds
    with TrainingView(run.trainer.num_steps, has_lines=as_json, max_seconds=most) as view:
        try:
            with open_run(run, watcher=view) as trainer, stopping() as should_stop:
                is_done = trainer.run(should_stop=should_stop)
                num_steps = trainer.num_steps
        except (RolloutError, TrainingError) as error:
            raise ValueError(str(error)) from None
    if not is_done:
        print(
            f"stopped after step {num_steps} of {run.trainer.num_steps}, the same command goes on "
            f"from {run.folder}",
            file=sys.stderr,
        )
        raise typer.Exit(130)
    state = latest_state(run.folder)
    assert state is not None  # the last step is saved
    print(model_folder(state), file=sys.stderr if as_json else sys.stdout)
