"""Replies of OpenAI's Chat Completions."""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from fulmen.server.replies.shared import (
    CacheDiagnostics,
    CompletionTokensDetails,
    FulmenReport,
    OpenAIError,
    PromptTokensDetails,
    closed,
)


@closed
class ChatUsage(TypedDict):
    """Tokens of the answers to one prompt, which counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


@closed
class TopLogprob(TypedDict):
    """A token and the natural logarithm of its probability; -9999 for none at all."""

    token: str
    logprob: Annotated[float, Field(le=0)]
    bytes: list[Annotated[int, Field(ge=0, le=255)]]


@closed
class TokenLogprob(TopLogprob):
    """A token of the answer, with the likeliest in its place."""

    top_logprobs: list[TopLogprob]


@closed
class ChatLogprobs(TypedDict):
    content: list[TokenLogprob]
    refusal: None


@closed
class ReasoningDetail(TypedDict):
    """A thought, or the next piece of one."""

    index: int
    text: str
    type: NotRequired[Literal["reasoning.text"]]
    format: NotRequired[Literal["unknown"]]


@closed
class CalledFunction(TypedDict):
    name: str
    arguments: Annotated[str, Field(description="A JSON object, as text")]


@closed
class ChatToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: CalledFunction


@closed
class ChatMessage(TypedDict):
    """An answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    reasoning: NotRequired[str]
    reasoning_details: NotRequired[list[ReasoningDetail]]
    tool_calls: NotRequired[list[ChatToolCall]]


@closed
class ChatChoice(TypedDict):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    token_ids: NotRequired[list[int]]


@closed
class ChatReply(TypedDict):
    """Answers to one conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: Annotated[list[ChatChoice], Field(min_length=1)]
    usage: ChatUsage
    fulmen: FulmenReport
    prompt_cache_diagnostics: NotRequired[CacheDiagnostics]
    prompt_token_ids: NotRequired[list[int]]


@closed
class FunctionDelta(TypedDict):
    name: NotRequired[str]
    arguments: str


@closed
class ChatToolCallDelta(TypedDict):
    """A call that begins, or the next piece of its arguments."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


@closed
class ChatDelta(TypedDict):
    """The next piece of an answer."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    reasoning: NotRequired[str]
    reasoning_details: NotRequired[list[ReasoningDetail]]
    tool_calls: NotRequired[list[ChatToolCallDelta]]


@closed
class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    token_ids: NotRequired[list[int]]


@closed
class PromptProgress(TypedDict):
    """Progress of a prompt that is read."""

    total: int
    processed: int


@closed
class ChatChunk(TypedDict):
    """A chunk of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: Annotated[list[ChatChunkChoice], Field(max_length=1)]
    usage: NotRequired[ChatUsage | None]
    fulmen: NotRequired[FulmenReport]
    prompt_cache_diagnostics: NotRequired[CacheDiagnostics]
    prompt_token_ids: NotRequired[list[int]]
    prompt_progress: NotRequired[PromptProgress]


ChatEvent = ChatChunk | OpenAIError
"""Data of an event of a Chat Completions stream"""
