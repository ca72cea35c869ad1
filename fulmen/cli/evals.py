"""fulmen eval: pass rates of a model on tasks that can be checked.

fulmen eval MODEL TASKS...   play tasks, keep every pass, tell the numbers
fulmen eval compare A B      two evaluations over the same tasks, with a paired test
fulmen eval show FOLDER      an evaluation that is done
fulmen eval check TASKS...   the self-check of environments
"""

import asyncio
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fulmen.cli.help import Command, DefaultGroup, examples
from fulmen.cli.options import (
    ENGINE_CONFIG,
    MODEL_OPTION,
    DeviceOption,
    DtypeOption,
    IgnoreOption,
    JsonOption,
    UrlDialectOption,
    UrlKeyOption,
    UrlOption,
    check_url_options,
    engine_flags,
    in_flags,
    in_seconds,
    load_llm,
    with_flags_of,
)
from fulmen.cli.output import print_json, print_table
from fulmen.cli.progress import count_progress
from fulmen.files import printable
from fulmen.sampling import SamplingParams

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    from fulmen.agent import Memory
    from fulmen.envs import Environment
    from fulmen.evaluate import EvalConfig, Results, Sheet

_SAMPLING: Final = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("max_tokens", "thinking_budget", "repetition_window"),
)
"""Sampling fields that have a flag"""
_FLAGS: Final = {
    "num_tasks": "--tasks",
    "num_samples": "--samples",
    "num_parallel": "--parallel",
    "num_turns": "--max-turns",
    "seconds": "--max-seconds",
    "seed": "--seed",
}
"""Flags of the fields of an evaluation's config"""
_FOLDER: Final = "evals"
_CHECKED: Final = 20
_NOT_SAME: Final = ("num_tasks", "num_samples", "num_parallel")
"""Fields that a run may change: more tasks and samples are added to those that are there"""

EXAMPLES: Final = examples("""
fulmen eval smollm2 arithmetic               100 tasks, each once
fulmen eval smollm2 arithmetic logic:sudoku:1 --tasks 50
fulmen eval m2-int4 gsm8k.jsonl --samples 4 --temperature 0.8
fulmen eval --url http://127.0.0.1:8000 repairs:1 --out evals/m2
fulmen eval smollm2 arithmetic --baseline evals/before
fulmen eval compare evals/before evals/after
fulmen eval check arithmetic                 is the environment sound?
fulmen eval --list                           environments
""")
eval_app = typer.Typer(
    cls=DefaultGroup,
    help="Measure how many tasks a model solves, and compare evaluations.",
    epilog=EXAMPLES,
)

FolderArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Folder of an evaluation, see --out.")
]
BaselineOption = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FOLDER",
        help="Show an earlier evaluation beside this one. May be repeated.",
        show_default=False,
    ),
]


@with_flags_of(ENGINE_CONFIG, into="engine", only=("max_model_len", "kv_cache_bytes"))
@with_flags_of(SamplingParams, only=_SAMPLING)
def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL TASKS...",
            help="Model and environments: a name that fulmen models list shows, a hub id, a folder "
            "or a GGUF file; then names that --list shows, and JSONL files of questions. With "
            "--model or --url all words are environments.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="The model, in place of the first word. With --url, its name there.",
            **MODEL_OPTION,
        ),
    ] = None,
    url: UrlOption = None,
    url_key: UrlKeyOption = None,
    url_dialect: UrlDialectOption = "auto",
    list_: Annotated[bool, typer.Option("--list", help="Show the environments.")] = False,
    tasks: Annotated[
        int | None,
        typer.Option(
            help="Tasks of each environment. Default: all of a file, 100 where there is no end.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Times that each task is played.")] = 1,
    parallel: Annotated[int, typer.Option(help="Tasks that are played at once.")] = 16,
    max_turns: Annotated[
        int, typer.Option(help="Most answers of an agent at one task with tools.")
    ] = 50,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            parser=in_seconds,
            help="Longest work at one task, which is then scored as it is. Default: no limit.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the tasks and of every draw.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of all passes and the report. The same command goes on from it. Default: "
            "a new one in evals here.",
            show_default=False,
        ),
    ] = None,
    baseline: BaselineOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = "cpu",
    ignore_config_field: IgnoreOption = None,
    as_json: JsonOption = False,
    *,
    given: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    """Play tasks with a model, and tell how many it solves.

    Every pass is kept with its whole trajectory, so a run that was stopped goes on, and report.html
    in the folder is to be read. The model's own sampling holds unless an option names another.
    """
    if list_:
        _list()
        return
    from fulmen import evaluate as room
    from fulmen.envs import load_environment

    local = engine_flags(engine, dtype, device, ignore_config_field)
    check_url_options(url, url_key, url_dialect, local)
    names = list(dict.fromkeys(words or ()))
    if model is None and url is None and names:
        model = names.pop(0)
    if not names:
        raise ValueError(
            "a model and tasks are needed, such as `fulmen eval smollm2 arithmetic`; "
            "`fulmen eval --list` shows the tasks"
        )
    try:
        config = room.EvalConfig(
            num_tasks=tasks,
            num_samples=samples,
            num_parallel=parallel,
            num_turns=max_turns,
            seconds=max_seconds,
            seed=seed,
        )
    except ValueError as error:
        raise ValueError(in_flags(str(error), _FLAGS)) from None
    environments = {name: load_environment(name, seed=seed) for name in names}
    earlier = [room.summarize_passes(room.read_results(folder)) for folder in baseline or ()]
    play = _Play(config, environments, out, given)
    if url is None:
        assert model is not None
        settings = {"max_token_gap_seconds": None, **engine, "max_num_seqs": parallel}
        llm = load_llm(model, dtype, device, settings, ignore_config_field)
        params = replace(llm.defaults, **given)
        about = {"weights": llm.origin.model, "dtype": dtype, **_sampling(asdict(params))}
        stopped = play.run(model, about, lambda *more: _locally(llm, params, *more))
    else:
        from fulmen.cli.remote import open_remote

        with open_remote(url, model, url_dialect, url_key, given) as remote:
            name, server = remote.name(), remote.describe()
        about = {"weights": server, "dtype": None, **_sampling(given)}
        where = (url, name, url_dialect, url_key)
        stopped = play.run(name, about, lambda *more: _remotely(where, given, *more))
    _report(play.folder, earlier, as_json=as_json)
    if stopped is not None:
        code, sentence = stopped
        print(f"{sentence}; `--out {play.folder}` goes on", file=sys.stderr)
        raise typer.Exit(code)


