"""A small model and its rounded copy: on which share of held-out tasks do both say the same?

    fulmen quantize mini-m1 mini-m1-int8
    python benchmarks/mini_rounding.py mini-m1 mini-m1-int8 --out answers.json
    python benchmarks/mini_rounding.py mini-m1 mini-m1-int8 --out here.json --against answers.json
    python benchmarks/mini_rounding.py mini-m2 mini-m2-int8 --environment calls --out answers.json

Every kind of the environment is played at temperature 0 from its part `test`, which no training has
seen: by the original, by the rounded model, and by the rounded model under each instruction set of
`--sets`, in a process of its own. Counted is how often two of them write the same text to the last
character, thoughts and calls too, and how often they give the same final answer, each with a 95 %
interval over tasks. Beside it stands how many tasks each solves.

All texts go to a file. With that file of another machine, the same command compares its own with
them. Both must have played the same tasks, else the script stops before it counts anything. An
error, such as a conversation that outgrows the context, is an answer too, and solves nothing.
"""

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import typer
from measure import commit, console, print_json, print_wide, run
from rich.table import Table

from fulmen.agent import Trajectory, TranscriptMemory
from fulmen.bench import device_name
from fulmen.catalog import resolve
from fulmen.chat import Transcript
from fulmen.engine import EngineConfig
from fulmen.envs import load_environment
from fulmen.envs.basics import KINDS as BASICS
from fulmen.envs.calls import KINDS as CALLS
from fulmen.evaluate import EvalConfig, Results, open_results, play_all
from fulmen.evaluate.statistics import estimate
from fulmen.files import read_json, write_text
from fulmen.kernels import native
from fulmen.llm import LLM, LocalModel
from fulmen.sampling import SamplingParams

KINDS: Final = {"basics": tuple(BASICS), "calls": tuple(CALLS)}
PART: Final = "test"
DEFAULT: Final = "default"
"""Name of the instruction set that the processor decides on"""
TURNS: Final = 12
"""Most answers to a task with tools; a known answer takes far fewer"""

Play = dict[str, Any]
"""Outcome of one task: `prompt`, a digest of it, `text`, `answer` and `score`"""


def play(
    isa: str, model: str, names: Sequence[str], tasks: int, parallel: int, max_tokens: int
) -> dict[str, Any]:
    """Play tasks in this process, whose first use of the kernels it must be; return the instruction
    set in use, and the plays of each environment."""
    if isa != DEFAULT:
        os.environ["FULMEN_ISA"] = isa
    extension = native()
    used = "plain torch" if extension is None else extension.isa()
    llm = LLM.load(model, engine_config=EngineConfig(kv_cache_bytes=2**28, max_num_seqs=parallel))
    with TemporaryDirectory(prefix="fulmen-rounding-") as folder:
        settings = {"model": model, "isa": used}
        with open_results(Path(folder) / "passes", settings, {}) as results:
            asyncio.run(_play_all(llm, names, results, tasks, max_tokens))
            found = {
                name: [_play_of(results, name, index) for index in range(tasks)] for name in names
            }
    return {"isa": used, "plays": found}


async def _play_all(
    llm: LLM, names: Sequence[str], results: Results, tasks: int, max_tokens: int
) -> None:
    config = EvalConfig(
        num_tasks=tasks, num_turns=TURNS, num_parallel=llm.engine.config.max_num_seqs
    )
    async with LocalModel(llm) as model:
        stopped = await play_all(
            *(model, {name: load_environment(name, seed=0) for name in names}, results, config),
            params=SamplingParams(temperature=0, max_tokens=max_tokens),
            new_memory=lambda: TranscriptMemory(Transcript(llm.format, llm.tokenizer)),
            context=model.max_model_len,
        )
    if stopped is not None:
        raise ValueError(stopped)


def _play_of(results: Results, name: str, index: int) -> Play:
    played = results.get(name, index, 0)
    assert played is not None
    trajectory = results.trajectory(played)
    reply = trajectory.reply
    answer = played.answer if played.error is None else f"error: {played.error}"
    if answer is None:  # it cannot be read, or the task has no one spelling of it
        answer = "" if reply is None else reply.content.strip()
    return {
        "prompt": played.prompt,
        "text": _text(trajectory),
        "answer": answer,
        "score": played.score or 0.0,
    }


def _text(trajectory: Trajectory) -> str:
    """Return all that the model wrote, turn by turn; the ids of calls are the loop's."""
    turns = [step.answer.message.to_dict() for step in trajectory.steps]
    for turn in turns:
        for call in turn.get("tool_calls", ()):
            del call["id"]
    return json.dumps(turns, ensure_ascii=False, sort_keys=True)


