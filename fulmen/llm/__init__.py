"""Models that answer: a checkpoint, an engine and a chat format as one."""

from fulmen.llm.forced import ForcedModel
from fulmen.llm.http import Peer, PeerConfig, PeerError
from fulmen.llm.llm import LLM, Stream
from fulmen.llm.local import LocalModel, LocalStream
from fulmen.llm.remote import (
    RemoteCompletion,
    RemoteModel,
    RemoteStream,
    TokenText,
    dialect_of_url,
    open_peer,
)
from fulmen.llm.scripted import ScriptedAnswer, ScriptedModel
from fulmen.llm.served import ServedModel, ServedStream
from fulmen.llm.upstream import UpstreamKind, UpstreamModel, UpstreamStream

__all__ = [
    "LLM",
    "ForcedModel",
    "LocalModel",
    "LocalStream",
    "Peer",
    "PeerConfig",
    "PeerError",
    "RemoteCompletion",
    "RemoteModel",
    "RemoteStream",
    "ScriptedAnswer",
    "ScriptedModel",
    "ServedModel",
    "ServedStream",
    "Stream",
    "TokenText",
    "UpstreamKind",
    "UpstreamModel",
    "UpstreamStream",
    "dialect_of_url",
    "open_peer",
]
