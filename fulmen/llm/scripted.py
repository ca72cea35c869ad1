"""Models whose answers are written beforehand: for tests, replays and recorded trajectories.

`ScriptedModel` needs no weights: its texts go through the real parser. `ForcedModel` makes a real
engine say the texts, with the log-probabilities that the model gives them.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from typing import Self

from fulmen.chat import (
    AnswerStream,
    ChatFormat,
    ChatModel,
    ChatRequest,
    Completion,
    Event,
    Token,
    Tokenizer,
    Usage,
    find_spans,
    read_tools,
)
from fulmen.sampling import FinishReason, SamplingParams

Script = Iterable[str | Callable[[ChatRequest], str]]
"""Raw model text of one answer after the other, or functions that write it for a request; with tags
as the model writes them, without the end of the turn"""


class _Lines:
    """A script, read answer by answer."""

    def __init__(self, script: Script) -> None:
        self._lines: Iterator[str | Callable[[ChatRequest], str]] = iter(script)
        self._count = 0

    def next(self, request: ChatRequest) -> str:
        """Return the text of the next answer."""
        line = next(self._lines, None)
        if line is None:
            raise ValueError(f"the script ended after {self._count} answers, another was asked for")
        self._count += 1
        return line if isinstance(line, str) else line(request)


class ScriptedModel:
    """A ChatModel that answers each request with the next text of a script."""

    def __init__(
        self,
        format: ChatFormat,
        script: Script,
        *,
        tokenizer: Tokenizer | None = None,
        piece_chars: int = 7,
    ) -> None:
        """With a tokenizer, completions have ids, each with log-probability 0: a script is certain.

        piece_chars  characters that come at once
        """
        if piece_chars < 1:
            raise ValueError(f"piece_chars is {piece_chars}, it must be 1 or more")
        self.format = format
        self.tokenizer = tokenizer
        self._lines = _Lines(script)
        self._piece_chars = piece_chars
        self.requests: list[ChatRequest] = []
        """All requests so far"""

    def stream(self, request: ChatRequest) -> "ScriptedStream":
        """Return the next answer of the script."""
        return ScriptedStream(self, request)

    def start(self, request: ChatRequest) -> list[str]:
        """Take the next text of the script for a request; return it in pieces.

        Raises ValueError at the end of the script, and for a request that a script cannot follow.
        """
        params = request.params
        if request.prefix_ids or request.forced_ids or (params is not None and params.stop):
            raise ValueError("a script does not know prefix_ids, forced_ids and stop texts")
        self.requests.append(request)
        text, size = self._lines.next(request), self._piece_chars
        return [text[start : start + size] for start in range(0, len(text), size)]


class ScriptedStream:
    """A scripted answer: iterate for its events."""

    def __init__(self, model: ScriptedModel, request: ChatRequest) -> None:
        self._model = model
        self._request = request
        self._format = model.format
        self._tokenizer = model.tokenizer
        self._pieces: list[str] | None = None
        """Text of the answer; None until it starts"""
        self._num_read = 0
        self._finish_reason: FinishReason | None = None

    def _started(self) -> list[str]:
        if self._pieces is None:
            self._parser = self._format.parser(read_tools(self._request.tools))
            self._pieces = self._model.start(self._request)
        return self._pieces

    async def __aenter__(self) -> Self:
        self._started()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[Event]:
        pieces = self._started()
        while self._finish_reason is None:
            if self._num_read == len(pieces):
                self._finish_reason = "stop"
                for event in self._parser.finish_events():
                    yield event
                return
            piece = pieces[self._num_read]
            self._num_read += 1
            for event in self._parser.feed(piece):
                yield event

    async def close(self) -> None:
        """End the answer, if it is not at its end."""
        self._finish_reason = self._finish_reason or "abort"

    async def finish(self) -> Completion:
        """End the answer and return everything it came to."""
        pieces = self._started()
        await self.close()
        assert self._finish_reason is not None
        prompt_ids: tuple[int, ...] = ()
        tokens: tuple[Token, ...] = ()
        sampled = None
        if self._tokenizer is not None:
            tokenizer, request = self._tokenizer, self._request
            if request.prompt is not None:
                prompt_ids = request.prompt.ids
            else:
                tools = read_tools(request.tools)
                messages = list(request.messages)
                prompt_ids = tuple(self._format.encode(messages, tools, tokenizer=tokenizer))
            ids = tokenizer.encode("".join(pieces[: self._num_read]))
            end = tokenizer.token_id(self._format.end_of_turn)
            if self._finish_reason == "stop" and end is not None:
                ids.append(end)
            tokens = tuple(Token(token_id, 0.0, is_forced=True) for token_id in ids)
            has_end = self._finish_reason == "stop" and end is not None
            spoken = ids[:-1] if has_end else ids
            detokenizer = tokenizer.detokenizer()
            texts = [detokenizer.feed([token_id]) for token_id in spoken]
            sampled = find_spans(self._format, spoken, texts)
        return Completion(
            reply=self._parser.finish(),
            finish_reason=self._finish_reason,
            prompt_ids=prompt_ids,
            tokens=tokens,
            params=self._request.params or SamplingParams(),
            usage=Usage(num_prompt_tokens=len(prompt_ids), num_new_tokens=len(tokens)),
            sampled=sampled,
        )


class ForcedModel:
    """A ChatModel that makes another one, with an engine, say the texts of a script."""

    def __init__(
        self, model: ChatModel, script: Script, *, tokenizer: Tokenizer, format: ChatFormat
    ) -> None:
        self._model = model
        self._lines = _Lines(script)
        self._tokenizer = tokenizer
        self._end_of_turn = tokenizer.token_id(format.end_of_turn)

    def stream(self, request: ChatRequest) -> AnswerStream:
        """Return the next answer of the script, as the model would have said it."""
        ids = self._tokenizer.encode(self._lines.next(request))
        if self._end_of_turn is not None:
            ids.append(self._end_of_turn)
        return self._model.stream(replace(request, forced_ids=tuple(ids)))
