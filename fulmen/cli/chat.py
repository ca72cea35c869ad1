"""fulmen chat and fulmen generate: text in, what the model says out."""

import math
import sys
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fulmen.cli import completion
from fulmen.cli.help import SESSION, THINKING, examples
from fulmen.cli.options import (
    DEFAULT_MODEL,
    DEFAULT_TEXT_MODEL,
    ENGINE_CONFIG,
    MODEL_HELP,
    MODEL_OPTION,
    DeviceOption,
    DtypeOption,
    IgnoreOption,
    StoreOption,
    UrlDialectOption,
    UrlKeyOption,
    UrlOption,
    check_url_options,
    checked,
    engine_flags,
    lasting_name,
    load_llm,
    open_store,
    read_piped,
    read_stdin,
    with_flags_of,
)
from fulmen.cli.output import print_json, readable_argument
from fulmen.sampling import SamplingParams
from fulmen.units import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fulmen.chat import Completion, Token
    from fulmen.cli.conversation import Conversation
    from fulmen.cli.remote import RemoteRun
    from fulmen.llm import Stream, TokenText
    from fulmen.sessions import SessionState


_ENGINE_FLAGS: Final = ("max_model_len", "kv_cache_bytes", "kv_cache_dtype", "num_draft_tokens")
"""Engine settings that matter to one answer at a time"""
_OF_TOOLS: Final = ("strict_tools", "tool_choice", "allowed_tools", "max_calls")
"""Sampling fields that matter only where tools are declared"""

_SCHEMA_FILE: Final = """
{"type": "object", "required": ["city", "people"], "properties":
{"city": {"type": "string"}, "people": {"type": "integer"}}}
"""
"""The JSON Schema in the file of the examples"""

CHAT_EXAMPLES: Final = examples(
    """
fulmen chat                                  talk; /help lists commands
fulmen chat "What is 84 + 70?"               one answer
cat notes.txt | fulmen chat "Sum this up."    ask about what is piped in
fulmen chat --session trip                   begin, or go on with yesterday's
fulmen sessions list                         conversations so far
fulmen chat "..." --thinking-budget 2000     at most 2,000 tokens of thought
fulmen chat "..." --hide-thinking            show the answer alone
fulmen chat "..." --json-schema schema.json  answer in JSON of this shape
fulmen chat "Good or bad?" --choice good --choice bad
fulmen chat --model minimax-m2               does it fit: fulmen plan
fulmen chat --url http://127.0.0.1:8000      a model that a server has
""",
    {"A schema.json": _SCHEMA_FILE},
)
GENERATE_EXAMPLES: Final = examples(
    """
fulmen generate "Once upon a time" --max-tokens 100
fulmen generate "2 + 2 =" --temperature 0 --max-tokens 5
fulmen generate "..." --json --logprobs 5 --max-tokens 20
fulmen generate "Oslo as JSON: " --json-schema schema.json
""",
    {
        "A schema.json": _SCHEMA_FILE,
        "JSON": """
text, finish_reason, prompt_ids; tokens: id, logprob, top_logprobs (by id);
prompt_tokens, with --prompt-logprobs. With --url, the text of a token in
place of its id where the server does not tell it.
""",
    },
)


