"""Messages to tokens, and back."""

from fulmen.chat.constraints import limits_calls, make_grammar
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
from fulmen.chat.format import ChatFormat, ThinkingTags
from fulmen.chat.formats import get_format, load_format
from fulmen.chat.grammar import Grammar
from fulmen.chat.history import VOLATILE_LINES, History, read_history
from fulmen.chat.messages import Message, SampledIds, Span, Tool, ToolCall, random_call_id
from fulmen.chat.model import (
    AnswerStream,
    ChatModel,
    ChatRequest,
    Completion,
    Prompt,
    Timing,
    Token,
    TokenBudget,
    Usage,
    as_request,
    complete,
)
from fulmen.chat.parsing import CodePlace, Parser, PlainParser
from fulmen.chat.reading import read_messages, read_tools
from fulmen.chat.stopping import StopTexts
from fulmen.chat.template import TemplateFormat
from fulmen.chat.tokenizer import Detokenizer, Tokenizer
from fulmen.chat.transcript import Transcript, Turn, find_spans, read_turn
from fulmen.chat.vocabulary import Vocabulary

__all__ = [
    "VOLATILE_LINES",
    "AnswerStream",
    "ChatFormat",
    "ChatModel",
    "ChatRequest",
    "CodePlace",
    "Completion",
    "ContentDelta",
    "Detokenizer",
    "Event",
    "Grammar",
    "History",
    "Message",
    "Parser",
    "PlainParser",
    "ProblemFound",
    "Prompt",
    "Reply",
    "SampledIds",
    "Span",
    "StopTexts",
    "TemplateFormat",
    "ThinkingDelta",
    "ThinkingTags",
    "Timing",
    "Token",
    "TokenBudget",
    "Tokenizer",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolCallEnd",
    "ToolCallStart",
    "Transcript",
    "Turn",
    "Usage",
    "Vocabulary",
    "as_request",
    "complete",
    "find_spans",
    "get_format",
    "limits_calls",
    "load_format",
    "make_grammar",
    "random_call_id",
    "read_history",
    "read_messages",
    "read_tools",
    "read_turn",
    "sum_events",
]
