"""ServedModel: needs of a server beside chat, which a model at a URL may lack."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from fulmen.chat import AnswerStream, ChatFormat, ChatModel, ChatRequest, Token, Tokenizer
from fulmen.engine import EngineStats
from fulmen.sampling import SamplingParams

R = TypeVar("R")


class ServedStream(AnswerStream, Protocol):
    """A running answer that shows how far it is; every property is safe to read while it runs."""

    @property
    def tokens(self) -> Sequence[Token]:
        """New tokens so far."""

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt; 0 until it is encoded."""

    @property
    def num_read_tokens(self) -> int:
        """Tokens of the prompt that are in the cache so far, those found there included."""

    async def end_thinking(self) -> bool:
        """Close the thought that runs now, as if its budget were used up; return False if none
        runs."""


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
        """Counters of the engine; they may be read while it runs."""

    def stream(self, request: ChatRequest) -> ServedStream:
        """Return the answer to a request; it starts when it is entered or first awaited. Whatever
        is wrong with the request is a ValueError then."""

    def stream_many(self, request: ChatRequest, n: int) -> Sequence[ServedStream]:
        """Return n answers to a request, whose prompt is read once; a seed makes n seeds."""

    def stream_text(self, prompt: str | Sequence[int], **fields: Any) -> ServedStream:
        """Return the continuation of a text or ids as they stand; fields as in `ChatRequest`."""

    async def call(self, work: Callable[[], R]) -> R:
        """Run work between two steps of the engine: to open, save or fork a session."""
