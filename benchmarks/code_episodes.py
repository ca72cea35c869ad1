"""Graded episodes of code an hour on one core: an answer, its program in the sandbox, a score.

    python benchmarks/code_episodes.py
    python benchmarks/code_episodes.py --episodes 500 --core 1

Every episode is played by `run_task` with a scripted model, and each has a task and a sandbox of
its own. By turns the answer is the reference, a program that is wrong for one test, one that fails,
and one without a program; every `--slow-every`th runs for ever. The scores are checked first: those
of references are 1, all others 0. This process and all its children are held on one core, and the
seconds of the processor are told beside those of the clock, since other work may share the core.
"""

import asyncio
import ctypes
import os
import resource
import statistics
import time
from contextlib import suppress
from typing import Annotated, Final

import typer
from measure import console, print_json, print_wide, run
from rich.table import Table

from fulmen.chat import get_format
from fulmen.envs import CodeTask, load_environment, run_task
from fulmen.llm import ScriptedModel
from fulmen.sampling import SamplingParams

WAYS = ("reference", "wrong", "fails", "no program")
ENDLESS = "endless"
_CHILD_SUBREAPER: Final = 36
"""PR_SET_CHILD_SUBREAPER of prctl(2)"""


def answer_of(task: CodeTask, way: str) -> str:
    """Return what a model answers to a task."""
    right = task.known_answers[0].content
    broken = {
        "wrong": right.replace("return result", "return (result, result)"),
        "fails": right.replace("return result", "raise ValueError(result)"),
        "no program": "I would sort them first, and then look at each.",
        ENDLESS: "```python\nwhile True:\n    pass\n```",
    }
    return broken.get(way, right)


async def play(task: CodeTask, way: str) -> tuple[float, float]:
    """Return the score of an episode, and the seconds that it took."""
    begin = time.perf_counter()
    model = ScriptedModel(get_format("minimax_m2"), [f"Hm.\n</think>\n\n{answer_of(task, way)}"])
    trajectory = await run_task(model, task, params=SamplingParams(max_tokens=10**6))
    assert trajectory.score is not None
    return trajectory.score.value, time.perf_counter() - begin


def keep_orphans() -> None:
    """Make processes whose parents have ended children of this one: a sandbox is killed in the end,
    and nobody else would count what the processes in it took."""
    if ctypes.CDLL(None, use_errno=True).prctl(_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "orphans cannot be kept")


def cpu_seconds() -> float:
    """Return the seconds that this process and all its children which have ended took."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main(
    episodes: Annotated[int, typer.Option(help="Episodes that are measured.", min=4)] = 200,
    core: Annotated[int, typer.Option(help="Core on which all of it runs.", min=0)] = 0,
    slow_every: Annotated[
        int, typer.Option(help="Every so many episodes a program runs for ever; 0: none.", min=0)
    ] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the tasks.")] = 0,
) -> None:
    """Measures graded episodes of code an hour."""
    os.sched_setaffinity(0, {core})
    keep_orphans()
    environment = load_environment("code", seed=seed)
    ways = [WAYS[number % len(WAYS)] for number in range(episodes)]
    if slow_every:
        ways[slow_every - 1 :: slow_every] = [ENDLESS] * len(ways[slow_every - 1 :: slow_every])
    asyncio.run(play(environment.task(0), "reference"))  # the first one loads what all need
    seconds: dict[str, list[float]] = {}
    begin, used = time.perf_counter(), cpu_seconds()
    for index, way in enumerate(ways):
        task = environment.task(index)
        assert isinstance(task, CodeTask)
        value, took = asyncio.run(play(task, way))
        if value != float(way == "reference"):
            raise ValueError(f"task {index} scores {value:g} for an answer that is {way}")
        seconds.setdefault(way, []).append(took)
    wall, used = time.perf_counter() - begin, cpu_seconds() - used
    table = Table(title=f"{episodes:,} episodes on one core; milliseconds")
    for column in ("answer", "episodes", "median", "slowest"):
        table.add_column(column, justify="left" if column == "answer" else "right")
    for way, found in seconds.items():
        middle = f"{statistics.median(found) * 1e3:,.0f}"
        table.add_row(way, str(len(found)), middle, f"{max(found) * 1e3:,.0f}")
    print_wide(table)
    an_hour, of_cpu = 3600 * episodes / wall, 3600 * episodes / used
    console.print(f"{an_hour:,.0f} an hour by the clock, {of_cpu:,.0f} by the processor's time")
    print_json(
        "code_episodes",
        {
            "episodes": episodes,
            "slow_every": slow_every,
            "an_hour": an_hour,
            "an_hour_of_cpu": of_cpu,
            "median_seconds": {way: statistics.median(found) for way, found in seconds.items()},
        },
    )


if __name__ == "__main__":
    run(main)
