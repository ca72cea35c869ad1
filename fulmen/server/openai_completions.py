"""OpenAI's Completions: the fields of a request, and the `Ask` they become.

A prompt is text or token ids, one or several, and is continued as it stands: in no chat format, so
there is no thought and no call.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import Field

from fulmen.sampling import SamplingParams, shown
from fulmen.server.asking import Ask
from fulmen.server.errors import Refusal
from fulmen.server.openai_chat import (
    AnswerBody,
    StreamOptions,
    read_ignored,
    read_sampling,
    read_structure,
)

_DEFAULT_MAX_TOKENS: Final = 16
"""OpenAI's: a text that goes on has no end of its own"""
_IDS: Final[Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


class CompletionsBody(AnswerBody):
    """Body of a Completions request."""

    prompt: Any = Field(
        description="Text or token ids to go on from, or a list of several",
        # Read by hand: pydantic would go through a long list of ids for each form that it may have.
        json_schema_extra={
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                _IDS,
                {"type": "array", "items": _IDS, "minItems": 1},
            ]
        },
    )
    echo: bool | None = Field(None, description="Repeat the prompt before its continuation")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="Add the log-probability of each token, and of this many likeliest ones; with "
        "echo, those of the prompt too",
    )
    best_of: int | None = Field(None, description="Only as many as n")
    add_special_tokens: bool | None = Field(
        None,
        description="false: do not add what the tokenizer puts around a text, such as a BOS token",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionsCall:
    """A request, read."""

    ask: Ask
    is_streamed: bool
    has_usage: bool
    """The stream ends with the usage"""
    has_logprobs: bool
    has_token_ids: bool
    shows_ids: bool
    """Tokens of log-probabilities are shown by their ids"""
    has_echo: bool
    has_new_tokens: bool = True
    """False: only the prompt is wanted. A model always draws one token, which is dropped."""


def read_completions(body: CompletionsBody, defaults: SamplingParams) -> CompletionsCall:
    """Read a request; whatever is wrong with it is a Refusal or a ValueError."""
    n = body.n or 1
    if body.best_of not in (None, n):
        raise Refusal(
            400, f"best_of is {shown(body.best_of)}, it must be as many as n: {n}", param="best_of"
        )
    given: dict[str, Any] = {**read_sampling(body, body.max_tokens), **read_structure(body)}
    given["thinking_budget"] = None
    has_new_tokens = body.max_tokens != 0
    if not has_new_tokens and not body.echo:
        raise Refusal(
            400, "max_tokens is 0, that goes only with echo: nothing would come", param="max_tokens"
        )
    if not has_new_tokens:
        given["max_tokens"] = 1
    elif body.max_tokens is None and defaults.max_tokens is None:
        given["max_tokens"] = _DEFAULT_MAX_TOKENS
    if body.logprobs is not None:
        given["logprobs"] = body.logprobs
        if body.echo:
            given["prompt_logprobs"] = body.logprobs
    options = body.stream_options or StreamOptions()
    return CompletionsCall(
        ask=Ask(
            messages=(),
            texts=read_prompts(body.prompt),
            adds_special_tokens=body.add_special_tokens is not False,
            params=replace(defaults, **given),
            num_answers=n,
            model=body.model,
            ignored=tuple(read_ignored(body)),
        ),
        is_streamed=bool(body.stream),
        has_usage=bool(options.include_usage),
        has_logprobs=body.logprobs is not None,
        has_token_ids=bool(body.return_token_ids),
        shows_ids=bool(body.return_tokens_as_token_ids),
        has_echo=bool(body.echo),
        has_new_tokens=has_new_tokens,
    )


def read_prompts(prompt: object) -> tuple[str | tuple[int, ...], ...]:
    """Return the prompts of a request: texts, and token ids."""
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list) or not prompt:
        raise _wrong("prompt", prompt)
    if _is_ids(prompt):
        return (tuple(prompt),)
    for place, each in enumerate(prompt):
        if not isinstance(each, str) and not (isinstance(each, list) and _is_ids(each)):
            raise _wrong(f"prompt[{place}]", each)
    return tuple(each if isinstance(each, str) else tuple(each) for each in prompt)


def _is_ids(values: list[Any]) -> bool:
    return bool(values) and all(type(value) is int for value in values)


def _wrong(name: str, value: object) -> Refusal:
    needed = "a text or a list of token ids" + ", or a list of these" * (name == "prompt")
    return Refusal(400, f"{name} is {shown(value)}, it must be {needed}", param="prompt")
