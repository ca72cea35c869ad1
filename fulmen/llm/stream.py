"""One running answer: token ids to text to events."""

import itertools
import math
import secrets
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Self, TypedDict, TypeVar

from fulmen.chat import (
    Event,
    Guide,
    Reply,
    StopTexts,
    Tool,
)
from fulmen.engine import Choice, Steering, TokenOutput
from fulmen.llm.thinking import Nudge, Purse, ThoughtBudget
from fulmen.sampling import FinishReason, SamplingParams

if TYPE_CHECKING:  # a circle until streams no longer reach through the LLM
    from fulmen.llm.llm import LLM

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer and what it took."""

    reply: Reply
    finish_reason: FinishReason
    prompt_ids: tuple[int, ...]
    outputs: tuple[TokenOutput, ...]
    """Every new token with its log-probability, the end-of-turn token included."""
    num_thinking_tokens: int
    params: SamplingParams
    """How it was sampled; the seed is the one that was drawn if none was given."""
    begun_ids: tuple[int, ...] = ()
    """Where it was taken up again: the ids it began with, between prompt and outputs."""

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """All ids of the answer."""
        return (*self.begun_ids, *(output.token_id for output in self.outputs))


class RequestOptions(TypedDict, total=False):
    """What `Engine.add_request` takes besides a prompt and how it is sampled."""

    num_prefix_ids: int
    num_repetitive: int
    priority: int
    steering: Steering | None


class StreamOptions(TypedDict, total=False):
    """What else an answer may be asked with."""

    begun: Sequence[int]
    """Ids that the answer begins with: one that was stopped goes on as if it had not been, if it
    had a seed. Its events are not given again, the reply holds all."""
    begun_logprobs: Sequence[float]
    """Of begun; only a repetition_window needs them"""
    purse: Purse | None
    """Tokens of thought that this answer shares with others; what was begun takes its part anew"""
    priority: int
    """Lower ones go first."""


class _Pushed:
    """What a stream pushes, its grammar, and the stream itself, as the engine's Steering."""

    def __init__(self, stream: "Stream[Any]", guide: Guide | None) -> None:
        self.stream = stream
        self.guide = guide
        self.forced_ids: deque[int] = deque()
        self.nudge: tuple[int, float] | None = None

    def ask(self, draft_ids: Sequence[int]) -> list[Choice]:
        if self.forced_ids:
            return [Choice(forced_id=self.forced_ids[0])]
        if self.stream.may_push or self.nudge is not None:
            draft_ids = ()
        if self.guide is None:
            return [Choice(logit_bias=self.nudge)] * (1 + len(draft_ids))
        return [Choice(mask, logit_bias=self.nudge) for mask in self.guide.masks(draft_ids)]

    def take(self, output: TokenOutput) -> bool:
        if self.forced_ids:
            self.forced_ids.popleft()
        self.nudge = None
        if self.guide is not None:
            self.guide.accept(output.token_id)
        self.stream.receive(output)
        return self.stream.finish_reason == "stop"

    def fail(self, error: Exception) -> None:
        self.stream.error = error
        self.stream.finish_reason = "abort"
        self.stream.close()


