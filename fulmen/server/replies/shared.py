"""Shapes that several dialects share, and refusals."""

from typing import Annotated, Any, Literal, NotRequired, TypeAlias

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from fulmen.server.asking import MissReason

closed = with_config(ConfigDict(extra="forbid"))
"""A shape that has no other keys"""
JsonObject: TypeAlias = dict[str, Any]


@closed
class Turn(TypedDict):
    """One assistant message of the history, and what became of it."""

    message: Annotated[int, Field(description="Index in the history; below 0: stored earlier")]
    state: Literal["matched", "restored", "rendered"]
    by: NotRequired[Annotated[str, Field(description="Sign by which the answer was found")]]
    id: NotRequired[Annotated[str, Field(description="Answer that it is")]]


@closed
class FulmenReport(TypedDict):
    """Account of a request, see docs/serving.md."""

    turns: list[Turn]
    compared_with: NotRequired[str]
    missed_tokens: NotRequired[int]
    miss_reason: NotRequired[MissReason | None]
    problems: NotRequired[list[str]]
    repairs: NotRequired[list[str]]
    ignored: NotRequired[list[str]]
    dropped_images: NotRequired[int]


@closed
class CacheDiagnostics(TypedDict):
    """Reason why the cache held no more of a prompt."""

    type: Literal["cache_hit", "cache_miss", "unavailable"]
    reason: NotRequired[Literal["tools_changed", "input_changed"]]
    cache_missed_tokens: NotRequired[int]


@closed
class PromptTokensDetails(TypedDict):
    cached_tokens: int
    cache_write_tokens: int


@closed
class CompletionTokensDetails(TypedDict):
    reasoning_tokens: int


@closed
class EndedThinking(TypedDict):
    """Sign that a thought ran, and ends now."""

    id: str
    ended: bool


@closed
class OpenAIErrorFields(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


@closed
class OpenAIError(TypedDict):
    """A refusal, in OpenAI's shape."""

    error: OpenAIErrorFields


@closed
class ThreadDetails(TypedDict):
    error_code: Literal["thread_unsupported_request"]
    unsupported: list[str]


@closed
class AnthropicErrorFields(TypedDict):
    type: str
    message: str
    details: NotRequired[ThreadDetails]


@closed
class AnthropicError(TypedDict):
    """A refusal, in Anthropic's shape."""

    type: Literal["error"]
    error: AnthropicErrorFields
    request_id: str
