"""fulmen serve: models behind OpenAI's and Anthropic's APIs.

stdout gets one line, the address, once requests are answered. All else goes to stderr.
"""

import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from fulmen.cli.help import ACCESS, HISTORIES, UPSTREAM, examples
from fulmen.cli.options import (
    DEFAULT_SERVED,
    ENGINE_CONFIG,
    MODEL_HELP,
    MODEL_OPTION,
    SERVER_CONFIG,
    DeviceOption,
    DtypeOption,
    IgnoreOption,
    defaults_of,
    in_seconds,
    load_llm,
    with_flags_of,
)
from fulmen.cli.upstream import refuse_engine_flags, refuse_upstream_flags, upstream_model
from fulmen.files import user_folder
from fulmen.sampling import SamplingParams

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    import socket

    from fulmen.llm import LLM, LocalModel, UpstreamModel
    from fulmen.server import ServerConfig, Traces

    OpenModel = Callable[[], Awaitable[LocalModel | UpstreamModel]]

EXAMPLES: Final = examples(
    """
fulmen serve                                 at http://127.0.0.1:8000
fulmen serve minimax-m2 --port 9000
fulmen serve smollm2 ./my-model              two, chosen by name
fulmen serve --alias gpt-4o                  a name that a client insists on
fulmen serve --max-num-seqs 32               answer 32 requests at once
fulmen serve --host 0.0.0.0 --api-key-file keys.txt
fulmen serve --print-config > serve.toml      a file of all settings
fulmen serve --config serve.toml --port 9000
fulmen serve minimax-m2 --upstream http://gpu:30000   before SGLang or vLLM
""",
    {
        "Clients": """
OpenAI's SDK: OPENAI_BASE_URL=http://127.0.0.1:8000/v1; Anthropic's, and Claude Code:
ANTHROPIC_BASE_URL=http://127.0.0.1:8000. Any key will do where none is set.
"""
    },
)
SAMPLING_FLAGS: Final = (
    *("temperature", "top_p", "top_k", "min_p", "max_tokens"),
    *("repetition_window", "repetition_probability", "thinking_budget", "thinking_soft_end"),
)
"""Sampling that requests may leave to the server"""


