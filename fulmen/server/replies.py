"""Shapes of replies, for the published description: what a client can rely on, key by key.

    whole replies of each dialect -> chunks and events of their streams -> small replies -> refusals

A key that is `NotRequired` is left out where there is nothing to tell; no reply has a key that is
not here. `openapi.py` puts these shapes into the description, and a test holds every reply to them.
"""

from typing import Annotated, Any, Literal, NotRequired, TypeAlias

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from fulmen.server.asking import MissReason

_closed = with_config(ConfigDict(extra="forbid"))
_JsonObject: TypeAlias = dict[str, Any]

# ---- what all dialects share --------------------------------------------------------------------


@_closed
class Turn(TypedDict):
    """One assistant message of the history, and what became of it."""

    message: Annotated[int, Field(description="Index in the history; below 0: stored earlier")]
    state: Literal["matched", "restored", "rendered"]
    by: NotRequired[Annotated[str, Field(description="Sign by which the answer was found")]]
    id: NotRequired[Annotated[str, Field(description="Answer that it is")]]


@_closed
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


@_closed
class CacheDiagnostics(TypedDict):
    """Reason why the cache held no more of a prompt."""

    type: Literal["cache_hit", "cache_miss", "unavailable"]
    reason: NotRequired[Literal["tools_changed", "input_changed"]]
    cache_missed_tokens: NotRequired[int]


@_closed
class PromptTokensDetails(TypedDict):
    cached_tokens: int
    cache_write_tokens: int


@_closed
class CompletionTokensDetails(TypedDict):
    reasoning_tokens: int


# ---- OpenAI's Chat Completions ------------------------------------------------------------------


@_closed
class ChatUsage(TypedDict):
    """Tokens of the answers to one prompt, which counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


@_closed
class TopLogprob(TypedDict):
    """A token and the natural logarithm of its probability; -9999 for none at all."""

    token: str
    logprob: Annotated[float, Field(le=0)]
    bytes: list[Annotated[int, Field(ge=0, le=255)]]


@_closed
class TokenLogprob(TopLogprob):
    """A token of the answer, with the likeliest in its place."""

    top_logprobs: list[TopLogprob]


@_closed
class ChatLogprobs(TypedDict):
    content: list[TokenLogprob]
    refusal: None


@_closed
class ReasoningDetail(TypedDict):
    """A thought, or the next piece of one."""

    index: int
    text: str
    type: NotRequired[Literal["reasoning.text"]]
    format: NotRequired[Literal["unknown"]]


@_closed
class CalledFunction(TypedDict):
    name: str
    arguments: Annotated[str, Field(description="A JSON object, as text")]


@_closed
class ChatToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: CalledFunction


@_closed
class ChatMessage(TypedDict):
    """An answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    reasoning: NotRequired[str]
    reasoning_details: NotRequired[list[ReasoningDetail]]
    tool_calls: NotRequired[list[ChatToolCall]]


@_closed
class ChatChoice(TypedDict):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    token_ids: NotRequired[list[int]]


@_closed
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


@_closed
class FunctionDelta(TypedDict):
    name: NotRequired[str]
    arguments: str


@_closed
class ChatToolCallDelta(TypedDict):
    """A call that begins, or the next piece of its arguments."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


@_closed
class ChatDelta(TypedDict):
    """The next piece of an answer."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    reasoning: NotRequired[str]
    reasoning_details: NotRequired[list[ReasoningDetail]]
    tool_calls: NotRequired[list[ChatToolCallDelta]]


@_closed
class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    token_ids: NotRequired[list[int]]


@_closed
class PromptProgress(TypedDict):
    """Progress of a prompt that is read."""

    total: int
    processed: int


@_closed
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


# ---- OpenAI's Completions -----------------------------------------------------------------------


@_closed
class CompletionsLogprobs(TypedDict):
    """Columns with an entry for each token; null where nothing is known of the first."""

    tokens: Annotated[list[str], Field(description="Text, or bytes:... of no whole character")]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


@_closed
class CompletionsChoice(TypedDict):
    """One continuation; answer j to prompt i has the index i * n + j."""

    index: int
    text: str
    logprobs: CompletionsLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    prompt_token_ids: NotRequired[list[int]]
    token_ids: NotRequired[list[int]]


