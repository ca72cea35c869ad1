"""Who answers: a checkpoint, an engine and a chat format as one model."""

from fulmen.llm.llm import LLM
from fulmen.llm.local import AsyncLLM
from fulmen.llm.stream import ChatStream, Completion, TextStream
from fulmen.llm.thinking import Nudge, Purse, ThoughtBudget

__all__ = [
    "LLM",
    "AsyncLLM",
    "ChatStream",
    "Completion",
    "Nudge",
    "Purse",
    "TextStream",
    "ThoughtBudget",
]
