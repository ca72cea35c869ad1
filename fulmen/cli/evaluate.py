"""fulmen scale: accuracy against thinking tokens."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fulmen.cli.help import THINKING, examples
from fulmen.cli.options import (
    DEFAULT_MODEL,
    ENGINE_CONFIG,
    DeviceOption,
    DtypeOption,
    IgnoreOption,
    JsonOption,
    TalkingModelOption,
    UrlDialectOption,
    UrlKeyOption,
    UrlOption,
    check_url_options,
    checked,
    engine_flags,
    in_flags,
    load_llm,
    or_none,
    parse_whole,
    with_flags_of,
)
from fulmen.cli.output import print_json, print_table
from fulmen.cli.progress import count_progress
from fulmen.files import check_replaceable, write_text
from fulmen.sampling import SamplingParams
from fulmen.units import parse_count

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    from fulmen.envs import Environment
    from fulmen.evaluate import Study
    from fulmen.llm import LLM

    OnProgress = Callable[[int, int], None]

_FLAGS: Final = {
    "budgets": "--budgets",
    "num_thoughts": "--thoughts",
    "answer_tokens": "--answer-tokens",
    "num_votes": "--votes",
    "vote_budget": "--vote-budget",
}
"""Flags of the fields of a study's config"""
_RANDOM = ("temperature", "top_p", "top_k", "min_p")
"""Sampling settings of every draw"""


def _budgets(text: str) -> tuple[int, ...]:
    """Read thinking budgets: 0,64,40k."""
    return tuple(map(parse_count, text.split(",")))


EXAMPLES: Final = examples("""
fulmen scale --task arithmetic --budgets 0,64,256
fulmen scale --model minimax-m2 --task questions.jsonl --budgets 0,1k,16k
fulmen scale --task questions.jsonl --out runs.json --plot curve.svg
fulmen scale --url http://127.0.0.1:8000 --budgets 0,1k
""")


