"""The command line: a verb and its object. Data goes to stdout, everything else to stderr.

Sampling flags are made from the fields of SamplingParams, in one place. A user's mistake is one
sentence on stderr and a non-zero exit, never a traceback.
"""

import ast
import dataclasses
import inspect
import json
import logging
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import typer

from fulmen import __version__
from fulmen.files import explain, write_text
from fulmen.sampling import SamplingParams, parse_count

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    from rich.table import Table

    from fulmen.engine import SessionStore
    from fulmen.llm import LLM, TextStream

DEFAULT_MODEL = "smollm2"

app = typer.Typer(
    name="fulmen",
    help="MiniMax-M1 and MiniMax-M2, whole, in Python.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="List, show, fetch and check models.", no_args_is_help=True)
app.add_typer(models_app, name="models")
sessions_app = typer.Typer(
    help="Conversations on disk: list, show, fork, take back, remove, export.",
    no_args_is_help=True,
)
app.add_typer(sessions_app, name="sessions")

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="A folder, a catalog name or a hub id.")
]
DtypeOption = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, float16 or float64; the checkpoint's if absent."),
]


StoreOption = Annotated[
    Path | None, typer.Option(help="Where sessions live; ~/.local/share/fulmen/sessions if absent.")
]
DeviceOption = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, cuda:1.")]
ContextOption = Annotated[
    int | None,
    typer.Option("--max-model-len", help="Prompt and answer together; the model's if absent."),
]
CacheOption = Annotated[str, typer.Option("--kv-cache", help="Memory for keys and values.")]
CacheDtypeOption = Annotated[
    str, typer.Option("--kv-cache-dtype", help="auto, or int8: twice the tokens, less exact.")
]
DraftOption = Annotated[
    int,
    typer.Option("--draft-tokens", help="Guesses checked at once: repetitive text comes faster."),
]


def main() -> None:
    """Entry point of the `fulmen` command."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our stdout has gone, as in `fulmen ... | head`
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        print(f"fulmen: {explain(error)}", file=sys.stderr)
        sys.exit(1)
    except ValueError as error:
        print(f"fulmen: {error}", file=sys.stderr)
        sys.exit(1)


def _field_docs(config: type) -> dict[str, str]:
    """The line under each field of a dataclass."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0]
    assert isinstance(tree, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, doc in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(doc, ast.Expr)
            and isinstance(doc.value, ast.Constant)
        ):
            docs[field.target.id] = " ".join(str(doc.value.value).split())
    return docs


_TOKEN_COUNTS = ("max_tokens", "thinking_budget")
"""Flags that may be written as 40k"""


_RANDOM = ("temperature", "top_p", "top_k", "min_p")
"""Flags that say how a token is drawn, and no more"""


