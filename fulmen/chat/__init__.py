"""How messages become tokens, and back."""

from fulmen.chat.events import (
    ContentDelta,
    Event,
    ProblemFound,
    Reply,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    sum_events,
)
from fulmen.chat.format import ChatFormat
from fulmen.chat.formats import get_format, load_format
from fulmen.chat.grammar import Guide, make_guide
from fulmen.chat.messages import Message, Tool, ToolCall, random_call_id
from fulmen.chat.parsing import Parser
from fulmen.chat.reading import read_messages, read_tools
from fulmen.chat.stopping import StopTexts
from fulmen.chat.template import TemplateFormat
from fulmen.chat.tokenizer import Detokenizer, Tokenizer
from fulmen.chat.vocabulary import Vocabulary

__all__ = [
    "ChatFormat",
    "ContentDelta",
    "Detokenizer",
    "Event",
    "Guide",
    "Message",
    "Parser",
    "ProblemFound",
    "Reply",
    "StopTexts",
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