class Stream(ABC, Generic[T]):
    """A running request as text, or as what a subclass makes of text.

    Close a stream that is not read to its end; `with` does.
    """

    def __init__(
        self,
        llm: "LLM",
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        begun: Sequence[int] = (),
        begun_logprobs: Sequence[float] = (),
        priority: int = 0,
        guide: Guide | None = None,
    ) -> None:
        self._llm = llm
        if params.seed is None:  # so that the answer can be taken up again
            params = replace(params, seed=secrets.randbits(63))
        self.params = params
        self.prompt_ids = tuple(prompt_ids)
        self.begun_ids = tuple(begun)
        self.outputs: list[TokenOutput] = []
        """Every new token so far, the one that ended the answer included."""
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self.steering = _Pushed(self, guide)
        self._detokenizer = llm.tokenizer.detokenizer()
        self._stop = StopTexts(params.stop)
        self._items: deque[T] = deque()
        self.begun_items: list[T] = []
        """What was begun comes to, as far as it is settled"""
        for token_id in begun:
            self.begun_items += self._take_begun(token_id)
        threshold = math.log(params.repetition_probability)
        likely = itertools.takewhile(lambda logprob: logprob > threshold, reversed(begun_logprobs))
        self.request_id = llm.attach(
            self,
            [*prompt_ids, *begun],
            params,
            num_prefix_ids=len(self.begun_ids),
            num_repetitive=sum(1 for _ in likely),
            priority=priority,
            steering=self.steering,
        )
        if guide is not None:
            for token_id in begun:
                guide.accept(token_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[T]:
        for items in self.updates():
            yield from items

    def updates(self) -> Iterator[list[T]]:
        """What is new after each step of the engine; nothing yet while the prompt is read."""
        while self._items or self.finish_reason is None:
            if not self._items:
                self._llm.step()
            yield self.take()
        if self.error is not None:
            raise self.error

    def take(self) -> list[T]:
        """What is new since the last time, without a step of the engine."""
        items = list(self._items)
        self._items.clear()
        return items

    def receive(self, output: TokenOutput) -> None:
        """Takes the next token from the engine."""
        self.outputs.append(output)
        is_last = output.finish_reason is not None
        text = ""
        if output.finish_reason != "stop":  # the id that ended the answer is no part of its text
            text = self._detokenizer.feed([output.token_id])
        if is_last:
            text += self._detokenizer.flush()
        text = self._stop.feed(text, is_last=is_last)
        self.finish_reason = "stop" if self._stop.is_found else output.finish_reason
        self._items.extend(self._read(text))

    def _take_begun(self, token_id: int) -> Iterable[T]:
        """Takes a token of an answer that goes on from there."""
        items = self._read(self._stop.feed(self._detokenizer.feed([token_id])))
        if self._stop.is_found:
            raise ValueError("the answer that was begun has a stop text in it, it cannot go on")
        return items

    @property
    def may_push(self) -> bool:
        return False

    @abstractmethod
    def _read(self, text: str) -> Iterable[T]:
        """What a piece of text means; it is the last one when finish_reason is set."""

    def close(self) -> None:
        """Ends the request now, if it still runs."""
        if self.finish_reason is None:
            self.finish_reason = "abort"
            self._llm.detach(self.request_id)


class TextStream(Stream[str]):
    """A running completion: iterate for its text, piece by piece."""

    def _read(self, text: str) -> Iterable[str]:
        return [text] if text else []


class ChatStream(Stream[Event]):
    """A running answer: iterate for its events, `finish` for what they came to."""

    def __init__(
        self,
        llm: "LLM",
        prompt_ids: Sequence[int],
        tools: Sequence[Tool | Mapping[str, Any]] | None,
        params: SamplingParams,
        *,
        begun: Sequence[int] = (),
        begun_logprobs: Sequence[float] = (),
        purse: Purse | None = None,
        priority: int = 0,
    ) -> None:
        self._parser = llm.format.parser(tools)
        self._thought = ThoughtBudget(llm.format, llm.tokenizer, params, purse)
        self._forced: deque[int] = deque()
        """What is decided to come next and not passed on yet"""
        self._nudge: Nudge | None = None
        guide = llm.guide(params, llm.format, tools)
        try:
            self._steer()
            super().__init__(
                llm,
                prompt_ids,
                params,
                begun=begun,
                begun_logprobs=begun_logprobs,
                priority=priority,
                guide=guide,
            )
        except BaseException:
            self._thought.end()
            raise
        self._pass_on()

    @property
    def may_push(self) -> bool:
        return self._parser.is_thinking

    def receive(self, output: TokenOutput) -> None:
        self._see(output.token_id)
        super().receive(output)
        if self.finish_reason is None:
            self._pass_on()

    def _take_begun(self, token_id: int) -> Iterable[Event]:
        if self._forced and self._forced.popleft() != token_id:
            self._forced.clear()
            self._thought.reopen()
        self._see(token_id)
        return super()._take_begun(token_id)

    def _read(self, text: str) -> Iterable[Event]:
        if self._parser.is_thinking:
            self._thought.count(text)
        events = self._parser.feed(text)
        if self.finish_reason is not None:
            self._thought.end()
            return events + self._parser.finish_events()
        self._steer()
        return events

    def close(self) -> None:
        super().close()
        self._thought.end()

    def _see(self, token_id: int) -> None:
        """Takes note of a token before its text is read."""
        nudge, self._nudge = self._nudge, None
        if nudge is not None and token_id == nudge.token_id:
            self._forced.extend(self._thought.took_nudge())

    def _steer(self) -> None:
        """Decides what comes next, inside a thought."""
        decision = self._thought.decide() if self._parser.is_thinking else None
        if isinstance(decision, Nudge):
            self._nudge = decision
        elif decision is not None:
            self._forced.extend(decision)

    def _pass_on(self) -> None:
        """Tells the engine what was decided."""
        self.steering.forced_ids.extend(self._forced)
        self._forced.clear()
        if self._nudge is not None:
            self.steering.nudge = self._nudge.token_id, self._nudge.bias

    def finish(self) -> Completion:
        """Ends the answer if it still runs, and returns what it came to."""
        self.close()
        return Completion(
            self._parser.finish(),
            self.finish_reason or "abort",
            self.prompt_ids,
            tuple(self.outputs),
            self._thought.num_tokens,
            self.params,
            self.begun_ids,
        )