def with_flags_of(
    config: type, only: Sequence[str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds a flag for every field of a dataclass, or for `only` some; the command gets those that
    were given as `given`."""
    docs, hints = _field_docs(config), get_type_hints(config)
    names = [field.name for field in dataclasses.fields(config)] if only is None else only

    def option(name: str) -> inspect.Parameter:
        kinds = [kind for kind in get_args(hints[name]) or (hints[name],) if kind is not type(None)]
        kind: Any = kinds[0]
        if kinds[-1] is Ellipsis:  # a tuple of any length is a flag that may be repeated
            kind = list[kinds[0]]  # type: ignore[valid-type]
        options: dict[str, Any] = {"help": docs.get(name), "show_default": False}
        if name in _TOKEN_COUNTS:
            options |= {"parser": parse_count, "metavar": "TOKENS"}
        annotation = Annotated[kind | None, typer.Option(**options)]
        kind_of_parameter = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(name, kind_of_parameter, default=None, annotation=annotation)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = [p for p in signature.parameters.values() if p.name != "given"]

        @wraps(command)
        def run(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in names}
            given = {name: value for name, value in given.items() if value not in (None, [])}
            given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
            if str(given.get("json_schema")).endswith(".json"):  # a file, no JSON ends so
                given["json_schema"] = _read_text(Path(given["json_schema"]))
            command(**arguments, given=given)

        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*own, *(option(name) for name in names)]
        )
        return run

    return decorate


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.")
    ] = False,
) -> None:
    if version:
        print(f"fulmen {__version__}")
        raise typer.Exit


@app.command()
@with_flags_of(SamplingParams)
def chat(
    message: Annotated[
        str | None, typer.Argument(help="Ask this, print the answer and leave.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A folder, a catalog name or a hub id; smollm2."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    session: Annotated[
        str | None,
        typer.Option(help="Go on with this conversation, or begin it: it is kept on disk."),
    ] = None,
    store: StoreOption = None,
    session_bytes: Annotated[
        str, typer.Option(help="Disk that all sessions' states may take.")
    ] = "20GiB",
    dtype: DtypeOption = None,
    device: DeviceOption = "cpu",
    max_model_len: ContextOption = None,
    kv_cache: CacheOption = "2GiB",
    kv_cache_dtype: CacheDtypeOption = "auto",
    draft_tokens: DraftOption = 0,
    hide_thinking: Annotated[
        bool, typer.Option("--hide-thinking", help="Do not print thoughts.")
    ] = False,
    *,
    given: dict[str, Any],
) -> None:
    """Talk to a model: interactively, or one answer to MESSAGE (or to what is piped in)."""
    from fulmen import terminal
    from fulmen.sessions import Session

    if message is None and not sys.stdin.isatty():
        message = _read_stdin()
    sessions = _store(store, session_bytes)
    head = sessions.head(session) if session is not None and sessions.has(session) else None
    is_unfinished = head is not None and head.cut is not None
    if message is not None and not message.strip():
        if not is_unfinished:
            raise ValueError("the message is empty, there is nothing to answer")
    elif message is not None and is_unfinished:
        raise ValueError(
            f"session {session!r} was taken back into an answer, an empty message finishes it first"
        )
    if "logprobs" in given:
        raise ValueError("a chat does not print log-probabilities, fulmen generate --json does")
    _refuse_tools(given)
    name = model or (head.model if head is not None else DEFAULT_MODEL)
    llm = _load(name, dtype, device, max_model_len, kv_cache, kv_cache_dtype, draft_tokens)
    params = replace(llm.defaults, **given)
    if params.thinking_budget is not None and llm.format.thinking_forced_end is None:
        terminal.stderr.print("this model does not think, --thinking-budget has no effect")
    conversation = terminal.Conversation(
        llm, params, system=system, show_thinking=not hide_thinking
    )
    with sessions.used_by_one(session) if session is not None else nullcontext():
        if session is not None:
            conversation.attach(Session(llm, sessions, session, model=_lasting(name)))
        if message is None:
            terminal.converse(conversation)
            return
        completion = conversation.ask(message) if message.strip() else conversation.go_on()
        if completion.finish_reason == "abort":
            raise typer.Exit(130)


def _lasting(name: str) -> str:
    """A model's name as it is understood from any folder."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _store(root: Path | None, max_bytes: str = "20GiB") -> "SessionStore":
    from fulmen.engine import SessionStore
    from fulmen.models import parse_bytes
    from fulmen.sessions import default_store

    return SessionStore(root or default_store(), max_bytes=parse_bytes(max_bytes))


@app.command()
@with_flags_of(SamplingParams)
def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The text; read from stdin if absent.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    dtype: DtypeOption = None,
    device: DeviceOption = "cpu",
    max_model_len: ContextOption = None,
    kv_cache: CacheOption = "2GiB",
    kv_cache_dtype: CacheDtypeOption = "auto",
    draft_tokens: DraftOption = 0,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print ids, log-probabilities and text as one JSON object."),
    ] = False,
    *,
    given: dict[str, Any],
) -> None:
    """Continue a text as it stands, without a chat format."""
    from fulmen import terminal

    prompt = _read_stdin() if prompt is None else prompt
    if not prompt:
        raise ValueError("the prompt is empty, at least one token is needed")
    if "thinking_budget" in given:
        raise ValueError("a plain text has no thought, --thinking-budget is for fulmen chat")
    if "logprobs" in given and not as_json:
        raise ValueError("--logprobs needs --json")
    _refuse_tools(given)
    llm = _load(model, dtype, device, max_model_len, kv_cache, kv_cache_dtype, draft_tokens)
    pieces = []
    with (
        terminal.Interrupt() as interrupt,
        llm.complete(prompt, replace(llm.defaults, **given)) as stream,
    ):
        for update in stream.updates():
            pieces += update
            if not as_json:
                print("".join(update), end="", flush=True)
            if interrupt.is_set:
                break
    if as_json:
        print(_as_json(stream, "".join(pieces)))
    else:
        print()
    if interrupt.is_set:
        raise typer.Exit(130)