@with_flags_of(
    ENGINE_CONFIG, into="engine", only=("max_model_len", "kv_cache_bytes", "max_num_seqs")
)
@with_flags_of(SamplingParams, only=_RANDOM)
def scale(
    model: TalkingModelOption = None,
    url: UrlOption = None,
    url_key: UrlKeyOption = None,
    url_dialect: UrlDialectOption = "auto",
    task: Annotated[
        str,
        typer.Option(
            help="arithmetic, arithmetic:STEPSxLARGEST such as arithmetic:3x20, or a JSONL file "
            "with a question and an answer on each line, such as GSM8K's."
        ),
    ] = "arithmetic",
    tasks: Annotated[int, typer.Option(help="Number of tasks.")] = 40,
    budgets: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            parser=checked(_budgets),
            help="Thinking budgets in tokens, ascending: 0,64,40k.",
            rich_help_panel=THINKING,
        ),
    ] = "0,64,256,1024",
    thoughts: Annotated[
        int,
        typer.Option(
            help="Thoughts of each task; each is answered at every budget.",
            rich_help_panel=THINKING,
        ),
    ] = 2,
    answer_tokens: Annotated[
        int, typer.Option(metavar="TOKENS", help="Most tokens of an answer.")
    ] = 64,
    votes: Annotated[
        int | None,
        typer.Option(
            metavar="INTEGER",
            parser=or_none(parse_whole),
            help="Short runs of each task for majority voting; 0 turns it off. Default: none, as "
            "many as one run at the largest budget costs.",
        ),
    ] = None,
    vote_budget: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            parser=or_none(parse_count),
            help="Thinking budget of a vote. Default: none, the smallest above 0.",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Add separate runs at every budget, to check the curve.")
    ] = False,
    closing: Annotated[
        str | None,
        typer.Option(help="Text that leads to the answer, for a model without thoughts."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the tasks and of every draw.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File of all runs. An interrupted study continues from it."
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the curve into this SVG file.")
    ] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = "cpu",
    ignore_config_field: IgnoreOption = None,
    as_json: JsonOption = False,
    *,
    given: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    """Measure how accuracy grows with thinking.

    Cuts long thoughts at each budget and lets the model answer there. Short runs vote for
    comparison. With --url, each run is a request with a thought of its own.
    """
    from fulmen import evaluate as room
    from fulmen.envs import load_environment

    local = engine_flags(
        {name: value for name, value in engine.items() if name != "max_num_seqs"},
        *(dtype, device, ignore_config_field),
    )
    local |= {"--check": check, "--closing": closing}
    check_url_options(url, url_key, url_dialect, local)
    if not 1 <= tasks <= 1_000_000:
        bound = "1 or more" if tasks < 1 else "at most 1000000"
        raise ValueError(f"--tasks is {tasks}, it must be {bound}")
    try:
        config = room.StudyConfig(
            budgets=_budgets(budgets),
            num_thoughts=thoughts,
            answer_tokens=answer_tokens,
            num_votes=votes,
            vote_budget=vote_budget,
            closing=closing,
            is_checked=check or url is not None,
            seed=seed,
        )
    except ValueError as error:
        raise ValueError(in_flags(str(error), _FLAGS)) from None
    for file in (out, plot):
        if file is not None:
            check_replaceable(file)
    environment = load_environment(task, seed=seed)
    settings = {"max_num_seqs": 16, "max_token_gap_seconds": None, **engine}  # nobody watches
    run: Callable[[OnProgress], None]
    if url is None:
        model = model or DEFAULT_MODEL
        llm = load_llm(model, dtype, device, settings, ignore_config_field)
        if closing is None and llm.format.thinking_end is None:
            config = replace(config, closing=room.DEFAULT_CLOSING)
        params = replace(llm.defaults, **given)
        about = {"model": model, "weights": llm.origin.model, "dtype": dtype, "task": task}
        about |= {name: getattr(params, name) for name in _RANDOM}
        study = room.Study(config, about, out)
        run = partial(_run, study, llm, environment, tasks, params)
    else:
        from fulmen.cli.remote import open_remote

        with open_remote(url, model, url_dialect, url_key, given) as remote:
            model, server = remote.name(), remote.describe()
        about = {"model": model, "weights": server, "dtype": None, "task": task}
        about |= {name: given.get(name) for name in _RANDOM}
        study = room.Study(config, about, out)
        most = settings["max_num_seqs"]
        run = partial(
            _run_at_url, study, (url, model, url_dialect, url_key), environment, tasks, given, most
        )
    was_stopped = False
    try:
        with count_progress("thinking about tasks") as on_progress:
            run(on_progress)
    except KeyboardInterrupt:
        kept = f", the same command goes on from {out}" if out is not None else ""
        print(f"stopped with {len(study.tasks)} of {tasks} tasks done{kept}", file=sys.stderr)
        was_stopped = True
    if study.tasks:
        summary = room.summarize(study)
        if plot is not None:
            write_text(plot, room.plot_svg(summary))
        if as_json:
            print_json(summary)
        else:
            for table in room.tables(summary):
                print_table(table)
                print()
    if was_stopped:
        raise typer.Exit(130)


def _run(
    study: "Study",
    llm: "LLM",
    environment: "Environment",
    num_tasks: int,
    params: SamplingParams,
    on_progress: "OnProgress",
) -> None:
    study.run(llm, environment, num_tasks=num_tasks, params=params, on_progress=on_progress)


def _run_at_url(
    study: "Study",
    where: tuple[str, str, str, str | None],
    environment: "Environment",
    num_tasks: int,
    given: Mapping[str, Any],
    max_running: int,
    on_progress: "OnProgress",
) -> None:
    """Make the runs at a URL; where: the URL, the model's name there, the dialect and the key."""
    from fulmen.cli.remote import new_remote
    from fulmen.evaluate import REQUEST_FIELDS
    from fulmen.server import run_async

    async def work() -> None:
        async with new_remote(*where) as model:
            model.sends = frozenset({*given, *REQUEST_FIELDS})
            await study.run_by_requests(
                model,
                environment,
                num_tasks=num_tasks,
                params=SamplingParams(**given),
                max_running=max_running,
                on_progress=on_progress,
            )

    run_async(work())
