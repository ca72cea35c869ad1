"""fulmen batch: a file of requests, answered without a server.

stdout stays empty: the results are in the file, news go to stderr.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fulmen.cli.help import examples
from fulmen.cli.options import (
    DEFAULT_MODEL,
    ENGINE_CONFIG,
    SERVER_CONFIG,
    DeviceOption,
    DtypeOption,
    IgnoreOption,
    TalkingModelOption,
    UrlDialectOption,
    UrlKeyOption,
    UrlOption,
    check_url_options,
    engine_flags,
    load_llm,
    with_flags_of,
)
from fulmen.cli.progress import count_progress
from fulmen.cli.serve import SAMPLING_FLAGS
from fulmen.sampling import SamplingParams

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    from collections.abc import Callable, Coroutine

    from fulmen.llm import LLM
    from fulmen.server import Batch, ServerConfig

    OnProgress = Callable[[int, int], None]

EXAMPLES: Final = examples(
    """
fulmen batch requests.jsonl results.jsonl
fulmen batch in.jsonl out.jsonl --model minimax-m2 --max-num-seqs 32
fulmen batch in.jsonl out.jsonl --url http://127.0.0.1:8000
""",
    {
        "Files": """
A line of IN is a request in OpenAI's batch format:
  {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
   "body": {"messages": [{"role": "user", "content": "Hi"}]}}
or in Anthropic's: {"custom_id": "a", "params": {...}}. A line of OUT is
the result of one, found by its custom_id.
"""
    },
)
_SERVER_FLAGS: Final = (
    *("max_answers", "answer_share", "keep_thoughts", "lenient_history", "drop_images"),
)
_MOST_AT_A_URL: Final = 16
"""Requests that run at once at a URL"""
_WAITING_ROOM: Final = 2**20
"""Answers that may wait: those of all requests that run"""


@with_flags_of(SERVER_CONFIG, into="server", shows_defaults=True, only=_SERVER_FLAGS)
@with_flags_of(ENGINE_CONFIG, into="engine", shows_defaults=True)
@with_flags_of(SamplingParams, only=SAMPLING_FLAGS)
def batch(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="File with one request a line (JSONL).")
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="File that gets one result a line. What it has is not asked again."
        ),
    ],
    model: TalkingModelOption = None,
    url: UrlOption = None,
    url_key: UrlKeyOption = None,
    url_dialect: UrlDialectOption = "auto",
    dtype: DtypeOption = None,
    device: DeviceOption = "cpu",
    ignore_config_field: IgnoreOption = None,
    *,
    given: dict[str, Any],
    server: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    """Answer a file of requests.

    Results come in the order in which they end. A run that was stopped goes on where it was; to ask
    a request again, delete its line of OUT. The exit code is 1 if some requests failed.

    With --url they go to a server as they stand, but for the name of the model, if --model gives
    one, and --max-num-seqs of them at once.
    """
    from fulmen.chat import ModelError
    from fulmen.server import Batch, ServerConfig, run_async

    most = engine.get("max_num_seqs", _MOST_AT_A_URL)
    local = {name: value for name, value in engine.items() if name != "max_num_seqs"}
    local = engine_flags({**local, **server, **given}, dtype, device, ignore_config_field)
    check_url_options(url, url_key, url_dialect, local)

    config = ServerConfig(
        **server,
        max_queued=_WAITING_ROOM,
        max_body_bytes=2**30,
        request_timeout_seconds=1e8,
        transcript_bytes=2**26,
    )
    with Batch(source, out) as requests:  # before the model is loaded, which takes longer
        counts = requests.counts
        if counts.num_left:
            run: Callable[[OnProgress], Coroutine[Any, Any, None]]
            if url is None:
                llm = load_llm(model or DEFAULT_MODEL, dtype, device, engine, ignore_config_field)
                llm.defaults = replace(llm.defaults, **given)
                run = partial(_run, llm, config, requests)
            else:
                run = partial(_run_at_url, url, model, url_dialect, url_key, requests, most)
            try:
                with count_progress("answering requests") as on_progress:
                    run_async(run(on_progress))
            except (KeyboardInterrupt, ModelError) as error:
                print(
                    f"stopped with {counts.num_done} of {counts.num_requests} requests done, the "
                    f"same command goes on from {out}",
                    file=sys.stderr,
                )
                if isinstance(error, ModelError):
                    raise
                raise typer.Exit(130) from None
    print(
        f"{counts.num_answered} of {counts.num_requests} requests are answered in {out}, "
        f"{counts.num_failed} failed",
        file=sys.stderr,
    )
    if counts.num_failed:
        raise typer.Exit(1)


async def _run_at_url(
    url: str,
    model: str | None,
    dialect: str,
    key: str | None,
    requests: "Batch",
    most: int,
    on_progress: "OnProgress",
) -> None:
    from fulmen.cli.remote import Relay

    relay = Relay(url, model, dialect, key)
    try:
        await requests.run(
            relay,
            max_running=most,
            on_progress=lambda counts: on_progress(counts.num_done, counts.num_requests),
        )
    finally:
        await relay.close()


async def _run(
    llm: "LLM", config: "ServerConfig", requests: "Batch", on_progress: "OnProgress"
) -> None:
    from fulmen.llm import LocalModel
    from fulmen.server import create_app

    model = LocalModel(llm)
    try:
        app = create_app(model, config)
        most = llm.engine.config.max_num_seqs
        async with app.router.lifespan_context(app):
            await requests.run(
                app,
                max_running=most + most // 4 + 1,  # some wait, so that no place stays empty
                on_progress=lambda counts: on_progress(counts.num_done, counts.num_requests),
            )
    finally:
        await model.close()