@with_flags_of(ENGINE_CONFIG, into="engine", only=_ENGINE_FLAGS, shows_defaults=True)
@with_flags_of(SamplingParams, without=("logprobs", "prompt_logprobs", *_OF_TOOLS))
def chat(
    message: Annotated[
        str | None,
        typer.Argument(
            metavar="MESSAGE",
            help="Ask this, print the answer and leave. What is piped in comes before it. Without "
            "it, a conversation.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=f"{MODEL_HELP} With --url, its name there. Default: the session's, else "
            f"{DEFAULT_MODEL}.",
            **MODEL_OPTION,
        ),
    ] = None,
    session: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Keep the conversation on disk under this name, and go on with it if it is there.",
            autocompletion=completion.sessions,
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="System prompt: who the model is, what it should do.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Print answers as they come, do not render Markdown.")
    ] = False,
    hide_thinking: Annotated[
        bool,
        typer.Option(
            "--hide-thinking",
            help="Do not print thoughts; the model thinks all the same.",
            rich_help_panel=THINKING,
        ),
    ] = False,
    keep_thoughts: Annotated[
        bool,
        typer.Option(
            "--keep-thoughts",
            help="Show the model the thoughts of its earlier answers too.",
            rich_help_panel=THINKING,
        ),
    ] = False,
    store: StoreOption = None,
    session_bytes: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            parser=checked(parse_bytes),
            help="Disk for saved model states; beyond it the oldest are deleted, and read again "
            "when needed.",
            rich_help_panel=SESSION,
        ),
    ] = "20GiB",
    url: UrlOption = None,
    url_key: UrlKeyOption = None,
    url_dialect: UrlDialectOption = "auto",
    dtype: DtypeOption = None,
    device: DeviceOption = "cpu",
    ignore_config_field: IgnoreOption = None,
    *,
    given: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    """Talk to a model, or ask it one question.

    A model is sampled as its makers recommend, unless an option says otherwise. The answer goes to
    stdout; the thought, and everything else, goes to stderr.
    """
    from fulmen.cli.conversation import Conversation, describe
    from fulmen.cli.progress import stderr
    from fulmen.sessions import Session, quoted

    local = engine_flags(engine, dtype, device, ignore_config_field)
    local |= {"--session": session, "--keep-thoughts": keep_thoughts, "--store": store}
    check_url_options(url, url_key, url_dialect, local)
    if message is not None:
        piped = read_piped().rstrip("\n")
        message = "\n\n".join(part for part in (piped, readable_argument(message)) if part)
    elif not sys.stdin.isatty():
        message = read_stdin()
    system = None if system is None else readable_argument(system)
    shown: dict[str, Any] = {"system": system, "show_thinking": not hide_thinking, "plain": plain}
    if url is not None:
        from fulmen.cli.remote import open_remote

        if message is not None and not message.strip():
            raise ValueError("the message is empty, there is nothing to answer")
        with open_remote(url, model, url_dialect, url_key, given) as remote:
            introduction = remote.describe()
            _talk(Conversation(remote, remote.params, introduction=introduction, **shown), message)
        return
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
    if model is not None and state is not None:
        _check_model(model, state)
    name = model or (state.model if state is not None else DEFAULT_MODEL)
    llm = load_llm(name, dtype, device, engine, ignore_config_field)
    params = replace(llm.defaults, **given)
    if params.thinking_budget is not None and llm.format.thinking_forced_end is None:
        stderr.print("this model does not think, --thinking-budget has no effect")
    with sessions.used_by_one(session) if session is not None else nullcontext():
        opened = None
        if session is not None:
            if state is None:
                stderr.print(f"new conversation {quoted(session)}", style="dim", markup=False)
            opened = Session(
                llm, sessions, session, model=lasting_name(name), keep_thoughts=keep_thoughts
            )
        conversation = Conversation(
            llm,
            params,
            keep_thoughts=keep_thoughts,
            introduction=describe(name, llm),
            greeting=_greeting(name),
            session=opened,
            **shown,
        )
        _talk(conversation, message)


def _talk(conversation: "Conversation", message: str | None) -> None:
    """Answer a message, an empty one by the rest of an unfinished answer; None: converse."""
    from fulmen.cli.converse import converse

    if message is None:
        converse(conversation)
        return
    completion = conversation.ask(message) if message.strip() else conversation.finish_answer()
    if completion.finish_reason == "abort":
        raise typer.Exit(130)
    if completion.finish_reason == "length" and conversation.params.is_constrained:
        raise ValueError(
            "the answer is cut off, it does not follow what it was asked to follow; "
            "give a larger --max-tokens, or a schema with fewer choices"
        )


def _greeting(name: str) -> str:
    """Return the sentences that a model of the catalog has for a person who begins to converse."""
    from fulmen.catalog import find_card, greeting_of, local_path

    card = None if local_path(name) is not None else find_card(name)
    return "" if card is None else greeting_of(card)


def _check_model(name: str, state: "SessionState") -> None:
    """Raise before a model is fetched that cannot be the session's. Of one that is here, its
    weights tell."""
    from fulmen.catalog import find_card, local_path
    from fulmen.sessions import quoted

    if local_path(name) is not None or local_path(state.model) is not None:
        return
    card, own = find_card(name), find_card(state.model)
    if (card or name) != (own or state.model):
        raise ValueError(
            f"session {quoted(state.name)} belongs to another model, it was begun with "
            f"{state.model}; without --model it goes on with that"
        )


