"""A model with an engine that is made to say the texts of a script.

The ids of each answer, the end of the turn included, are given; their log-probabilities are those
that the model gives them. So everything behind an answer (cache, statistics, sessions) is real.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fulmen.chat import ChatFormat, ChatRequest, Tokenizer, text_request
from fulmen.engine import EngineStats
from fulmen.llm.scripted import Lines, Script, ScriptedAnswer
from fulmen.llm.served import ServedModel, ServedStream
from fulmen.sampling import SamplingParams

R = TypeVar("R")


class ForcedModel:
    """A `ServedModel` that makes another one say the texts of a script.

    What is forced comes whatever grammar, tool_choice or budget the request has.
    """

    def __init__(
        self,
        model: ServedModel,
        script: Script,
        *,
        tokenizer: Tokenizer | None = None,
        format: ChatFormat | None = None,
    ) -> None:
        """tokenizer and format are those of the model if omitted."""
        self._model = model
        self._lines = Lines(script)
        self._tokenizer = model.tokenizer if tokenizer is None else tokenizer
        self._format = model.format if format is None else format
        ends = (self._tokenizer.token_id(self._format.end_of_turn), *self._tokenizer.eos_token_ids)
        self._end_ids = [end for end in ends if end is not None][:1]

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the model."""
        return self._tokenizer

    @property
    def format(self) -> ChatFormat:
        """Chat format of the model."""
        return self._format

    @property
    def defaults(self) -> SamplingParams:
        """Recommended sampling of the model."""
        return self._model.defaults

    @property
    def max_model_len(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self._model.max_model_len

    @property
    def stats(self) -> EngineStats:
        """Counters of the engine."""
        return self._model.stats

    def stream(self, request: ChatRequest) -> ServedStream:
        """Return the next answer of the script, as the model would have said it."""
        return self._model.stream(replace(request, forced_ids=self._next_ids(request)))

    def stream_many(self, request: ChatRequest, n: int) -> Sequence[ServedStream]:
        """Return the next n answers of the script. They run one by one: each has its own ids."""
        return [self.stream(request) for _ in range(n)]

    def stream_text(self, prompt: str | Sequence[int], **fields: Any) -> ServedStream:
        """Return the next answer of the script as the continuation of a text or ids."""
        return self.stream(text_request(prompt, **fields))

    async def call(self, work: Callable[[], R]) -> R:
        """Run work between two steps of the engine."""
        return await self._model.call(work)

    def _next_ids(self, request: ChatRequest) -> tuple[int, ...]:
        line: ScriptedAnswer = self._lines.next(request)
        if line.fail_with is not None or line.finish_reason != "stop":
            raise ValueError(
                "an engine can be made to say a text, and not to fail or to stop short"
            )
        return (*self._tokenizer.encode(line.text), *self._end_ids)