@_closed
class CompletionsReply(TypedDict):
    """Continuations of all prompts. Chunks of a stream have the same shape."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionsChoice]
    usage: NotRequired[ChatUsage | None]
    fulmen: NotRequired[FulmenReport]


# ---- Anthropic's Messages -----------------------------------------------------------------------


@_closed
class TextBlock(TypedDict):
    type: Literal["text"]
    text: str


@_closed
class ThinkingBlock(TypedDict):
    """A thought; its signature finds it again."""

    type: Literal["thinking"]
    thinking: str
    signature: str


@_closed
class ToolUseBlock(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: _JsonObject


Block = Annotated[TextBlock | ThinkingBlock | ToolUseBlock, Field(discriminator="type")]
StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


@_closed
class CacheCreation(TypedDict):
    ephemeral_5m_input_tokens: int
    ephemeral_1h_input_tokens: int


@_closed
class OutputTokensDetails(TypedDict):
    thinking_tokens: int


@_closed
class MessagesUsage(TypedDict):
    """Tokens; the three counts of the input add up to the prompt."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    cache_creation: NotRequired[CacheCreation]
    output_tokens_details: NotRequired[OutputTokensDetails]


@_closed
class CacheMissReason(TypedDict):
    type: MissReason | Literal["previous_message_not_found"]
    cache_missed_input_tokens: NotRequired[int]


@_closed
class MessageDiagnostics(TypedDict):
    cache_miss_reason: CacheMissReason


