"""Grading of the environment `packages`: every fault is found out, every oracle scores 1.

    python benchmarks/package_repairs.py [--tasks 200]

Four patches for each task: the oracle (the right text), nothing (a comment alone, so the tests
run), a random edit (another fault in place of a repair), and a repair that is taken back. Told are
the scores and, of the first three, the seconds of the clock that a grade takes.
"""

import asyncio
import random
import statistics
import time
from collections import Counter
from typing import Annotated

import typer
from measure import console, print_json, print_wide, run
from rich.progress import track
from rich.table import Table

from fulmen.envs import Packages, PackageTask
from fulmen.envs.packages.environment import patch_of
from fulmen.envs.repairs.faults import find_faults

WAYS = ("oracle", "nothing", "random edit", "taken back")
EXPECTED = {"oracle": 1.0, "nothing": 0.0, "random edit": 0.0, "taken back": 0.0}


def changed_text(task: PackageTask, way: str, draw: random.Random) -> str:
    """Return the text of the file with the fault, as a way leaves it."""
    tree = task.tree
    if way == "oracle":
        return tree.right
    if way == "taken back":
        return tree.faulty
    if way == "nothing":
        return f"{tree.faulty}# There is nothing to do.\n"
    edits = [one.put_into(tree.faulty) for one in find_faults(tree.faulty)]
    return draw.choice([text for text in edits if text != tree.right])


async def grade(task: PackageTask, way: str, draw: random.Random) -> tuple[float, float]:
    """Return the score of a way, and the seconds that the grade took."""
    path, text = task.tree.fault.path, changed_text(task, way, draw)
    patch = "" if text == task.tree.faulty else patch_of(path, task.tree.faulty, text)
    begin = time.perf_counter()
    score = await task.grade(patch)
    return score.value, time.perf_counter() - begin


def main(
    tasks: Annotated[int | None, typer.Option(help="The first ones; all by default")] = None,
    seed: Annotated[int, typer.Option(help="Order of the tasks, and the random edits")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Grade four patches of each task, and tell what came of it."""
    environment = Packages(seed)
    number = min(tasks or environment.num_tasks, environment.num_tasks)
    draw = random.Random(seed)
    wrong: list[str] = []
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    packages: Counter[str] = Counter()
    for index in track(range(number), "Grades", console=console):
        for way in WAYS:
            task = environment.task(index)
            value, took = asyncio.run(grade(task, way, draw))
            seconds[way].append(took)
            if value != EXPECTED[way]:
                wrong.append(f"{task.instance.instance_id}: {way} scores {value:g}")
        packages[task.tree.package.name] += 1
    run_ones = sorted(one for way in WAYS[:3] for one in seconds[way])
    found = {
        "tasks": number,
        "packages": dict(packages),
        "wrong": wrong,
        "median_seconds": statistics.median(run_ones),
        "seconds_95": run_ones[int(0.95 * len(run_ones))],
        "most_seconds": run_ones[-1],
        "medians": {way: statistics.median(seconds[way]) for way in WAYS},
    }
    if as_json:
        print_json("package_repairs", found)
        return
    table = Table("", "score as it should be", "median s", "95 % within s", "most s")
    for way in WAYS:
        times = sorted(seconds[way])
        bad = sum(f": {way} scores" in one for one in wrong)
        table.add_row(
            way,
            f"{number - bad} of {number}",
            f"{statistics.median(times):.2f}",
            f"{times[int(0.95 * len(times))]:.2f}",
            f"{times[-1]:.2f}",
        )
    print_wide(table)
    for line in wrong:
        console.print(line)


if __name__ == "__main__":
    run(main)