def _refuse_tools(given: dict[str, Any]) -> None:
    if "strict_tools" in given:
        raise ValueError("the model is given no tools here, so none can be strict")


def _as_json(stream: "TextStream", text: str) -> str:
    tokens = [
        {"id": out.token_id, "logprob": out.logprob, "top_logprobs": dict(out.top_logprobs)}
        for out in stream.outputs
    ]
    result = {
        "text": text,
        "finish_reason": stream.finish_reason,
        "prompt_ids": list(stream.prompt_ids),
        "tokens": tokens,
    }
    return json.dumps(result, ensure_ascii=False)


def _load(
    model: str,
    dtype: str | None,
    device: str,
    max_model_len: int | None,
    kv_cache: str,
    kv_cache_dtype: str,
    draft_tokens: int,
) -> "LLM":
    """The model with what the flags say about the engine."""
    from fulmen import terminal
    from fulmen.engine import EngineConfig
    from fulmen.models import parse_bytes

    config = EngineConfig(
        max_model_len=max_model_len,
        kv_cache_bytes=parse_bytes(kv_cache),
        kv_cache_dtype=kv_cache_dtype,  # type: ignore[arg-type]  # which refuses other words
        num_draft_tokens=draft_tokens,
    )
    return terminal.load(model, dtype=_dtype(dtype), device=device, engine_config=config)


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"what was piped in is not UTF-8: {error}") from None


def _dtype(name: str | None, known: Sequence[str] | None = None) -> Any:
    from fulmen.models import DTYPES

    known = known or tuple(DTYPES)
    if name is not None and name not in known:
        raise ValueError(f"--dtype is {name!r}, it must be one of {', '.join(known)}")
    return None if name is None else DTYPES[name]


@models_app.command("list")
def models_list() -> None:
    """The models of the catalog: name, parameters, context, what it is."""
    from rich.table import Table

    from fulmen.models import count_parameters, list_cards, published_config

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "total", "active", "context"):
        table.add_column(column, justify="left" if column == "name" else "right", no_wrap=True)
    table.add_column("title", no_wrap=True)
    for card in list_cards():
        counts = count_parameters(published_config(card.name))
        total, active = (f"{count / 1e9:.2f} B" for count in (counts.total, counts.active))
        table.add_row(card.name, total, active, f"{card.context:,}", card.title)
    _print(table)


@models_app.command("show")
def models_show(
    name: Annotated[str, typer.Argument(help="A catalog name, as minimax-m1-80k, or a folder.")],
    lang: Annotated[Literal["en", "de"], typer.Option(help="The language.")] = "en",
) -> None:
    """A model's card: what it is, how it was trained, its licence, paper and authors; of a folder,
    what is in it."""
    from fulmen.models import get_card, render_card

    if Path(name).exists():
        _show_folder(Path(name))
        return
    print(render_card(get_card(name), lang), end="")


