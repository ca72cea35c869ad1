"""How messages become tokens, and back."""

from fulmen.chat.format import Format
from fulmen.chat.formats import get_format, load_format
from fulmen.chat.grammar import Guide, Vocabulary, make_guide
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
    "Guide",
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
    "Vocabulary",
    "get_format",
    "load_format",
    "make_guide",
    "random_call_id",
    "read_messages",
    "read_tools",
    "sum_events",
]
