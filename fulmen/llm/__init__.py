"""Models that answer: a checkpoint, an engine and a chat format as one."""

from fulmen.llm.llm import LLM, Stream
from fulmen.llm.local import LocalModel, LocalStream
from fulmen.llm.scripted import ForcedModel, ScriptedModel
from fulmen.llm.served import ServedModel, ServedStream

__all__ = [
    "LLM",
    "ForcedModel",
    "LocalModel",
    "LocalStream",
    "ScriptedModel",
    "ServedModel",
    "ServedStream",
    "Stream",
]
