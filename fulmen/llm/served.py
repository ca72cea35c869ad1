"""ServedModel: needs of a server beside chat, which a model at a URL may lack."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from fulmen.chat import AnswerStream, ChatFormat, ChatModel, Tokenizer
from fulmen.engine import EngineStats
from fulmen.sampling import SamplingParams

R = TypeVar("R")


class ServedModel(ChatModel, Protocol):
    """A model with its tokenizer and engine within reach; `LocalModel` is one."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the model."""

    @property
    def format(self) -> ChatFormat:
        """Chat format of the model."""

    @property
    def defaults(self) -> SamplingParams:
        """Recommended sampling of the model."""

    @property
    def max_model_len(self) -> int:
        """Tokens that prompt and answer may have together."""

    @property
    def stats(self) -> EngineStats:
        """Counters of the engine."""

    def stream_text(self, prompt: str | Sequence[int], **fields: Any) -> AnswerStream:
        """Return the continuation of a text or ids as they stand; fields as in `ChatRequest`."""

    async def call(self, work: Callable[[], R]) -> R:
        """Run work between two steps of the engine: to open, save or fork a session."""
