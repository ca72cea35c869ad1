"""fulmen scale: accuracy against thinking tokens."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
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
    "vote_budgets": "--vote-budgets",
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
fulmen scale --task basics:sort --task basics:story --plot curves.svg
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
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="arithmetic, arithmetic:STEPSxLARGEST such as arithmetic:3x20, or a JSONL file "
            "with a question and an answer on each line, such as GSM8K's. May be given several "
            "times. Default: arithmetic.",
        ),
    ] = None,
    tasks: Annotated[int, typer.Option(help="Number of tasks of each kind.")] = 40,
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
            help="Short runs of each task that vote, at each budget of a vote; 0 turns it off. "
            "Default: none, as many as one run at the largest budget costs.",
        ),
    ] = None,
    vote_budgets: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            parser=checked(_budgets, or_none=True),
            help="Thinking budgets of a vote, among those of --budgets. Default: none, the "
            "smallest above 0.",
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
            metavar="FILE",
            help="File of all runs, for several tasks a folder with a file each. An interrupted "
            "study continues from it.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the curves into this SVG file.")
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
            vote_budgets=None if vote_budgets is None else _budgets(vote_budgets),
            closing=closing,
            is_checked=check or url is not None,
            seed=seed,
        )
    except ValueError as error:
        raise ValueError(in_flags(str(error), _FLAGS)) from None
    names = list(dict.fromkeys(task or ["arithmetic"]))
    files = _files(out, names)
    for file in (*files.values(), plot):
        if file is not None:
            check_replaceable(file)
    environments = {name: load_environment(name, seed=seed) for name in names}
    if out is not None and len(names) > 1:
        out.mkdir(parents=True, exist_ok=True)
    settings = {"max_num_seqs": 16, "max_token_gap_seconds": None, **engine}  # nobody watches
    run: Callable[[Study, Environment, OnProgress], None]
    if url is None:
        model = model or DEFAULT_MODEL
        llm = load_llm(model, dtype, device, settings, ignore_config_field)
        if closing is None and llm.format.thinking_end is None:
            config = replace(config, closing=room.DEFAULT_CLOSING)
        params = replace(llm.defaults, **given)
        about = {"model": model, "weights": llm.origin.model, "dtype": dtype}
        about |= {name: getattr(params, name) for name in _RANDOM}
        run = partial(_run, llm, tasks, params)
    else:
        from fulmen.cli.remote import open_remote

        with open_remote(url, model, url_dialect, url_key, given) as remote:
            model, server = remote.name(), remote.describe()
        about = {"model": model, "weights": server, "dtype": None}
        about |= {name: given.get(name) for name in _RANDOM}
        most = settings["max_num_seqs"]
        run = partial(_run_at_url, (url, model, url_dialect, url_key), tasks, given, most)
    studies = {
        name: room.Study(config, {**about, "task": name}, files[name]) for name in environments
    }
    was_stopped = False
    try:
        for name, study in studies.items():
            with count_progress(f"thinking about {name}") as on_progress:
                run(study, environments[name], on_progress)
    except KeyboardInterrupt:
        done = sum(len(study.tasks) for study in studies.values())
        kept = f", the same command goes on from {out}" if out is not None else ""
        print(f"stopped with {done} of {tasks * len(studies)} tasks done{kept}", file=sys.stderr)
        was_stopped = True
    summaries = [room.summarize(study) for study in studies.values() if study.tasks]
    if summaries and plot is not None:
        write_text(plot, room.plot_svg(*summaries))
    _print_summaries(summaries, is_one=len(studies) == 1, as_json=as_json)
    if was_stopped:
        raise typer.Exit(130)


def _files(out: Path | None, names: Sequence[str]) -> dict[str, Path | None]:
    """Return the file of each task's runs: `out`, or one of its own in the folder `out`."""
    if out is None or len(names) == 1:
        return dict.fromkeys(names, out)
    files = {name: out / f"{re.sub('[^A-Za-z0-9.]+', '-', name)}.json" for name in names}
    for name, file in files.items():
        other = next(one for one, its in files.items() if its == file)
        if other != name:
            raise ValueError(f"the runs of {other} and of {name} would both be {file}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file, several tasks need a folder")
    return dict(files)


def _print_summaries(
    summaries: Sequence[Mapping[str, Any]], *, is_one: bool, as_json: bool
) -> None:
    """Print what is done; as JSON, that of several tasks is a list."""
    from fulmen.evaluate import tables

    if as_json and (summaries or not is_one):
        print_json(summaries[0] if is_one else {"studies": list(summaries)})
    elif not as_json:
        for summary in summaries:
            if not is_one:
                print(f"{summary['about']['task']}\n")
            for table in tables(summary):
                print_table(table)
                print()


def _run(
    llm: "LLM",
    num_tasks: int,
    params: SamplingParams,
    study: "Study",
    environment: "Environment",
    on_progress: "OnProgress",
) -> None:
    study.run(llm, environment, num_tasks=num_tasks, params=params, on_progress=on_progress)


def _run_at_url(
    where: tuple[str, str, str, str | None],
    num_tasks: int,
    given: Mapping[str, Any],
    max_running: int,
    study: "Study",
    environment: "Environment",
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
