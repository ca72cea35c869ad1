"""A server for real clients: the real engine with MiniMax's tokenizer, made to say a script.

The model is tiny and random, so only its words are forced; prompts, cache, log and wire are real.
The words are forced as ids that the tokenizer would not choose for them: a history that was decoded
and encoded again would not have them.
"""

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from fulmen.chat import (
    ChatRequest,
    Completion,
    Event,
    Token,
    Tokenizer,
)
from fulmen.checkpoints import save_model
from fulmen.engine import EngineConfig
from fulmen.llm import LLM, ForcedModel, LocalModel, ServedStream
from tests.chat.helpers import REAL
from tests.models.helpers import random_model, tiny_m2
from tests.server.helpers import served

_TAGS = re.compile(r"(</?think>|</?minimax:tool_call>)")


def call(name: str, **arguments: object) -> str:
    """Return a tool call as M2 writes it."""
    values = "".join(
        f'<parameter name="{key}">{value if isinstance(value, str) else json.dumps(value)}'
        "</parameter>\n"
        for key, value in arguments.items()
    )
    return f'<invoke name="{name}">\n{values}</invoke>\n'


@dataclass(frozen=True, slots=True)
class Step:
    """One answer of a script."""

    thought: str
    content: str = ""
    calls: Sequence[str] = ()

    @property
    def text(self) -> str:
        """The answer as M2 writes it, behind the `<think>` of the prompt."""
        text = f"{self.thought}\n</think>\n\n{self.content}"
        if self.calls:
            calls = "".join(self.calls)
            text += f"\n<minimax:tool_call>\n{calls}</minimax:tool_call>"
        return text


@dataclass(slots=True, eq=False)
class Exchange:
    """One request as it reached the model, and what came of it."""

    request: ChatRequest
    completion: Completion | None = None

    @property
    def done(self) -> Completion:
        """The answer, which is there."""
        assert self.completion is not None, "an answer did not end"
        return self.completion


class _Recorded:
    """An answer whose end is noted down."""

    def __init__(self, stream: ServedStream, exchange: Exchange) -> None:
        self._stream = stream
        self._exchange = exchange

    @property
    def tokens(self) -> Sequence[Token]:
        return self._stream.tokens

    @property
    def num_prompt_tokens(self) -> int:
        return self._stream.num_prompt_tokens

    @property
    def num_read_tokens(self) -> int:
        return self._stream.num_read_tokens

    async def end_thinking(self) -> bool:
        return await self._stream.end_thinking()

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stream.close()

    def __aiter__(self) -> AsyncIterator[Event]:
        return aiter(self._stream)

    async def close(self) -> None:
        await self._stream.close()

    async def finish(self) -> Completion:
        self._exchange.completion = await self._stream.finish()
        return self._exchange.completion


class _OddTokenizer(Tokenizer):
    """MiniMax's tokenizer, cutting text into other tokens than it would choose."""

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        encode = super().encode
        pieces: list[str] = []
        for part in _TAGS.split(text):
            size = len(part) if _TAGS.fullmatch(part) else 3
            pieces += [part[i : i + size] for i in range(0, len(part), size)]
        return [token_id for piece in pieces for token_id in encode(piece)]


@cache
def _odd_tokenizer() -> Tokenizer:
    return _OddTokenizer.from_folder(REAL)


class ScriptedEngine(ForcedModel):
    """A model that says what a function writes for each request, and keeps all of them."""

    def __init__(self, model: LocalModel, write: Callable[[ChatRequest], str]) -> None:
        super().__init__(model, itertools.repeat(write), tokenizer=_odd_tokenizer())
        self._real = model.tokenizer
        self.exchanges: list[Exchange] = []
        """All requests so far"""

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the model."""
        return self._real

    def stream(self, request: ChatRequest) -> ServedStream:
        """Return what the function writes, as the model would have said it."""
        exchange = Exchange(request)
        self.exchanges.append(exchange)
        return _Recorded(super().stream(request), exchange)


@dataclass(slots=True, eq=False)
class Served:
    """A server that runs."""

    url: str
    engine: ScriptedEngine

    @property
    def conversation(self) -> list[Exchange]:
        """Requests of the conversation itself: those with tools, unlike calls for a title."""
        return [each for each in self.engine.exchanges if each.request.tools]


def load_llm(folder: Path, *, max_model_len: int = 60_000) -> LLM:
    """Return a tiny M2 with random weights and MiniMax's tokenizer."""
    tokenizer = Tokenizer.from_folder(REAL)
    config = tiny_m2(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        max_position_embeddings=max_model_len,
    )
    save_model(random_model(config), folder)
    (folder / "tokenizer.json").symlink_to(REAL.resolve() / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "[e~["}))
    engine_config = EngineConfig(max_num_seqs=4, kv_cache_bytes=2**28)
    return LLM.load(str(folder), engine_config=engine_config)


@contextmanager
def serving(llm: LLM, write: Callable[[ChatRequest], str], **settings: Any) -> Iterator[Served]:
    """Serve a model that says what `write` returns, on a free port of this machine."""
    local = LocalModel(llm)
    engine = ScriptedEngine(local, write)
    try:
        with served(engine, **settings) as url:
            yield Served(url, engine)
    finally:
        asyncio.run(local.close())
