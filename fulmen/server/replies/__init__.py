"""Shapes of replies, for the published description: what a client can rely on, key by key.

One module for each dialect: its whole replies, then the chunks or events of its streams.

A key that is `NotRequired` is left out where there is nothing to tell; no reply has a key that is
not here. `openapi.py` puts these shapes into the description, and a test holds every reply to them.
"""

from fulmen.server.replies.anthropic_messages import InputTokens, MessagesEvent, MessagesReply
from fulmen.server.replies.models import Health, ModelList, ModelObject, Readiness, Version
from fulmen.server.replies.openai_chat import ChatEvent, ChatReply
from fulmen.server.replies.openai_completions import CompletionsEvent, CompletionsReply
from fulmen.server.replies.openai_responses import (
    DeletedResponse,
    InputItems,
    ResponseInputTokens,
    ResponseReply,
    ResponsesEvent,
)
from fulmen.server.replies.sessions import (
    DeletedSession,
    SessionDetail,
    SessionList,
    SessionObject,
    SessionToken,
    SessionTokens,
    SessionTurn,
)
from fulmen.server.replies.shared import AnthropicError, EndedThinking, OpenAIError

__all__ = [
    "AnthropicError",
    "ChatEvent",
    "ChatReply",
    "CompletionsEvent",
    "CompletionsReply",
    "DeletedResponse",
    "DeletedSession",
    "EndedThinking",
    "Health",
    "InputItems",
    "InputTokens",
    "MessagesEvent",
    "MessagesReply",
    "ModelList",
    "ModelObject",
    "OpenAIError",
    "Readiness",
    "ResponseInputTokens",
    "ResponseReply",
    "ResponsesEvent",
    "SessionDetail",
    "SessionList",
    "SessionObject",
    "SessionToken",
    "SessionTokens",
    "SessionTurn",
    "Version",
]