def _show_folder(path: Path) -> None:
    from fulmen.models import Checkpoint, count_parameters

    checkpoint = Checkpoint.open(path)
    counts, config = count_parameters(checkpoint.config), checkpoint.config
    active = counts.active + (counts.head or counts.embedding)
    print(f"{path}: {config.model_type}, {config.num_hidden_layers} layers")
    print(f"parameters  {counts.total:,}, {active:,} of them for a token, with the head")
    print(f"weights     {checkpoint.num_bytes:,} bytes, {checkpoint.describe_weights()}")
    quality = path / "quality.json"
    if not quality.exists():
        return
    try:
        table = _quality_table(json.loads(quality.read_text("utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        print(f"{quality} is not shown, fulmen quantize did not write it", file=sys.stderr)
        return
    _print(table)


@models_app.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(help="A catalog name or a hub id.")],
) -> None:
    """Fetch a model and print the folder it is in."""
    from fulmen import terminal
    from fulmen.models import resolve

    with terminal.download_progress(name) as report:
        folder = resolve(name, on_progress=report)
    print(folder)


@models_app.command("check")
def models_check(
    path: Annotated[Path, typer.Argument(help="A checkpoint folder or a GGUF file.")],
) -> None:
    """Compare a checkpoint's tensors with its config, without loading weights."""
    from fulmen.models import Checkpoint

    checkpoint = Checkpoint.open(path)
    problems = checkpoint.problems()
    for problem in problems:
        print(problem)
    for note in checkpoint.notes():
        print(f"note: {note}")
    if problems:
        raise typer.Exit(1)
    print(f"{path}: all {checkpoint.num_tensors} tensors are there and have the right shape")


@app.command()
def quantize(
    model: Annotated[
        str, typer.Argument(help="What to round: a folder, a GGUF, a catalog name or a hub id.")
    ],
    out: Annotated[
        Path, typer.Argument(help="The new folder; one that was begun is gone on with.")
    ],
    bits: Annotated[
        Literal["8", "4", "fp8"], typer.Option(help="Of attention and expert weights.")
    ] = "8",
    group_size: Annotated[
        int | None,
        typer.Option(help="Weights that share a scale: 32 (if absent), 64 or 128; fp8: 128."),
    ] = None,
    input_bits: Annotated[
        int,
        typer.Option(help="How inputs are rounded when the model runs: 16, or 8, faster; not fp8."),
    ] = 16,
    head_bits: Annotated[
        int | None, typer.Option(help="8 rounds the head too; it stays as it is if absent.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of embedding, norms and head: bfloat16 or float32; as it is if absent."),
    ] = None,
    max_shard: Annotated[
        str | None,
        typer.Option(
            help="The largest file, 2GB if absent; a stopped run repeats at most one. Not with "
            "--calibrate: then each layer is a file."
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="A text such as the model will read; weights are rounded for it (GPTQ)."),
    ] = None,
    calibrate_tokens: Annotated[
        int, typer.Option(help="How much of that text is read; more is better and slower.")
    ] = 16384,
    report: Annotated[
        Path | None, typer.Option(help="The text to compare both models on; ours if absent.")
    ] = None,
    report_tokens: Annotated[
        int, typer.Option(help="How much of the text is read; 0 for no comparison.")
    ] = 2000,
) -> None:
    """Round a model's weights to 8 or 4 bits, and say what that did to it."""
    from fulmen.chat import Tokenizer
    from fulmen.models import QuantizeConfig, parse_bytes, parse_packed, resolve, sample_text
    from fulmen.models import quantize_checkpoint as write

    settings = QuantizeConfig(
        packed=parse_packed(
            bits=bits, group_size=group_size, input_bits=input_bits, head_bits=head_bits
        ),
        dtype=_dtype(dtype, ("bfloat16", "float32")),
        max_shard_bytes=parse_bytes(max_shard or "2GB"),
    )
    if report_tokens < 0 or report_tokens == 1:
        raise ValueError(f"--report-tokens is {report_tokens}, it must be 0 or at least 2")
    if calibrate is not None:
        settings.check_calibration(calibrate_tokens)
        if max_shard is not None:
            raise ValueError("--max-shard has no effect with --calibrate, each layer is a file")
    settings.check_out(out)
    text = sample_text() if report is None else _read_text(report)
    calibration = None if calibrate is None else _read_text(calibrate)
    with _progress("fetching", model) as on_progress:
        source = resolve(model, on_progress=on_progress)
    ids, calibration_ids = None, None
    if calibration is not None:
        calibration_ids = Tokenizer.from_folder(source).encode(calibration)[:calibrate_tokens]
    if report_tokens and (source / "tokenizer.json").exists():
        ids = Tokenizer.from_folder(source).encode(text)[:report_tokens]
        if len(ids) < 2:
            raise ValueError(
                f"{report or 'the text'} has {len(ids)} tokens, a comparison needs at least 2"
            )
    elif report_tokens:
        print("no tokenizer.json, so the models are not compared on a text", file=sys.stderr)
    with _progress("rounding", model) as on_progress:
        errors = write(
            source, out, settings, calibration_ids=calibration_ids, on_progress=on_progress
        )
    quality = _quality(source, out, errors, ids)
    write_text(out / "quality.json", json.dumps(quality, indent=2) + "\n")
    _print(_quality_table(quality))


def _read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error}") from None


