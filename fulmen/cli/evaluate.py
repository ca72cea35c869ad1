"""fulmen scale: accuracy against thinking tokens."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fulmen.cli.options import (
    DEFAULT_MODEL,
    CacheOption,
    ContextOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    print_table,
    read_dtype,
    with_flags_of,
)
from fulmen.cli.progress import count_progress
from fulmen.files import write_text
from fulmen.sampling import SamplingParams
from fulmen.units import parse_count

_RANDOM = ("temperature", "top_p", "top_k", "min_p")
"""Flags that say how a token is drawn, and no more"""


@with_flags_of(SamplingParams, only=_RANDOM)
def scale(
    model: ModelOption = DEFAULT_MODEL,
    task: Annotated[
        str,
        typer.Option(
            help="arithmetic, arithmetic:STEPSxLARGEST as arithmetic:3x20, or a JSONL file with "
            "question and answer a line, as GSM8K has."
        ),
    ] = "arithmetic",
    tasks: Annotated[int, typer.Option(help="How many.")] = 40,
    budgets: Annotated[
        str, typer.Option(help="Tokens of thought, ascending; 40k is taken, too.")
    ] = "0,64,256,1024",
    thoughts: Annotated[
        int, typer.Option(help="Of each task, each cut and answered at every budget.")
    ] = 2,
    answer_tokens: Annotated[int, typer.Option(help="At most so many after a thought.")] = 64,
    votes: Annotated[
        int | None,
        typer.Option(
            help="Separate runs of each task for the vote; what a run at the largest budget may "
            "take pays for them if absent; 0: none."
        ),
    ] = None,
    vote_budget: Annotated[
        str | None, typer.Option(help="What each vote may think; the smallest above 0 if absent.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Make as many separate runs at every budget, too.")
    ] = False,
    closing: Annotated[
        str | None,
        typer.Option(help="What leads to the answer of a model that has no tag for it."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the tasks and of every draw.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Keeps the runs; those of a study that was stopped are gone on with."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Where the curve goes, an SVG.")] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = "cpu",
    max_model_len: ContextOption = None,
    kv_cache: CacheOption = "2GiB",
    max_num_seqs: Annotated[int, typer.Option(help="Runs that go on together.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="All numbers as one JSON line.")] = False,
    *,
    given: dict[str, Any],
) -> None:
    """How accuracy grows with thought: long thoughts, cut at each budget, and votes beside them."""
    from fulmen import evaluate as room
    from fulmen.cli.progress import load
    from fulmen.engine import EngineConfig
    from fulmen.envs import load_environment
    from fulmen.units import parse_bytes

    if not 1 <= tasks <= 1_000_000:
        bound = "1 or more" if tasks < 1 else "at most 1000000"
        raise ValueError(f"--tasks is {tasks}, it must be {bound}")
    config = room.StudyConfig(
        budgets=tuple(map(parse_count, budgets.split(","))),
        num_thoughts=thoughts,
        answer_tokens=answer_tokens,
        num_votes=votes,
        vote_budget=None if vote_budget is None else parse_count(vote_budget),
        closing=closing,
        is_checked=check,
        seed=seed,
    )
    environment = load_environment(task, seed=seed)
    engine_config = EngineConfig(
        max_model_len=max_model_len,
        kv_cache_bytes=parse_bytes(kv_cache),
        max_num_seqs=max_num_seqs,
    )
    llm = load(model, dtype=read_dtype(dtype), device=device, engine_config=engine_config)
    if closing is None and llm.format.thinking_end is None:
        config = replace(config, closing=room.DEFAULT_CLOSING)
    params = replace(llm.defaults, **given)
    about = {"model": model, "weights": llm.origin.model, "dtype": dtype, "task": task}
    about |= {name: getattr(params, name) for name in _RANDOM}
    study = room.Study(config, about, out)
    was_stopped = False
    try:
        with count_progress("thinking about tasks") as on_progress:
            study.run(llm, environment, num_tasks=tasks, params=params, on_progress=on_progress)
    except KeyboardInterrupt:
        kept = f", the same command goes on from {out}" if out is not None else ""
        print(f"stopped with {len(study.tasks)} of {tasks} tasks done{kept}", file=sys.stderr)
        was_stopped = True
    if study.tasks:
        summary = room.summarize(study)
        if plot is not None:
            write_text(plot, room.plot_svg(summary))
        if as_json:
            print(json.dumps(summary))
        else:
            for table in room.tables(summary):
                print_table(table)
                print()
    if was_stopped:
        raise typer.Exit(130)