class _Play:
    """A run of the command: tasks on the one side, a model on the other."""

    def __init__(
        self,
        config: "EvalConfig",
        environments: "Mapping[str, Environment]",
        out: Path | None,
        given: Mapping[str, Any],
    ) -> None:
        self._config = config
        self._environments = environments
        self._given = given
        self._out = out
        self.folder = Path()

    def run(
        self, model: str, about: Mapping[str, Any], work: Callable[..., Any]
    ) -> tuple[int, str] | None:
        """Play what is missing; return None, or the exit code and a sentence why it stopped.

        about  the model and its sampling, as settings of the evaluation
        work   plays on the model, see `_locally`
        """
        from fulmen import __version__
        from fulmen.evaluate import open_results
        from fulmen.server import run_async

        config = asdict(self._config)
        settings = {name: config[name] for name in config if name not in _NOT_SAME} | {**about}
        self.folder = self._out or _new_folder(model)
        told = {"model": model, "version": __version__, "begun": round(time.time())}
        if self._out is None:
            print(f"passes go to {self.folder}", file=sys.stderr)
        with open_results(self.folder, settings, told) as results:
            try:
                with count_progress("playing tasks") as on_progress:
                    arguments = (self._environments, results, self._config, on_progress)
                    stopped = run_async(work(*arguments))
            except KeyboardInterrupt:
                return 130, f"stopped with {len(results.passes)} passes done"
            except ValueError as error:
                raise ValueError(in_flags(str(error), _FLAGS)) from None
            failed = sum(one.failure == "error" for one in results.passes)
        if stopped is not None:
            return 1, f"fulmen: {stopped}"
        if failed:
            said = "1 pass" if failed == 1 else f"{failed} passes"
            print(
                f"{said} ended by an error, which is no score; the same command with "
                f"`--out {self.folder}` plays them again",
                file=sys.stderr,
            )
        return None