def _quality(
    source: Path, out: Path, errors: dict[str, float], input_ids: list[int] | None
) -> dict[str, Any]:
    """What quality.json holds; with input_ids, how the models differ on them."""
    from rich.console import Console

    from fulmen.models import Checkpoint, measure_drift, stream_model

    worst = sorted(errors, key=lambda name: -errors[name])[:10]
    sizes = [Checkpoint.open(folder).num_bytes for folder in (source, out)]
    quality: dict[str, Any] = {
        "bytes": {"original": sizes[0], "rounded": sizes[1]},
        "mean_relative_error": sum(errors.values()) / max(len(errors), 1),
        "worst_tensors": {name: errors[name] for name in worst},
    }
    if input_ids is None:
        return quality
    with Console(stderr=True).status("comparing both models"):
        drift = measure_drift(stream_model(source), stream_model(out), input_ids)
    return quality | {"drift": dataclasses.asdict(drift)}


def _quality_table(quality: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    sizes = quality["bytes"]
    share = sizes["rounded"] / sizes["original"]
    table.add_row("bytes", f"{sizes['rounded']:,} ({share:.0%} of the original)")
    table.add_row("mean relative error of a tensor", f"{quality['mean_relative_error']:.5f}")
    for name, error in quality["worst_tensors"].items():
        table.add_row(f"  {name}", f"{error:.5f}")
    if (drift := quality.get("drift")) is not None:
        table.add_row("compared on", f"{drift['num_tokens']:,} tokens")
        for name, label in (
            ("top1_agreement", "same most likely token"),
            ("mean_kl", "mean KL divergence, nats"),
            ("mean_logit_drift", "mean logit drift"),
            ("max_logit_drift", "largest logit drift"),
            ("original_perplexity", "perplexity of the original"),
            ("perplexity", "perplexity"),
        ):
            table.add_row(label, f"{drift[name]:.4f}")
    return table


@contextmanager
def _progress(verb: str, name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Gives a callback(num_bytes, total_bytes) that draws a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    stderr = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    progress = Progress(
        *columns,
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )
    with progress:
        task = progress.add_task(f"{verb} {name}", total=None, visible=False)

        def report(num_bytes: int, total_bytes: int | None) -> None:
            progress.update(task, completed=num_bytes, total=total_bytes, visible=True)

        yield report


@app.command()
def plan(
    name: Annotated[str, typer.Argument(help="A catalog name, a local config, or figure1.")],
    gpus: Annotated[str | None, typer.Option(help="As 8xH800.")] = None,
    ram: Annotated[str | None, typer.Option(help="Of one machine without GPUs, as 24GiB.")] = None,
    disk: Annotated[
        str | None, typer.Option(help="How fast it reads, as 3GB/s: experts may stay there.")
    ] = None,
    memory: Annotated[str, typer.Option(help="How fast memory reads.")] = "40GB/s",
    context: Annotated[int | None, typer.Option(help="The length to plan for, in tokens.")] = None,
    rl_gpus: Annotated[str, typer.Option(help="For the cost of an RL run.")] = "512xH800",
    out: Annotated[Path | None, typer.Option(help="Where figure1 goes, an SVG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All numbers as JSON.")] = False,
) -> None:
    """What a model needs and what it will reach; or the report's FIGURE1, redrawn."""
    from fulmen.models import figure1_svg, figure1_text, make_plan, render_plan

    if name.lower() == "figure1":
        if out is not None:
            write_text(out, figure1_svg())
        print(figure1_text(), end="")
        return
    if out is not None:
        raise ValueError("--out is where figure1 goes, a plan is printed")
    made = make_plan(
        name, gpus=gpus, ram=ram, disk=disk, memory=memory, context=context, rl_gpus=rl_gpus
    )
    print(json.dumps(made.to_dict()) if as_json else render_plan(made), end="\n" * as_json)


@app.command()
def bench(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Time this model, not the operations one by one."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="All cores if absent.")] = None,
    prompt: Annotated[int | None, typer.Option(help="Tokens read; 512 if absent.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens decoded; 64 if absent.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences decoded together.")] = None,
    depth: Annotated[int | None, typer.Option(help="Tokens before the decoded ones.")] = None,
    dtype: DtypeOption = None,
    only: Annotated[
        str | None, typer.Option(help="Operations that begin so, as linear; not with --model.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often each is measured.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="All numbers as one JSON line.")] = False,
) -> None:
    """How fast this machine is, and what share of that its operations reach, or a model; on the
    CPU."""
    import torch
    from rich.console import Console

    from fulmen import bench as room
    from fulmen.models import resolve

    of_model = {"prompt": prompt, "tokens": tokens, "batch": batch, "depth": depth}
    least = {"threads": 1, "rounds": 1, "batch": 1}
    for name, value in {**of_model, "threads": threads, "rounds": rounds}.items():
        if value is not None and value < least.get(name, 0):
            raise ValueError(f"--{name} is {value}, it must be at least {least.get(name, 0)}")
    count = torch.get_num_threads() if threads is None else threads
    status = Console(stderr=True).status("measuring")
    if model is None:
        for name, flag in {**of_model, "dtype": dtype}.items():
            if flag is not None:
                raise ValueError(f"--{name} is for a model, --model names one")
        ops = [op for op in room.list_ops() if op.name.startswith(only or "")]
        if not ops:
            names = ", ".join(dict.fromkeys(op.name for op in room.list_ops()))
            raise ValueError(f"--only is {only!r}, no operation begins so, there are {names}")
        with status:
            report = room.report_ops(ops, threads=count, rounds=rounds, say=status.update)
    else:
        if only is not None:
            raise ValueError("--only chooses operations, a model is timed whole")
        workloads = []
        if prompt != 0:
            workloads.append(room.Workload(kind="prefill", num_tokens=prompt or 512))
        if tokens != 0:
            past = {"batch": batch or 1, "depth": depth or 0}
            workloads.append(room.Workload(kind="decode", num_tokens=tokens or 64, **past))
        if not workloads:
            raise ValueError("--prompt and --tokens are both 0, there is nothing to time")
        kind = _dtype(dtype)
        with _progress("fetching", model) as on_progress:
            folder = resolve(model, on_progress=on_progress)
        with status:
            report = room.report_model(
                folder, workloads, dtype=kind, threads=count, rounds=rounds, say=status.update
            )
    if as_json:
        print(json.dumps(report.values))
        return
    for table in report.tables:
        _print(table)


@app.command()
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
    from fulmen import scale as room
    from fulmen import terminal
    from fulmen.engine import EngineConfig
    from fulmen.envs import load_environment
    from fulmen.models import parse_bytes

    if tasks < 1:
        raise ValueError(f"--tasks is {tasks}, it must be 1 or more")
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
    llm = terminal.load(model, dtype=_dtype(dtype), device=device, engine_config=engine_config)
    if closing is None and llm.format.thinking_end is None:
        config = replace(config, closing=room.DEFAULT_CLOSING)
    params = replace(llm.defaults, **given)
    about = {"model": model, "weights": llm.origin.model, "dtype": dtype, "task": task}
    about |= {name: getattr(params, name) for name in _RANDOM}
    study = room.Study(config, about, out)
    was_stopped = False
    try:
        with _bar("thinking about tasks") as on_progress:
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
                _print(table)
                print()
    if was_stopped:
        raise typer.Exit(130)


@contextmanager
def _bar(verb: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a callback(done, total) that draws a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    stderr = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, console=stderr, transient=True, disable=not stderr.is_terminal
    ) as progress:
        task = progress.add_task(verb, total=None)

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield report


SessionArgument = Annotated[str, typer.Argument(help="The session's name.")]
TurnOption = Annotated[
    int | None, typer.Option(help="After this many turns; fulmen sessions show counts them.")
]
TokenOption = Annotated[
    int | None, typer.Option(help="After this many tokens of that turn's answer.")
]


@sessions_app.command("list")
def sessions_list(store: StoreOption = None) -> None:
    """All sessions, the last used first."""
    from datetime import datetime

    from rich.table import Table
    from rich.text import Text

    from fulmen.sessions import last_question

    sessions = _store(store)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "turns", "tokens", "MiB", "last used", "model", "last question"):
        right = column in ("turns", "tokens", "MiB")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for name in sessions.names():
        try:
            head = sessions.head(name)
            turns = sessions.turns(head)
            question = last_question(turns)[:60]
        except ValueError as error:
            table.add_row(name, "", "", "", "", "", Text(str(error)))
            continue
        when = datetime.fromtimestamp(head.used or head.created).strftime("%Y-%m-%d %H:%M")
        size = f"{sessions.chunk_bytes(head) / 2**20:.1f}"
        tokens = f"{len(sessions.ids_of(head)):,}"
        model = Path(head.model).name
        count = str(len(turns))
        table.add_row(name, count, tokens, size, when, Text(model), Text(question))
    _print(table)


@sessions_app.command("show")
def sessions_show(name: SessionArgument, store: StoreOption = None) -> None:
    """What was said, turn by turn, with the tokens of each."""
    from fulmen.sessions import Exchange

    sessions = _store(store)
    head = sessions.head(name)
    turns = sessions.turns(head)
    print(f"{name}: {head.model}, {len(turns)} turns, {len(sessions.ids_of(head)):,} tokens")
    for number, turn in enumerate(turns, 1):
        exchange = Exchange.of(turn)
        is_cut = head.cut is not None and number == len(turns)
        kept = f", taken back to token {head.cut}" if is_cut else ""
        print(
            f"\n== turn {number}: {turn.num_shared + len(turn.new_ids):,} tokens, answer "
            f"{turn.num_answer:,}, {exchange.finish_reason}{kept}"
        )
        for message in (*exchange.messages, exchange.reply):
            if message.thinking:
                print(f"-- {message.role}, thinking\n{message.thinking}")
            print(f"-- {message.role}\n{message.content}")
            for call in message.tool_calls:
                print(f"{call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})")


@sessions_app.command("fork")
def sessions_fork(
    name: SessionArgument,
    new: Annotated[str, typer.Argument(help="The new session's name.")],
    turn: TurnOption = None,
    token: TokenOption = None,
    store: StoreOption = None,
) -> None:
    """A second session with the same past, or its beginning; costs a few hundred bytes."""
    _store(store).fork(name, new, num_turns=turn, cut=token)


@sessions_app.command("rewind")
def sessions_rewind(
    name: SessionArgument,
    turn: Annotated[int, typer.Option(help="Keep this many turns.")],
    token: TokenOption = None,
    store: StoreOption = None,
) -> None:
    """Take a session back to the end of a turn, or to a token of its answer."""
    sessions = _store(store)
    sessions.head(name)
    with sessions.used_by_one(name):
        sessions.rewind(name, num_turns=turn, cut=token)


@sessions_app.command("rm")
def sessions_rm(
    names: Annotated[list[str], typer.Argument(help="The sessions' names.")],
    store: StoreOption = None,
) -> None:
    """Forget sessions, and all that no other one shares with them."""
    sessions = _store(store)
    for name in names:
        sessions.head(name)
        with sessions.used_by_one(name):
            sessions.remove(name)


@sessions_app.command("export")
def sessions_export(
    name: SessionArgument,
    tokens: Annotated[
        bool,
        typer.Option("--tokens", help="With ids, log-probabilities and sampling of each answer."),
    ] = False,
    store: StoreOption = None,
) -> None:
    """Print a session as JSON: its messages as /load of fulmen chat and other programs read them,
    or every turn with its tokens."""
    from fulmen.sessions import export

    print(json.dumps(export(_store(store), name, tokens=tokens), indent=2, ensure_ascii=False))


def _print(renderable: object) -> None:
    """A table on stdout: as wide as the terminal, or as it needs to be when it goes to a file."""
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=160, no_color=True)
    console.print(renderable)


if __name__ == "__main__":
    main()