@with_flags_of(
    SERVER_CONFIG,
    into="server",
    shows_defaults=True,
    without=("model_name", "transcripts", "keys", "sessions"),
)
@with_flags_of(
    ENGINE_CONFIG,
    into="engine",
    shows_defaults=True,
    notes={
        "kv_cache_bytes": "Each of several models has that much, or an equal part of the default."
    },
)
@with_flags_of(SamplingParams, only=SAMPLING_FLAGS)
def serve(
    ctx: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help=f"{MODEL_HELP} Of several, a request names one; the first answers to other names. "
            f"Default: {' '.join(DEFAULT_SERVED)}.",
            show_default=False,
        ),
    ] = None,
    same_model: Annotated[
        str | None, typer.Option("--model", "-m", hidden=True, **MODEL_OPTION)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TOML file with any of these options as keys; an option given here beats it.",
        ),
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config",
            help="Print a file for --config with all settings that hold, and exit.",
        ),
    ] = False,
    model_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name that the one model is listed under. Default: MODEL's own.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File with one API key a line. Unlike --api-key, it shows no key to other users "
            "of this machine.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    transcripts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File that keeps answers, so that histories are recognized after a restart. "
            "Default: ~/.local/share/fulmen/transcripts.sqlite3.",
            rich_help_panel=HISTORIES,
        ),
    ] = None,
    no_transcripts: Annotated[
        bool,
        typer.Option(
            "--no-transcripts",
            help="Keep answers in memory only.",
            rich_help_panel=HISTORIES,
        ),
    ] = False,
    sessions: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder that keeps the conversations that requests name, with the model's states. "
            "Default: ~/.local/share/fulmen/sessions, where fulmen chat keeps its own.",
            rich_help_panel=HISTORIES,
        ),
    ] = None,
    no_sessions: Annotated[
        bool,
        typer.Option(
            "--no-sessions",
            help="Let no request name a conversation to be kept.",
            rich_help_panel=HISTORIES,
        ),
    ] = False,
    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="SGLang or vLLM server that holds the weights. Of MODEL only the tokenizer, the "
            "config and the chat template are used then.",
            rich_help_panel=UPSTREAM,
        ),
    ] = None,
    upstream_kind: Annotated[
        Literal["sglang", "vllm"] | None,
        typer.Option(
            help="Which of the two it is. Default: it is asked.",
            show_default=False,
            rich_help_panel=UPSTREAM,
        ),
    ] = None,
    upstream_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File that holds the upstream's API key.",
            rich_help_panel=UPSTREAM,
        ),
    ] = None,
    upstream_wait: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Seconds in which the upstream has to answer at the start: it may be loading. "
            "Default: 600.",
            parser=in_seconds,
            show_default=False,
            rich_help_panel=UPSTREAM,
        ),
    ] = None,
    upstream_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Longest silence of the upstream, in which it reads a prompt or has no place for "
            "it. Default: 600.",
            parser=in_seconds,
            show_default=False,
            rich_help_panel=UPSTREAM,
        ),
    ] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = "cpu",
    ignore_config_field: IgnoreOption = None,
    *,
    given: dict[str, Any],
    server: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    """Serve models to clients of OpenAI and Anthropic.

    Prints the address once requests are answered. Sampling options hold where a request says
    nothing. Ctrl+C lets running answers finish; a second one ends them.
    """
    from fulmen.server import ServerConfig, bind, log_to, open_traces, read_key_file, run_async
    from fulmen.sessions import default_store

    names = _names_of(model or (), same_model)
    if upstream is not None and not model and same_model is None:
        raise ValueError(
            "--upstream is given without a model; name the one that it serves: fulmen serve MODEL "
            f"--upstream {upstream}"
        )
    if upstream is not None and len(names) > 1:
        raise ValueError(
            f"--upstream is given with {len(names)} models, {' and '.join(names)}; it goes with one"
        )
    if model_name is not None and len(names) > 1:
        raise ValueError(
            f"--model-name is given with {len(names)} models, it goes with one: --alias "
            f"{model_name}={_served_name(names[0])} adds a name"
        )
    if no_transcripts and transcripts is not None:
        raise ValueError("--transcripts and --no-transcripts are given, one of them has no effect")
    if not no_transcripts:
        server["transcripts"] = transcripts or _default_transcripts()
    if no_sessions and sessions is not None:
        raise ValueError("--sessions and --no-sessions are given, one of them has no effect")
    if upstream is not None and sessions is not None:
        raise ValueError(
            "--sessions is given with --upstream, no session can be kept: the model's states are "
            "in that server"
        )
    if not no_sessions and upstream is None:
        server["sessions"] = sessions or default_store()
    if api_key_file is not None:
        server["api_keys"] = (*server.get("api_keys", ()), *read_key_file(api_key_file))
    server["keys"] = ctx.obj
    served = [_served_name(name) for name in names] if model_name is None else [model_name]
    server["model_name"] = served[0]
    settings = ServerConfig(**server)
    settings.of_models(served)  # refuses names that two have, and aliases of none
    log_to(sys.stderr, settings)
    traces = open_traces(settings)
    with bind(settings) as sock:  # before the model is loaded, which takes longer
        if upstream is None:
            refuse_upstream_flags(
                upstream_kind=upstream_kind,
                upstream_key_file=upstream_key_file,
                upstream_wait=upstream_wait,
                upstream_timeout=upstream_timeout,
            )
            if len(names) > 1:
                engine.setdefault("kv_cache_bytes", _share_of_cache(len(names)))
            llms = [load_llm(each, dtype, device, engine, ignore_config_field) for each in names]
            for llm in llms:
                llm.defaults = replace(llm.defaults, **given)
            open_models: list[OpenModel] = [_local(llm) for llm in llms]
        else:
            refuse_engine_flags(engine, dtype, device)
            open_upstream = upstream_model(
                names[0],
                upstream,
                given,
                timeout_seconds=upstream_timeout,
                answer_seconds=settings.request_timeout_seconds,
                key_file=upstream_key_file,
                kind=upstream_kind,
                wait_seconds=upstream_wait,
                ignore_config_fields=ignore_config_field or (),
                **engine,
            )
            open_models = [open_upstream]
        opening = dict(zip(served, open_models, strict=True))
        is_orderly = run_async(_serve(opening, settings, sock, traces))
    if not is_orderly:  # the engine may be in the middle of a long step, nobody waits for that
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


async def _serve(
    opening: "Mapping[str, OpenModel]",
    config: "ServerConfig",
    sock: "socket.socket",
    traces: "Traces | None",
) -> bool:
    from fulmen.server import create_app
    from fulmen.server import serve as serve_app

    models = {name: await open_model() for name, open_model in opening.items()}
    is_orderly = True
    try:
        app = create_app(models, config, traces=traces)
        is_orderly = await serve_app(app, config, on_ready=_print_address, sock=sock)
    finally:
        if is_orderly:
            for model in models.values():
                await model.close()
    return is_orderly


def _names_of(models: Sequence[str], same_model: str | None) -> list[str]:
    """Return the models to serve.

    models      those that were named as arguments
    same_model  the one that --model names
    """
    if models and same_model is not None and list(models) != [same_model]:
        given = " ".join(models)
        raise ValueError(f"the model is given twice, as {given} and as --model {same_model}")
    return list(models) or ([same_model] if same_model is not None else list(DEFAULT_SERVED))


def _share_of_cache(num_models: int) -> int:
    """Return the memory for the cache of each model where none is named, in bytes."""
    whole: int = defaults_of(ENGINE_CONFIG)["kv_cache_bytes"]
    return whole // num_models


def _local(llm: "LLM") -> "OpenModel":
    """Return what makes a model of weights that are loaded here."""

    async def open_model() -> "LocalModel":
        from fulmen.llm import LocalModel

        return LocalModel(llm)

    return open_model


def _print_address(url: str) -> None:
    print(url, flush=True)


def _default_transcripts() -> Path:
    """Return where answers are kept: $XDG_DATA_HOME/fulmen, else in ~/.local/share."""
    return user_folder("XDG_DATA_HOME", ".local/share") / "fulmen" / "transcripts.sqlite3"


def _served_name(name: str) -> str:
    """Return the name that a model is listed under: a folder's or a file's own, others as typed."""
    path = Path(name)
    if not path.exists():
        return name
    path = path.resolve()
    return path.name if path.is_dir() else path.stem  # a folder may be called MiniMax-M2.5