def in_a_process(isa: str, *arguments: Any) -> dict[str, Any]:
    """Play in a new process, under an instruction set."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(play, isa, *arguments).result()


def compared(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return how often two runs agree, for each environment and for all tasks together."""
    plays = [run["plays"] for run in (first, second)]
    _check_same(*plays)
    pairs = {name: list(zip(*(one[name] for one in plays), strict=True)) for name in plays[0]}
    pairs["all"] = [pair for some in pairs.values() for pair in some]
    return {
        name: {
            **{
                kind: estimate([float(a[kind] == b[kind]) for a, b in some])._asdict()
                for kind in ("text", "answer")
            },
            "solved": [sum(pair[place]["score"] for pair in some) / len(some) for place in (0, 1)],
        }
        for name, some in pairs.items()
    }


def _check_same(first: Mapping[str, list[Play]], second: Mapping[str, list[Play]]) -> None:
    """Raise ValueError if two runs did not play the same tasks."""
    prompts = [
        {name: [one["prompt"] for one in plays] for name, plays in run.items()}
        for run in (first, second)
    ]
    if prompts[0] != prompts[1]:
        counts = [sum(map(len, one.values())) for one in prompts]
        raise ValueError(
            f"the two runs played other tasks ({counts[0]} and {counts[1]} of them), the same "
            "environment and number of tasks are needed"
        )


def print_comparison(title: str, found: Mapping[str, Any]) -> None:
    """Print one comparison, a row for each environment."""
    table = Table(title=title, box=None, title_justify="left")
    for heading in ("", "same text", "95 %", "same answer", "95 %", "solved", "and by the second"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, one in found.items():
        cells = []
        for kind in ("text", "answer"):
            share = one[kind]
            cells += [f"{share['mean']:.3f}", f"{share['low']:.3f} to {share['high']:.3f}"]
        table.add_row(name, *cells, *(f"{solved:.3f}" for solved in one["solved"]))
    print_wide(table)


def digest_of(model: str) -> str:
    """Return a digest of a model's weights and config."""
    folder = resolve(model)
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")])
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def main(
    original: Annotated[str, typer.Argument(help="The model that was rounded.")],
    rounded: Annotated[str, typer.Argument(help="Its copy, as fulmen quantize wrote it.")],
    environment: Annotated[str, typer.Option(help="basics or calls.")] = "basics",
    kinds: Annotated[str | None, typer.Option(help="Comma-separated; all if omitted.")] = None,
    tasks: Annotated[int, typer.Option(help="Tasks of each kind.")] = 100,
    sets: Annotated[
        str, typer.Option(help="Instruction sets of more runs of the rounded model.")
    ] = "avx2",
    parallel: Annotated[int, typer.Option(help="Tasks that are played at once.")] = 32,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 300,
    out: Annotated[Path | None, typer.Option(help="File for all texts.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Such a file of another machine, to compare with.")
    ] = None,
) -> None:
    """Compare a model with its rounded copy. Tables go to stderr, one JSON line to stdout."""
    if environment not in KINDS:
        raise ValueError(f"{environment} has no kinds, it must be {' or '.join(KINDS)}")
    chosen = KINDS[environment] if kinds is None else kinds.split(",")
    names = [f"{environment}:{kind}:{PART}" for kind in chosen]
    digests = {
        name: digest_of(model) for name, model in (("original", original), ("rounded", rounded))
    }
    other: dict[str, Any] | None = None if against is None else read_json(against)
    if other is not None and other["models"] != digests:
        raise ValueError(f"{against} is of other weights, the same models are needed")
    runs = {}
    wanted = [("original", original, DEFAULT), ("rounded", rounded, DEFAULT)]
    wanted += [(f"rounded, {isa}", rounded, isa) for isa in sets.split(",") if isa]
    for name, model, isa in wanted:
        with console.status(f"{name} plays"):
            runs[name] = in_a_process(isa, model, names, tasks, parallel, max_tokens)
        ends = [one["answer"] for plays in runs[name]["plays"].values() for one in plays]
        errors = sum(answer.startswith("error: ") for answer in ends)
        console.print(
            f"{name}: kernels for {runs[name]['isa']}, {errors} of {len(ends)} ended by an error",
            highlight=False,
        )
    record = {"models": digests, "device": device_name(), "commit": commit(), "runs": runs}
    if out is not None:
        write_text(out, json.dumps(record, ensure_ascii=False) + "\n")
    found = {
        f"{first}, then {second}": compared(runs[first], runs[second])
        for first, second in [
            ("original", "rounded"),
            *(("rounded", name) for name in list(runs)[2:]),
        ]
    }
    if other is not None:
        for name in (name for name in runs if name in other["runs"]):
            there = f"{name} on {other['device']} ({other['runs'][name]['isa']})"
            found[f"{name} here, then {there}"] = compared(runs[name], other["runs"][name])
    for title, one in found.items():
        print_comparison(title, one)
    print_json(
        "mini_rounding",
        {
            "models": digests,
            "tasks": tasks,
            "isa": {name: run["isa"] for name, run in runs.items()},
            "compared": found,
        },
    )


if __name__ == "__main__":
    run(main)