@_closed
class MessagesReply(TypedDict):
    """An answer; in message_start it has no blocks yet."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Block]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessagesUsage
    diagnostics: NotRequired[MessageDiagnostics | None]
    fulmen: NotRequired[FulmenReport]


@_closed
class MessageStart(TypedDict):
    type: Literal["message_start"]
    message: MessagesReply


@_closed
class BlockStart(TypedDict):
    type: Literal["content_block_start"]
    index: int
    content_block: Block


@_closed
class TextDelta(TypedDict):
    type: Literal["text_delta"]
    text: str


@_closed
class ThoughtDelta(TypedDict):
    type: Literal["thinking_delta"]
    thinking: str


@_closed
class SignatureDelta(TypedDict):
    type: Literal["signature_delta"]
    signature: str


@_closed
class InputDelta(TypedDict):
    type: Literal["input_json_delta"]
    partial_json: str


@_closed
class BlockDelta(TypedDict):
    type: Literal["content_block_delta"]
    index: int
    delta: Annotated[
        TextDelta | ThoughtDelta | SignatureDelta | InputDelta, Field(discriminator="type")
    ]


@_closed
class BlockStop(TypedDict):
    type: Literal["content_block_stop"]
    index: int


@_closed
class StopFields(TypedDict):
    stop_reason: StopReason
    stop_sequence: str | None


@_closed
class MessageDelta(TypedDict):
    type: Literal["message_delta"]
    delta: StopFields
    usage: MessagesUsage
    fulmen: FulmenReport


@_closed
class MessageStop(TypedDict):
    type: Literal["message_stop"]


@_closed
class ReadTokens(TypedDict):
    prompt_tokens: int
    read_tokens: int


@_closed
class Ping(TypedDict):
    type: Literal["ping"]
    fulmen: ReadTokens


class InputTokens(TypedDict):
    """Tokens of a prompt."""

    input_tokens: int


# ---- OpenAI's Responses -------------------------------------------------------------------------


@_closed
class TextPart(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)]
    logprobs: list[TokenLogprob]


@_closed
class ThoughtPart(TypedDict):
    type: Literal["reasoning_text", "summary_text"]
    text: str


ItemStatus = Literal["in_progress", "completed", "incomplete"]


@_closed
class MessageItem(TypedDict):
    id: str
    type: Literal["message"]
    status: ItemStatus
    role: Literal["assistant"]
    content: list[TextPart]


@_closed
class ReasoningItem(TypedDict):
    """A thought; `encrypted_content` finds it again."""

    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[ThoughtPart]
    content: NotRequired[list[ThoughtPart]]
    encrypted_content: NotRequired[str]


@_closed
class FunctionCallItem(TypedDict):
    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    namespace: NotRequired[str]
    arguments: Annotated[str, Field(description="A JSON object, as text")]


@_closed
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


@_closed
class ResponseError(TypedDict):
    code: Literal["rate_limit_exceeded", "server_error"]
    message: str


@_closed
class IncompleteDetails(TypedDict):
    reason: Literal["max_output_tokens"]


@_closed
class ResponseReasoning(TypedDict):
    effort: str | None
    summary: Any


@_closed
class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: PromptTokensDetails
    output_tokens: int
    output_tokens_details: CompletionTokensDetails
    total_tokens: int


@_closed
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
    text: _JsonObject
    tool_choice: str | _JsonObject
    tools: list[_JsonObject]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    fulmen: NotRequired[FulmenReport]
    prompt_cache_diagnostics: NotRequired[CacheDiagnostics]


@_closed
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


@_closed
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


@_closed
class PartEvent(_OfItem):
    """A part of an item that begins or has ended."""

    type: Literal[
        "response.content_part.added",
        "response.content_part.done",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_part.done",
    ]
    part: Annotated[TextPart | ThoughtPart, Field(discriminator="type")]


@_closed
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


@_closed
class TextDoneEvent(_OfItem):
    """A text that has ended."""

    type: Literal[
        "response.output_text.done",
        "response.reasoning_text.done",
        "response.reasoning_summary_text.done",
    ]
    text: str
    logprobs: NotRequired[list[TokenLogprob]]


@_closed
class CallDoneEvent(_OfItem):
    """Arguments of a call that have ended."""

    type: Literal["response.function_call_arguments.done", "response.custom_tool_call_input.done"]
    name: NotRequired[str]
    arguments: NotRequired[str]
    input: NotRequired[str]


@_closed
class DeletedResponse(TypedDict):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


@_closed
class InputItems(TypedDict):
    """A page of the items that a response answered, as they were sent, with ids."""

    object: Literal["list"]
    data: list[_JsonObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


@_closed
class ResponseInputTokens(TypedDict):
    """Tokens of a prompt."""

    object: Literal["response.input_tokens"]
    input_tokens: int


# ---- sessions -----------------------------------------------------------------------------------


@_closed
class SessionObject(TypedDict):
    """A conversation that is kept under a name."""

    id: Annotated[str, Field(description="Its name")]
    object: Literal["session"]
    status: Literal["idle", "answering", "saving", "unreadable"]
    model: Annotated[str | None, Field(description="Model that it was begun with")]
    created_at: Annotated[int | None, Field(description="Seconds since 1970")]
    last_used_at: Annotated[int | None, Field(description="Seconds since 1970")]
    metadata: Annotated[dict[str, str], Field(description="Notes of whoever talks")]


@_closed
class SessionTurn(TypedDict):
    """Messages and the answer to them."""

    id: Annotated[str, Field(description="The same in all sessions that share the turn")]
    parent: Annotated[str | None, Field(description="Turn before it")]
    number: Annotated[int, Field(description="1 for the first; fork and rewind take it")]
    num_messages: Annotated[int, Field(description="Messages of it, with the answer")]
    tokens: Annotated[int, Field(description="Tokens up to its end")]
    answer_tokens: Annotated[int, Field(description="0 for one that was said elsewhere")]
    thinking_tokens: Annotated[int, Field(description="Those of them that are thought")]
    stored_tokens: Annotated[int, Field(description="Tokens whose states are on disk")]
    finish_reason: str


@_closed
class SessionDetail(SessionObject):
    """A conversation with all that was said."""

    response_id: Annotated[str | None, Field(description="Answer that runs in it now")]
    asked: Annotated[list[_JsonObject], Field(description="Messages that this answers")]
    tokens: int
    state_bytes: Annotated[int, Field(description="Disk for its states, shared ones included")]
    turns: list[SessionTurn]
    messages: list[_JsonObject]


@_closed
class SessionList(TypedDict):
    """A page of sessions, the last used first."""

    object: Literal["list"]
    data: list[SessionObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


@_closed
class LikelyToken(TypedDict):
    id: int
    text: str
    logprob: Annotated[float, Field(description="Natural logarithm")]


@_closed
class SessionToken(LikelyToken):
    """A token of an answer."""

    kind: Annotated[
        Literal["thinking", "content", "tool_calls", "other"],
        Field(description="Text that it is part of; other for tags and the end of the turn"),
    ]
    is_forced: Annotated[bool, Field(description="It was given, not drawn")]
    top: Annotated[list[LikelyToken], Field(description="Likeliest tokens here, best first")]


@_closed
class SessionTokens(TypedDict):
    object: Literal["list"]
    data: list[SessionToken]


@_closed
class DeletedSession(TypedDict):
    id: str
    object: Literal["session"]
    deleted: Literal[True]


# ---- models, and the server itself --------------------------------------------------------------


@_closed
class Supported(TypedDict):
    supported: bool


@_closed
class EffortSupport(Supported):
    low: Supported
    medium: Supported
    high: Supported
    xhigh: Supported
    max: Supported


@_closed
class ServerToolsSupport(Supported):
    code_execution: Supported
    web_search: Supported


@_closed
class ThinkingTypes(TypedDict):
    adaptive: Supported
    between_tools: Supported
    disabled: Supported
    enabled: Supported


@_closed
class ThinkingSupport(Supported):
    types: ThinkingTypes


@_closed
class Capabilities(TypedDict):
    batch: Supported
    citations: Supported
    code_execution: Supported
    context_management: Supported
    effort: EffortSupport
    image_input: Supported
    pdf_input: Supported
    server_tools: ServerToolsSupport
    structured_outputs: Supported
    thinking: ThinkingSupport


@_closed
class ModelCard(TypedDict):
    """A short card of a model for people, in Markdown."""

    en: str
    de: str


@_closed
class ModelObject(TypedDict):
    """A model, in a form that both SDKs read."""

    id: str
    object: Literal["model"]
    type: Literal["model"]
    created: int
    created_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    owned_by: str
    display_name: str
    card: Annotated[ModelCard | None, Field(description="Null where the weights are not here")]
    lifecycle: Literal["active"]
    max_model_len: Annotated[int | None, Field(description="Tokens that the context has")]
    max_input_tokens: int | None
    max_tokens: int | None
    capabilities: Capabilities


@_closed
class ModelList(TypedDict):
    object: Literal["list"]
    data: Annotated[list[ModelObject], Field(min_length=1)]
    has_more: Literal[False]
    first_id: str
    last_id: str


@_closed
class EndedThinking(TypedDict):
    """Sign that a thought ran, and ends now."""

    id: str
    ended: bool


@_closed
class Health(TypedDict):
    status: Literal["ok"]


@_closed
class Readiness(TypedDict):
    status: Literal["ready"]


@_closed
class Version(TypedDict):
    version: str


# ---- refusals -----------------------------------------------------------------------------------


@_closed
class OpenAIErrorFields(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


@_closed
class OpenAIError(TypedDict):
    """A refusal, in OpenAI's shape."""

    error: OpenAIErrorFields


@_closed
class ThreadDetails(TypedDict):
    error_code: Literal["thread_unsupported_request"]
    unsupported: list[str]


@_closed
class AnthropicErrorFields(TypedDict):
    type: str
    message: str
    details: NotRequired[ThreadDetails]


@_closed
class AnthropicError(TypedDict):
    """A refusal, in Anthropic's shape."""

    type: Literal["error"]
    error: AnthropicErrorFields
    request_id: str


MessagesEvent = Annotated[
    MessageStart
    | BlockStart
    | BlockDelta
    | BlockStop
    | MessageDelta
    | MessageStop
    | Ping
    | AnthropicError,
    Field(discriminator="type"),
]
"""Data of an event of a Messages stream"""
ChatEvent = ChatChunk | OpenAIError
"""Data of an event of a Chat Completions stream"""
CompletionsEvent = CompletionsReply | OpenAIError
"""Data of an event of a Completions stream"""
ResponsesEvent = Annotated[
    ResponseEvent | ItemEvent | PartEvent | DeltaEvent | TextDoneEvent | CallDoneEvent,
    Field(discriminator="type"),
]
"""Data of an event of a Responses stream"""
