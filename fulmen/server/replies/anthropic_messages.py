"""Replies of Anthropic's Messages."""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from fulmen.server.asking import MissReason
from fulmen.server.replies.shared import AnthropicError, FulmenReport, JsonObject, closed


@closed
class TextBlock(TypedDict):
    type: Literal["text"]
    text: str


@closed
class ThinkingBlock(TypedDict):
    """A thought; its signature finds it again."""

    type: Literal["thinking"]
    thinking: str
    signature: str


@closed
class ToolUseBlock(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: JsonObject


Block = Annotated[TextBlock | ThinkingBlock | ToolUseBlock, Field(discriminator="type")]
StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


@closed
class CacheCreation(TypedDict):
    ephemeral_5m_input_tokens: int
    ephemeral_1h_input_tokens: int


@closed
class OutputTokensDetails(TypedDict):
    thinking_tokens: int


@closed
class MessagesUsage(TypedDict):
    """Tokens; the three counts of the input add up to the prompt."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    cache_creation: NotRequired[CacheCreation]
    output_tokens_details: NotRequired[OutputTokensDetails]


@closed
class CacheMissReason(TypedDict):
    type: MissReason | Literal["previous_message_not_found"]
    cache_missed_input_tokens: NotRequired[int]


@closed
class MessageDiagnostics(TypedDict):
    cache_miss_reason: CacheMissReason


@closed
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


@closed
class MessageStart(TypedDict):
    type: Literal["message_start"]
    message: MessagesReply


@closed
class BlockStart(TypedDict):
    type: Literal["content_block_start"]
    index: int
    content_block: Block


@closed
class TextDelta(TypedDict):
    type: Literal["text_delta"]
    text: str


@closed
class ThoughtDelta(TypedDict):
    type: Literal["thinking_delta"]
    thinking: str


@closed
class SignatureDelta(TypedDict):
    type: Literal["signature_delta"]
    signature: str


@closed
class InputDelta(TypedDict):
    type: Literal["input_json_delta"]
    partial_json: str


@closed
class BlockDelta(TypedDict):
    type: Literal["content_block_delta"]
    index: int
    delta: Annotated[
        TextDelta | ThoughtDelta | SignatureDelta | InputDelta, Field(discriminator="type")
    ]


@closed
class BlockStop(TypedDict):
    type: Literal["content_block_stop"]
    index: int


@closed
class StopFields(TypedDict):
    stop_reason: StopReason
    stop_sequence: str | None


@closed
class MessageDelta(TypedDict):
    type: Literal["message_delta"]
    delta: StopFields
    usage: MessagesUsage
    fulmen: FulmenReport


@closed
class MessageStop(TypedDict):
    type: Literal["message_stop"]


@closed
class ReadTokens(TypedDict):
    prompt_tokens: int
    read_tokens: int


@closed
class Ping(TypedDict):
    type: Literal["ping"]
    fulmen: ReadTokens


class InputTokens(TypedDict):
    """Tokens of a prompt."""

    input_tokens: int


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
