"""fulmen chat and fulmen generate: text in, what the model says out."""

import json
import math
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fulmen.cli.options import (
    DEFAULT_MODEL,
    ENGINE_CONFIG,
    DeviceOption,
    DtypeOption,
    IgnoreOption,
    ModelOption,
    StoreOption,
    load_llm,
    open_store,
    read_stdin,
    with_flags_of,
)
from fulmen.sampling import SamplingParams

if TYPE_CHECKING:
    from fulmen.chat import Completion


_ENGINE_FLAGS: Final = ("max_model_len", "kv_cache_bytes", "kv_cache_dtype", "num_draft_tokens")
"""Engine settings that matter to one answer at a time"""


@with_flags_of(ENGINE_CONFIG, into="engine", only=_ENGINE_FLAGS, shows_defaults=True)
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
    hide_thinking: Annotated[
        bool, typer.Option("--hide-thinking", help="Do not print thoughts.")
    ] = False,
    keep_thoughts: Annotated[
        bool,
        typer.Option(
            "--keep-thoughts",
            help="Show the model its earlier thoughts too: nothing is read twice.",
        ),
    ] = False,
    ignore_config_field: IgnoreOption = None,
    *,
    given: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    """Talk to a model: interactively, or one answer to MESSAGE (or to what is piped in)."""
    from fulmen.cli.conversation import Conversation, converse
    from fulmen.cli.progress import stderr
    from fulmen.sessions import Session

    if message is None and not sys.stdin.isatty():
        message = read_stdin()
    sessions = open_store(store, session_bytes)
    state = sessions.state(session) if session is not None and sessions.has(session) else None
    is_unfinished = state is not None and state.num_kept is not None
    if message is not None and not message.strip():
        if not is_unfinished:
            raise ValueError("the message is empty, there is nothing to answer")
    elif message is not None and is_unfinished:
        raise ValueError(
            f"session {session!r} was rewound into an answer, an empty message finishes it first"
        )
    if "logprobs" in given:
        raise ValueError("a chat does not print log-probabilities, fulmen generate --json does")
    _refuse_tools(given)
    name = model or (state.model if state is not None else DEFAULT_MODEL)
    llm = load_llm(name, dtype, device, engine, ignore_config_field)
    params = replace(llm.defaults, **given)
    if params.thinking_budget is not None and llm.format.thinking_forced_end is None:
        stderr.print("this model does not think, --thinking-budget has no effect")
    with sessions.used_by_one(session) if session is not None else nullcontext():
        opened = None
        if session is not None:
            opened = Session(
                llm, sessions, session, model=_lasting(name), keep_thoughts=keep_thoughts
            )
        conversation = Conversation(
            llm,
            params,
            system=system,
            show_thinking=not hide_thinking,
            keep_thoughts=keep_thoughts,
            session=opened,
        )
        if message is None:
            converse(conversation)
            return
        completion = conversation.ask(message) if message.strip() else conversation.finish_answer()
        if completion.finish_reason == "abort":
            raise typer.Exit(130)


def _lasting(name: str) -> str:
    """Return a model's name as any working folder understands it."""
    return str(Path(name).resolve()) if Path(name).exists() else name


@with_flags_of(ENGINE_CONFIG, into="engine", only=_ENGINE_FLAGS, shows_defaults=True)
@with_flags_of(SamplingParams)
def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The text; read from stdin if absent.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    dtype: DtypeOption = None,
    device: DeviceOption = "cpu",
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print ids, log-probabilities and text as one JSON object."),
    ] = False,
    ignore_config_field: IgnoreOption = None,
    *,
    given: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    """Continue a text as it stands, without a chat format."""
    from fulmen.chat import ContentDelta
    from fulmen.cli.conversation import Interrupt

    prompt = read_stdin() if prompt is None else prompt
    if not prompt:
        raise ValueError("the prompt is empty, at least one token is needed")
    if "thinking_budget" in given:
        raise ValueError("a plain text has no thought, --thinking-budget is for fulmen chat")
    if "logprobs" in given and not as_json:
        raise ValueError("--logprobs needs --json")
    _refuse_tools(given)
    llm = load_llm(model, dtype, device, engine, ignore_config_field)
    with (
        Interrupt() as interrupt,
        llm.stream_text(prompt, params=replace(llm.defaults, **given)) as stream,
    ):
        for events in stream.updates():
            if not as_json:
                text = "".join(event.text for event in events if isinstance(event, ContentDelta))
                print(text, end="", flush=True)
            if interrupt.is_set:
                break
        completion = stream.finish()
    if as_json:
        print(_as_json(completion))
    else:
        print()
    if interrupt.is_set:
        raise typer.Exit(130)


def _refuse_tools(given: dict[str, Any]) -> None:
    if "strict_tools" in given:
        raise ValueError("the model is given no tools here, so none can be strict")


def _as_json(completion: "Completion") -> str:
    tokens = [
        {
            "id": token.token_id,
            "logprob": _finite(token.logprob),
            "top_logprobs": {id: _finite(logprob) for id, logprob in token.top_logprobs},
        }
        for token in completion.tokens
    ]
    result = {
        "text": completion.reply.content,
        "finish_reason": completion.finish_reason,
        "prompt_ids": list(completion.prompt_ids),
        "tokens": tokens,
    }
    return json.dumps(result, ensure_ascii=False, allow_nan=False)


def _finite(value: float) -> float | None:
    """Return the value as JSON can hold it; a token without any probability has none."""
    return value if math.isfinite(value) else None
