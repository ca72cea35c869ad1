"""A model at a URL, in OpenAI's or Anthropic's dialect."""

from fulmen.llm.remote.answer import TokenText
from fulmen.llm.remote.model import (
    RemoteCompletion,
    RemoteModel,
    RemoteStream,
    dialect_of_url,
    open_peer,
)

__all__ = [
    "RemoteCompletion",
    "RemoteModel",
    "RemoteStream",
    "TokenText",
    "dialect_of_url",
    "open_peer",
]
