"""Messages to tokens, and back."""

from fulmen.chat.arguments import dump_json, load_json
from fulmen.chat.constraints import limits_calls, make_grammar
from fulmen.chat.events import (
    ContentDelta,
    Event,
    ProblemFound,
    Reply,
    ReplySum,
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
    ModelError,
    Overflow,
    Prompt,
    Timing,
    Token,
    TokenBudget,
    Usage,
    as_request,
    complete,
    text_request,
)
from fulmen.chat.parsing import CodePlace, Parser, PlainParser
from fulmen.chat.reading import read_messages, read_tools
from fulmen.chat.stopping import StopTexts
from fulmen.chat.template import TemplateFormat
from fulmen.chat.tokenizer import Control, Detokenizer, Ids, Segment, Tokenizer
from fulmen.chat.transcript import (
    Transcript,
    Turn,
    find_spans,
    match_turns,
    read_turn,
    sampled_ids,
)
from fulmen.chat.turn_log import Found, FoundTurn, TurnLog, fingerprint_of_vocabulary
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
    "Control",
    "Detokenizer",
    "Event",
    "Found",
    "FoundTurn",
    "Grammar",
    "History",
    "Ids",
    "Message",
    "ModelError",
    "Overflow",
    "Parser",
    "PlainParser",
    "ProblemFound",
    "Prompt",
    "Reply",
    "ReplySum",
    "SampledIds",
    "Segment",
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
    "TurnLog",
    "Usage",
    "Vocabulary",
    "as_request",
    "complete",
    "dump_json",
    "find_spans",
    "fingerprint_of_vocabulary",
    "get_format",
    "limits_calls",
    "load_format",
    "load_json",
    "make_grammar",
    "match_turns",
    "random_call_id",
    "read_history",
    "read_messages",
    "read_tools",
    "read_turn",
    "sampled_ids",
    "sum_events",
    "text_request",
]
