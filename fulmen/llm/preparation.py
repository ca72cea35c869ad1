"""A request to an answer that is ready to be drawn: ids, parser, budget and grammar.

    ChatRequest -> Preparation.prepare -> Answer -> an engine, or a server that holds the weights

Nothing here needs the weights: a tokenizer, a chat format and a vocabulary's size are enough.
"""

import functools
import secrets
from collections.abc import Callable, Collection
from dataclasses import replace
from threading import Lock
from typing import Final, Protocol

from fulmen.chat import (
    ChatFormat,
    ChatRequest,
    Grammar,
    PlainParser,
    Prompt,
    Tokenizer,
    Tool,
    Vocabulary,
    limits_calls,
    make_grammar,
    read_tools,
)
from fulmen.engine import read_ids
from fulmen.llm.answer import Answer
from fulmen.sampling import SamplingParams, check_whole

_MAX_ANSWERS: Final = 1024
"""Most answers to one request"""


def end_ids(tokenizer: Tokenizer, format: ChatFormat) -> list[int]:
    """Return the ids that end an answer, in order."""
    # Some checkpoints name no end of turn (M1's config has none); its format always knows it.
    end_of_turn = tokenizer.token_id(format.end_of_turn)
    return sorted({*tokenizer.eos_token_ids, *(() if end_of_turn is None else (end_of_turn,))})


class Preparer(Protocol):
    """Makes answers of requests, with the sampling of one model."""

    def prepare(self, request: ChatRequest) -> Answer:
        """Return the answer to a request, yet to be started."""

    def prepare_next(self, answer: Answer, request: ChatRequest, number: int) -> Answer:
        """Return the answer after `number` others, of which `answer` is the first."""


class Preparation:
    """Makes answers of requests for one model. Any thread may use it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        format: ChatFormat,
        *,
        vocab_size: int,
        eos_token_ids: Collection[int],
    ) -> None:
        """vocab_size: of the model, which may have more ids than the tokenizer"""
        self._tokenizer = tokenizer
        self._format = format
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)
        self._vocabulary: Vocabulary | None = None
        self._vocabulary_lock = Lock()

    def prepare(self, request: ChatRequest, defaults: SamplingParams) -> Answer:
        """Return the answer to a request, yet to be started: its prompt is rendered and encoded and
        its grammar made.

        defaults  sampling of a request that has none
        """
        tools = read_tools(request.tools)
        request, params = self._checked(request), _with_seed(request.params or defaults)
        format = self._format if request.text is None else None
        return Answer(
            request,
            request.prompt or Prompt(tuple(self._encode(request, tools))),
            params,
            tokenizer=self._tokenizer,
            parser=PlainParser() if format is None else format.parser(tools),
            format=format,
            grammar=self._grammar(params, format, tools),
            vocab_size=self._vocab_size,
        )

    def prepare_next(self, answer: Answer, request: ChatRequest, number: int) -> Answer:
        """Return the answer after `number` others to one request, yet to be started. answer is the
        first, whose prompt is not rendered again; its seed and the number make the seed."""
        seed = answer.params.seed
        if request.params is None or request.params.seed is None:
            seed = None  # each draws its own
        elif seed is not None and (seed := seed + number) >= 2**64:
            seed -= 2**64
        params = replace(answer.params, seed=seed)
        return self.prepare(replace(request, params=params, prompt=answer.prompt), params)

    def _checked(self, request: ChatRequest) -> ChatRequest:
        """Return the request with ids that are the model's. Raises ValueError for others."""
        return replace(
            request,
            prefix_ids=read_ids("prefix_ids", request.prefix_ids, self._vocab_size),
            forced_ids=read_ids("forced_ids", request.forced_ids, self._vocab_size),
        )

    def _encode(self, request: ChatRequest, tools: tuple[Tool, ...]) -> list[int]:
        """Return the ids of a request's text, or else of its messages."""
        text = request.text
        if text is None:
            return self._format.encode(list(request.messages), tools, tokenizer=self._tokenizer)
        ids = self._tokenizer.encode(text) if isinstance(text, str) else text
        return list(read_ids("prompt", ids, self._vocab_size))

    def _grammar(
        self, params: SamplingParams, format: ChatFormat | None, tools: tuple[Tool, ...]
    ) -> Grammar | None:
        """Return the grammar that holds an answer, if it has one; a format tells its thought."""
        if not (limits_calls(params, format, tools) or params.is_constrained):
            return None
        with self._vocabulary_lock:
            if self._vocabulary is None:  # seconds with a large vocabulary
                self._vocabulary = Vocabulary(
                    self._tokenizer,
                    vocab_size=self._vocab_size,
                    eos_token_ids=self._eos_token_ids,
                )
        return make_grammar(self._vocabulary, params, format=format, tools=tools)


class SharedPrompt:
    """Prompt that several answers share: rendered once, and read by the first that runs."""

    def __init__(self, preparer: Preparer, request: ChatRequest) -> None:
        self._preparer = preparer
        self._request = request
        self._first: Answer | None = None
        self._lock = Lock()
        self._reader: Answer | None = None
        """Answer that reads it, or has read it; the engine's thread's own"""

    @property
    def is_being_read(self) -> bool:
        """True until the answer that reads it has its first token, or has ended without one."""
        reader = self._reader
        return reader is not None and not reader.tokens and reader.finish_reason is None

    def started(self, answer: Answer) -> None:
        """Take note that an answer runs: it reads the prompt, if no other has."""
        if self._reader is None or not self._reader.tokens:
            self._reader = answer

    def prepare_many(self, n: int) -> list[Callable[[], Answer]]:
        """Return what prepares each of n answers. Raises ValueError for no number of them."""
        check_whole("n", n, 1, _MAX_ANSWERS)
        return [functools.partial(self.prepare, number) for number in range(n)]

    def prepare(self, number: int) -> Answer:
        """Return the answer after `number` others, yet to be started. Any thread may do this."""
        with self._lock:
            if self._first is None:
                self._first = self._preparer.prepare(self._request)
                if number == 0:
                    return self._first
                self._first.cancel()  # it is here for its prompt
        return self._preparer.prepare_next(self._first, self._request, number)


def _with_seed(params: SamplingParams) -> SamplingParams:
    """Return params with a seed, so that the answer can be continued later."""
    return params if params.seed is not None else replace(params, seed=secrets.randbits(63))
