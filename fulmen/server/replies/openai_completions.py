"""Replies of OpenAI's Completions."""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from fulmen.server.replies.openai_chat import ChatUsage
from fulmen.server.replies.shared import FulmenReport, OpenAIError, closed


@closed
class CompletionsLogprobs(TypedDict):
    """Columns with an entry for each token; null where nothing is known of the first."""

    tokens: Annotated[list[str], Field(description="Text, or bytes:... of no whole character")]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


@closed
class CompletionsChoice(TypedDict):
    """One continuation; answer j to prompt i has the index i * n + j."""

    index: int
    text: str
    logprobs: CompletionsLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    prompt_token_ids: NotRequired[list[int]]
    token_ids: NotRequired[list[int]]


@closed
class CompletionsReply(TypedDict):
    """Continuations of all prompts. Chunks of a stream have the same shape."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionsChoice]
    usage: NotRequired[ChatUsage | None]
    fulmen: NotRequired[FulmenReport]


CompletionsEvent = CompletionsReply | OpenAIError
"""Data of an event of a Completions stream"""
