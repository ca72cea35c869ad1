"""Reinforcement learning on environments: does the reward of their tasks rise?

    python benchmarks/environment_learning.py
    python benchmarks/environment_learning.py --courses desk --tasks 100

Two small models are made from nothing. An M1 learns to answer questions (sums told as stories,
three kinds of puzzles) and an M2 to use the tools of a desk. Each reads demonstrations first, and
stops early, so that it is right now and then; then it practises with CISPO. Before and after, it
plays the same tasks of another seed, and the two are compared task by task. Easy puzzles are few,
so another seed may repeat them; the probes of the run are held out by their texts.

The numbers of every step are in the folder, and a run that was stopped goes on.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from measure import ROOT, console, print_json, print_setup, run
from rich.table import Table

from fulmen.train import latest_state, make_tokenizer, model_folder, read_metrics

HELD_OUT: Final = " (held out)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One model, what it practises, and how its dialogue is written."""

    format: str
    tokenizer: str
    """Folder that the file of the warm start names"""
    warm: str
    """File of the warm start"""
    practice: str
    """File of the run of reinforcement learning"""
    environments: tuple[str, ...]
    max_tokens: int
    """Most tokens of an answer"""


COURSES: Final = {
    "questions": Course(
        format="minimax_m1",
        tokenizer="runs/out/questions-tokenizer",
        warm="runs/questions-warm.toml",
        practice="runs/questions.toml",
        environments=(
            "arithmetic:1x9",
            "logic:object_counting:1",
            "logic:dyck_language:1",
            "logic:boolean_expressions:1",
        ),
        max_tokens=32,
    ),
    "desk": Course(
        format="minimax_m2",
        tokenizer="runs/out/desk-tokenizer",
        warm="runs/desk-warm.toml",
        practice="runs/desk.toml",
        environments=("tools:1:library",),
        max_tokens=64,
    ),
}


def fulmen(*words: str | Path) -> str:
    """Run the command in the repository, its progress on stderr; return its stdout."""
    command = [sys.executable, "-m", "fulmen", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def teach(course: Course) -> dict[str, Any]:
    """Make a course's model and let it practise; return its curves and seconds."""
    tokenizer = ROOT / course.tokenizer
    if not (tokenizer / "tokenizer.json").exists():
        make_tokenizer(
            tokenizer,
            kind="bpe",
            environments=course.environments,
            vocab_size=768,
            format=course.format,
        )
    seconds = {}
    for name, kind, file in (("warm", "lm", course.warm), ("practice", "rl", course.practice)):
        begin = time.perf_counter()
        fulmen("train", kind, file)
        seconds[name] = time.perf_counter() - begin
    folder = ROOT / "runs/out" / Path(course.practice).stem
    probes = read_metrics(folder, "probe")
    steps = read_metrics(folder, "step")
    wrong = sum(int(one["mismatch"].get("different_tokens", 0)) for one in steps)
    assert wrong == 0, f"{wrong} tokens had another ratio than 1 on-policy"
    return {
        "seconds": seconds,
        "steps": [one["step"] for one in probes],
        "right": {
            name: [one[f"{name}{HELD_OUT}"] for one in probes] for name in course.environments
        },
        "tokens": steps[-1]["tokens_so_far"],
    }


def judge(name: str, course: Course, tasks: int) -> dict[str, Any]:
    """Play the same tasks before and after; return how they compare."""
    folder = ROOT / "runs/out" / f"{name}-evals-{tasks}"
    for when, file in (("before", course.warm), ("after", course.practice)):
        state = latest_state(ROOT / "runs/out" / Path(file).stem)
        assert state is not None
        fulmen(
            *("eval", str(model_folder(state)), *course.environments, "--tasks", str(tasks)),
            *("--seed", "1000", "--temperature", "1", "--top-p", "1", "--top-k", "none"),
            *("--max-tokens", str(course.max_tokens), "--parallel", "64"),
            *("--dtype", "bfloat16", "--out", str(folder / when), "--json"),
        )
    found = fulmen("eval", "compare", folder / "before", folder / "after", "--json")
    compared: dict[str, Any] = json.loads(found)["environments"]
    return {name: {**one, "changed": len(one["changed"])} for name, one in compared.items()}


def main(
    courses: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(COURSES),
    tasks: Annotated[int, typer.Option(help="Tasks of each comparison.")] = 400,
) -> None:
    """Teach small models. Tables go to stderr, one JSON line to stdout."""
    names = courses.split(",")
    for name in names:
        if name not in COURSES:
            raise typer.BadParameter(f"{name} is no course, they are {', '.join(COURSES)}")
    print_setup(2, {})
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        found[name] = {**teach(COURSES[name]), "compared": judge(name, COURSES[name], tasks)}
    table = Table(title=f"right of {tasks} tasks of another seed, at temperature 1", box=None)
    for heading in ("", "before", "after", "difference", "95 %", "better", "worse", "p"):
        table.add_column(heading)
    for row in found.values():
        for environment, one in row["compared"].items():
            interval = one["difference"]
            table.add_row(
                environment,
                f"{one['first']:.3f}",
                f"{one['second']:.3f}",
                f"{interval['mean']:+.3f}",
                f"{interval['low']:+.3f} to {interval['high']:+.3f}",
                str(one["better"]),
                str(one["worse"]),
                f"{one['p']:.2g}",
            )
    console.print(table)
    for name, row in found.items():
        curves = Table(
            title=f"{name}: right of the probe's held-out tasks, after so many steps", box=None
        )
        for heading in ("", *map(str, row["steps"])):
            curves.add_column(heading)
        for environment, values in row["right"].items():
            curves.add_row(environment, *(f"{value:.2f}" for value in values))
        console.print(curves)
    print_json("environment_learning", {"tasks": tasks, "courses": found})


if __name__ == "__main__":
    run(main)
