"""Replies of OpenAI's Responses."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from fulmen.server.replies.openai_chat import TokenLogprob
from fulmen.server.replies.shared import (
    CacheDiagnostics,
    CompletionTokensDetails,
    FulmenReport,
    JsonObject,
    PromptTokensDetails,
    closed,
)


@closed
class TextPart(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)]
    logprobs: list[TokenLogprob]


@closed
class ThoughtPart(TypedDict):
    type: Literal["reasoning_text", "summary_text"]
    text: str


ItemStatus = Literal["in_progress", "completed", "incomplete"]


@closed
class MessageItem(TypedDict):
    id: str
    type: Literal["message"]
    status: ItemStatus
    role: Literal["assistant"]
    content: list[TextPart]


@closed
class ReasoningItem(TypedDict):
    """A thought; `encrypted_content` finds it again."""

    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[ThoughtPart]
    content: NotRequired[list[ThoughtPart]]
    encrypted_content: NotRequired[str]


@closed
class FunctionCallItem(TypedDict):
    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    namespace: NotRequired[str]
    arguments: Annotated[str, Field(description="A JSON object, as text")]


@closed
class CustomCallItem(TypedDict):
    id: str
    type: Literal["custom_tool_call"]
    status: ItemStatus
    call_id: str
    name: str
    namespace: NotRequired[str]
    input: str


OutputItem = Annotated[
    MessageItem | ReasoningItem | FunctionCallItem | CustomCallItem, Field(discriminator="type")
]


@closed
class ResponseError(TypedDict):
    code: Literal["rate_limit_exceeded", "server_error"]
    message: str


@closed
class IncompleteDetails(TypedDict):
    reason: Literal["max_output_tokens"]


@closed
class ResponseReasoning(TypedDict):
    effort: str | None
    summary: Any


@closed
class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: PromptTokensDetails
    output_tokens: int
    output_tokens_details: CompletionTokensDetails
    total_tokens: int


@closed
class ResponseReply(TypedDict):
    """A response: its request's settings, its state, and what the model said."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: ResponseReasoning
    store: bool
    temperature: float
    text: JsonObject
    tool_choice: str | JsonObject
    tools: list[JsonObject]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    fulmen: NotRequired[FulmenReport]
    prompt_cache_diagnostics: NotRequired[CacheDiagnostics]


@closed
class ResponseEvent(TypedDict):
    """The response as it is now."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    sequence_number: int
    response: ResponseReply


@closed
class ItemEvent(TypedDict):
    """An item that begins or has ended."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    sequence_number: int
    output_index: int
    item: OutputItem


class _OfItem(TypedDict):
    sequence_number: int
    item_id: str
    output_index: int
    content_index: NotRequired[int]
    summary_index: NotRequired[int]


@closed
class PartEvent(_OfItem):
    """A part of an item that begins or has ended."""

    type: Literal[
        "response.content_part.added",
        "response.content_part.done",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_part.done",
    ]
    part: Annotated[TextPart | ThoughtPart, Field(discriminator="type")]


@closed
class DeltaEvent(_OfItem):
    """The next piece of a text."""

    type: Literal[
        "response.output_text.delta",
        "response.reasoning_text.delta",
        "response.reasoning_summary_text.delta",
        "response.function_call_arguments.delta",
        "response.custom_tool_call_input.delta",
    ]
    delta: str
    logprobs: NotRequired[list[TokenLogprob]]


@closed
class TextDoneEvent(_OfItem):
    """A text that has ended."""

    type: Literal[
        "response.output_text.done",
        "response.reasoning_text.done",
        "response.reasoning_summary_text.done",
    ]
    text: str
    logprobs: NotRequired[list[TokenLogprob]]


@closed
class CallDoneEvent(_OfItem):
    """Arguments of a call that have ended."""

    type: Literal["response.function_call_arguments.done", "response.custom_tool_call_input.done"]
    name: NotRequired[str]
    arguments: NotRequired[str]
    input: NotRequired[str]


@closed
class DeletedResponse(TypedDict):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


@closed
class InputItems(TypedDict):
    """A page of the items that a response answered, as they were sent, with ids."""

    object: Literal["list"]
    data: list[JsonObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


@closed
class ResponseInputTokens(TypedDict):
    """Tokens of a prompt."""

    object: Literal["response.input_tokens"]
    input_tokens: int


ResponsesEvent = Annotated[
    ResponseEvent | ItemEvent | PartEvent | DeltaEvent | TextDoneEvent | CallDoneEvent,
    Field(discriminator="type"),
]
"""Data of an event of a Responses stream"""