def _sampling(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return sampling as settings; None where a server decides."""
    return {name: fields.get(name) for name in _SAMPLING}


async def _locally(
    llm: Any,
    params: SamplingParams,
    environments: "Mapping[str, Environment]",
    results: "Results",
    config: "EvalConfig",
    on_progress: Callable[[int, int], None],
) -> str | None:
    """Play on a model in this process."""
    from fulmen.agent import TranscriptMemory
    from fulmen.chat import Transcript
    from fulmen.evaluate import play_all
    from fulmen.llm import LocalModel

    def new_memory() -> "Memory":
        return TranscriptMemory(Transcript(llm.format, llm.tokenizer))

    async with LocalModel(llm) as model:
        return await play_all(
            *(model, environments, results, config),
            params=params,
            new_memory=new_memory,
            context=model.max_model_len,
            on_progress=on_progress,
        )


async def _remotely(
    where: tuple[str, str, str, str | None],
    given: Mapping[str, Any],
    environments: "Mapping[str, Environment]",
    results: "Results",
    config: "EvalConfig",
    on_progress: Callable[[int, int], None],
) -> str | None:
    """Play on a model at a URL; where: the URL, the model's name there, the dialect and the key."""
    from fulmen.cli.remote import new_remote
    from fulmen.evaluate import play_all

    async with new_remote(*where) as model:
        model.sends = frozenset({*given, "seed"})
        params = SamplingParams(**given)
        return await play_all(
            *(model, environments, results, config), params=params, on_progress=on_progress
        )


def _new_folder(model: str) -> Path:
    """Return a folder that is not there yet, named by the time and the model."""
    name = re.sub(r"[^\w.-]+", "-", Path(model).name).strip("-.")[:60] or "model"
    path = Path(_FOLDER) / f"{time.strftime('%Y-%m-%d-%H%M%S')}-{name}"
    found = path
    for number in range(2, 1000):
        if not found.exists():
            break
        found = path.with_name(f"{path.name}-{number}")
    return found


def _report(folder: Path, earlier: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print the numbers of an evaluation, and write its page."""
    from fulmen import evaluate as room

    results = room.read_results(folder)
    summary = room.summarize_passes(results)
    page = room.write_page(results, earlier)
    if as_json:
        print_json({**summary, "baselines": list(earlier)} if earlier else summary)
        return
    _print_sheets(room.eval_sheets(summary, earlier))
    print(f"{page} has the trajectories", file=sys.stderr)


def _print_sheets(sheets: "Sequence[Sheet]") -> None:
    from fulmen.evaluate import as_table

    for sheet in sheets:
        print_table(as_table(sheet))
        print()


def _list() -> None:
    from fulmen.envs import KINDS, VERIFIERS

    for kind in KINDS.values():
        print(f"{kind.usage}\n    {kind.help}")
    print("FILE.jsonl, FILE.parquet\n    questions and answers, each with a verifier, or number:")
    for name, verifier in VERIFIERS.items():
        print(f"    {name}: {verifier.help}")


def show(
    folder: FolderArgument, baseline: BaselineOption = None, as_json: JsonOption = False
) -> None:
    """Show an evaluation that is kept, and write its page anew."""
    from fulmen.evaluate import read_results, summarize_passes

    read_results(folder)
    earlier = [summarize_passes(read_results(one)) for one in baseline or ()]
    _report(folder, earlier, as_json=as_json)


def compare(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="Folder of an evaluation.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Folder of a later one.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two evaluations over the same tasks.

    Tells the difference of the pass rates with its interval, and how likely tasks change as
    unevenly as this by chance (p: McNemar's exact test where each task was played once, else the
    sign test of the tasks' pass rates).
    """
    from fulmen import evaluate as room

    compared = room.compare(room.read_results(first), room.read_results(second))
    if as_json:
        print_json(compared)
    else:
        _print_sheets(room.comparison_sheets(compared))


def check(
    names: Annotated[
        list[str], typer.Argument(metavar="TASKS...", help="Names that fulmen eval --list shows.")
    ],
    tasks: Annotated[int, typer.Option(help="Tasks of each environment.")] = _CHECKED,
    seed: Annotated[int, typer.Option(help="Seed of the tasks.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Check environments; the exit code is 1 if one is not sound.

    The known answer scores 1; nothing, junk, the question again and flattery score 0; tasks are the
    same a second time and are soon made.
    """
    from fulmen.envs import load_environment
    from fulmen.evaluate import EvalConfig, Finding, self_check

    try:
        config = EvalConfig(num_tasks=tasks)
    except ValueError as error:
        raise ValueError(in_flags(str(error), _FLAGS)) from None
    environments = {name: load_environment(name, seed=seed) for name in names}
    found: dict[str, list[Finding]] = {}
    with count_progress("checking environments") as on_progress:
        for place, (name, environment) in enumerate(environments.items()):
            on_progress(place, len(environments))
            indices = config.indices(environment)
            chance = _chance(environment, len(indices))
            found[name] = asyncio.run(self_check(environment, indices, chance=chance))
    if as_json:
        print_json({name: [asdict(one) for one in some] for name, some in found.items()})
    for name, some in () if as_json else found.items():
        for one in some:
            where = "" if one.index < 0 else f" task {one.index}"
            print(printable(f"{name}{where}: {one.sentence}"))
        if not some:
            print(f"{name}: sound")
    if any(found.values()):
        raise typer.Exit(1)


def _chance(environment: "Environment", num_tasks: int) -> float:
    """Return the share of tasks that one fixed answer may solve: where an answer is right by
    chance, luck must not count as a fault."""
    chance = float(getattr(environment, "chance", 0.0))
    return min(1.0, chance + 3 * sqrt(chance * (1 - chance) / num_tasks))


eval_app.command("run", cls=Command, epilog=EXAMPLES)(run)
eval_app.command(
    "show",
    cls=Command,
    epilog=examples("""
fulmen eval show evals/m2
fulmen eval show evals/after --baseline evals/before
"""),
)(show)
eval_app.command(
    "compare",
    cls=Command,
    epilog=examples("""
fulmen eval compare evals/before evals/after
"""),
)(compare)
eval_app.command(
    "check",
    cls=Command,
    epilog=examples("""
fulmen eval check arithmetic repairs:1 --tasks 5
"""),
)(check)
