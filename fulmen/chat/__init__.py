"""How messages become tokens, and back."""

from fulmen.chat.format import Format
from fulmen.chat.formats import get_format, load_format
from fulmen.chat.messages import (
    ContentDelta,
    Event,
    Message,
    ProblemFound,
    Reply,
    ThinkingDelta,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    random_call_id,
    read_messages,
    read_tools,
    sum_events,
)
from fulmen.chat.parsing import Parser
from fulmen.chat.template import TemplateFormat
from fulmen.chat.tokenizer import Detokenizer, Tokenizer

__all__ = [
    "ContentDelta",
    "Detokenizer",
    "Event",
    "Format",
    "Message",
    "Parser",
    "ProblemFound",
    "Reply",
    "TemplateFormat",
    "ThinkingDelta",
    "Tokenizer",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolCallEnd",
    "ToolCallStart",
    "get_format",
    "load_format",
    "random_call_id",
    "read_messages",
    "read_tools",
    "sum_events",
]
