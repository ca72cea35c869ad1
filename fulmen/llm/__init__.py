"""Models that answer: a checkpoint, an engine and a chat format as one."""

from fulmen.llm.forced import ForcedModel
from fulmen.llm.llm import LLM, Stream
from fulmen.llm.local import LocalModel, LocalStream
from fulmen.llm.remote import RemoteCompletion, RemoteModel, RemoteStream, TokenText
from fulmen.llm.scripted import ScriptedAnswer, ScriptedModel
from fulmen.llm.served import ServedModel, ServedStream

__all__ = [
    "LLM",
    "ForcedModel",
    "LocalModel",
    "LocalStream",
    "RemoteCompletion",
    "RemoteModel",
    "RemoteStream",
    "ScriptedAnswer",
    "ScriptedModel",
    "ServedModel",
    "ServedStream",
    "Stream",
    "TokenText",
]