@with_flags_of(ENGINE_CONFIG, into="engine", only=_ENGINE_FLAGS, shows_defaults=True)
@with_flags_of(SamplingParams, without=("thinking_budget", "thinking_soft_end", *_OF_TOOLS))
def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="Text to continue. Without it, what is piped in."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=f"{MODEL_HELP} With --url, its name there. Default: {DEFAULT_TEXT_MODEL}.",
            **MODEL_OPTION,
        ),
    ] = None,
    url: UrlOption = None,
    url_key: UrlKeyOption = None,
    url_dialect: UrlDialectOption = "auto",
    dtype: DtypeOption = None,
    device: DeviceOption = "cpu",
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print text, token ids and log-probabilities as JSON."),
    ] = False,
    ignore_config_field: IgnoreOption = None,
    *,
    given: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    """Continue a text as it stands, without a chat format.

    A model is sampled as its makers recommend, unless an option says otherwise.
    """
    prompt = read_stdin() if prompt is None else readable_argument(prompt)
    if not prompt:
        raise ValueError("the prompt is empty, at least one token is needed")
    for name in ("logprobs", "prompt_logprobs"):
        if name in given and not as_json:
            raise ValueError(f"--{name.replace('_', '-')} needs --json")
    check_url_options(
        url, url_key, url_dialect, engine_flags(engine, dtype, device, ignore_config_field)
    )
    with ExitStack() as opened:
        running: Stream | RemoteRun
        if url is None:
            llm = load_llm(model or DEFAULT_TEXT_MODEL, dtype, device, engine, ignore_config_field)
            running = llm.stream_text(prompt, params=replace(llm.defaults, **given))
        else:
            from fulmen.cli.remote import open_remote

            remote = opened.enter_context(open_remote(url, model, url_dialect, url_key, given))
            running = remote.stream_text(prompt, remote.params)
        completion, is_stopped = _print_text(running, as_json=as_json)
    if as_json:
        print_json(_as_values(completion))
    else:
        print()
    if url is not None and completion.finish_reason == "length" and "max_tokens" not in given:
        print("stopped at the server's limit, --max-tokens sets another", file=sys.stderr)
    if is_stopped:
        raise typer.Exit(130)


def _print_text(running: "Stream | RemoteRun", *, as_json: bool) -> "tuple[Completion, bool]":
    """Print an answer as it comes, unless it is wanted as JSON. Returns it, and True if Ctrl-C
    ended it."""
    from fulmen.chat import ContentDelta
    from fulmen.cli.conversation import Interrupt

    with Interrupt() as interrupt, running as stream:
        for events in stream.updates():
            if not as_json:
                text = "".join(event.text for event in events if isinstance(event, ContentDelta))
                print(text, end="", flush=True)
            if interrupt.is_set:
                break
        return stream.finish(), interrupt.is_set


def _as_values(completion: "Completion") -> dict[str, Any]:
    values: dict[str, Any] = {
        "text": completion.reply.content,
        "finish_reason": completion.finish_reason,
        "prompt_ids": list(completion.prompt_ids),
        "tokens": _tokens(completion.tokens),
    }
    if texts := () if completion.tokens else getattr(completion, "token_texts", ()):
        values["tokens"] = _token_texts(texts)
    if completion.params.prompt_logprobs is not None:
        values["prompt_tokens"] = _tokens(completion.prompt_tokens)
    return values


def _tokens(tokens: "Sequence[Token]") -> list[dict[str, Any]]:
    return [
        {
            "id": token.token_id,
            "logprob": _finite(token.logprob),
            "top_logprobs": {id: _finite(logprob) for id, logprob in token.top_logprobs},
        }
        for token in tokens
    ]


def _token_texts(tokens: "Sequence[TokenText]") -> list[dict[str, Any]]:
    """Return tokens whose ids a server does not tell."""
    return [
        {
            "token": token.text,
            "logprob": _finite(token.logprob),
            "top_logprobs": {top.text: _finite(top.logprob) for top in token.top},
        }
        for token in tokens
    ]


def _finite(value: float) -> float | None:
    """Return the value as JSON can hold it; a token without any probability has none."""
    return value if math.isfinite(value) else None
