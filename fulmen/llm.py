"""Checkpoint, engine and chat format behind one object: messages in, Reply out.

    messages -> format.encode -> engine -> token -> detokenizer -> stop texts -> parser -> Reply

Here ids become text and text becomes ids, once each way. What needs text is decided here, after
every token: a stop text ends a request, a thought near the end of its budget is led to its closing
tag (`thinking.py`). It is decided when a token is made, not when someone reads it, so an answer
never depends on who reads which stream when.
"""

import itertools
import math
import secrets
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, Self, TypedDict, TypeVar, Unpack

import torch

from fulmen.chat import (
    Event,
    Format,
    Message,
    Reply,
    Tokenizer,
    Tool,
    Vocabulary,
    load_format,
    make_guide,
    read_tools,
)
from fulmen.engine import Engine, EngineConfig, FinishReason, Guide, Origin, TokenOutput
from fulmen.models import (
    Model,
    OnProgress,
    fingerprint,
    get_card,
    list_cards,
    load_model,
    read_json,
    resolve,
)
from fulmen.sampling import SamplingParams
from fulmen.thinking import Nudge, Purse, ThoughtBudget

Messages = Iterable[Message | Mapping[str, Any]]
Tools = Iterable[Tool | Mapping[str, Any]]
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

    num_begun: int
    num_repetitive: int
    priority: int
    guide: Guide | None


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


class LLM:
    """One model, ready to answer."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        format: Format,
        *,
        engine_config: EngineConfig | None = None,
        defaults: SamplingParams | None = None,
        folder: Path | None = None,
    ) -> None:
        """folder is where the model was loaded from; sessions on disk need to know."""
        self.tokenizer = tokenizer
        self.format = format
        self.defaults = defaults or SamplingParams()
        """How the model is best sampled."""
        # Some checkpoints name no end of turn (M1's config has none); its format always knows it.
        end_of_turn = tokenizer.token_id(format.end_of_turn)
        ends = {*tokenizer.eos_token_ids, *(() if end_of_turn is None else (end_of_turn,))}
        self.engine = Engine(model, engine_config, eos_token_ids=sorted(ends))
        self._streams: dict[int, Stream[Any]] = {}
        self._folder = folder
        self._fingerprint: str | None = None
        self._vocabulary: Vocabulary | None = None

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        engine_config: EngineConfig | None = None,
        on_progress: OnProgress | None = None,
    ) -> "LLM":
        """Loads a model by path, catalog name or hub id; what is not here is fetched first.

        on_progress is called with the bytes so far and in all while something is fetched.
        """
        folder = resolve(name, on_progress=on_progress)
        if not folder.is_dir():
            raise ValueError(f"{folder} is a file, a checkpoint folder or a GGUF is needed")
        tokenizer, format = Tokenizer.from_folder(folder), load_format(folder)
        defaults = recommended_sampling(name, folder, format)
        model = load_model(folder, dtype=dtype, device=device)
        return cls(
            model,
            tokenizer,
            format,
            engine_config=engine_config,
            defaults=defaults,
            folder=folder,
        )

    @property
    def origin(self) -> Origin:
        """What the states of its sequences depend on besides their tokens."""
        if self._fingerprint is None:
            if self._folder is None:
                raise ValueError("the model was not loaded from a folder, a session needs one")
            self._fingerprint = fingerprint(self._folder)
        return Origin(model=self._fingerprint, numerics=self.engine.numerics)

    def chat(
        self,
        messages: Messages,
        tools: Tools | None = None,
        params: SamplingParams | None = None,
        **options: Unpack[StreamOptions],
    ) -> Completion:
        """The whole answer to a conversation; see `stream`."""
        with self.stream(messages, tools, params, **options) as stream:
            for _ in stream:
                pass
            return stream.finish()

    def chat_many(
        self,
        conversations: Iterable[Messages],
        tools: Tools | None = None,
        params: SamplingParams | None = None,
        **options: Unpack[StreamOptions],
    ) -> list[Completion]:
        """The whole answers to several conversations, computed together; see `stream`."""
        tools = None if tools is None else list(tools)
        with ExitStack() as stack:
            streams = []
            for messages in conversations:
                stream = self.stream(messages, tools, params, **options)
                streams.append(stack.enter_context(stream))
            for stream in streams:
                for _ in stream:
                    pass
            return [stream.finish() for stream in streams]

    def stream(
        self,
        messages: Messages,
        tools: Tools | None = None,
        params: SamplingParams | None = None,
        **options: Unpack[StreamOptions],
    ) -> "ChatStream":
        """The answer to a conversation, event by event."""
        tools = None if tools is None else list(tools)
        prompt_ids = self.format.encode(messages, tools, tokenizer=self.tokenizer)
        return self.answer(prompt_ids, tools, params, **options)

    def answer(
        self,
        prompt_ids: Sequence[int],
        tools: Tools | None = None,
        params: SamplingParams | None = None,
        **options: Unpack[StreamOptions],
    ) -> "ChatStream":
        """The same after a prompt whose ids are known."""
        tools = None if tools is None else list(tools)
        return ChatStream(self, prompt_ids, tools, params or self.defaults, **options)

    def complete(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
    ) -> "TextStream":
        """What the model writes after a prompt that is used as it stands, without a format."""
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        params = params or self.defaults
        return TextStream(self, ids, params, priority=priority, guide=self.guide(params))

    def step(self) -> None:
        """One step of the engine; every running stream takes what became its own."""
        try:
            with closing(self.engine.outputs()) as outputs:
                for output in outputs:
                    self._streams[output.request_id].receive(output)
        except BaseException:
            for request_id, stream in list(self._streams.items()):
                if not self.engine.is_unfinished(request_id):
                    stream.close()
            raise

    def attach(
        self,
        stream: "Stream[Any]",
        prompt_ids: Sequence[int],
        params: SamplingParams,
        **options: Unpack[RequestOptions],
    ) -> int:
        """Queues a stream's request and returns its id."""
        request_id = self.engine.add_request(prompt_ids, params, **options)
        self._streams[request_id] = stream
        return request_id

    def guide(
        self, params: SamplingParams, format: Format | None = None, tools: Tools | None = None
    ) -> Guide | None:
        """What holds an answer to its grammar, if it has one; a format tells its thought."""
        if not (params.is_constrained or params.strict_tools):
            return None
        if self._vocabulary is None:  # seconds with a large vocabulary
            self._vocabulary = Vocabulary(
                self.tokenizer,
                vocab_size=self.engine.model.config.vocab_size,
                eos_token_ids=sorted(self.engine.eos_token_ids),
            )
        return make_guide(self._vocabulary, params, format=format, tools=read_tools(tools))

    def detach(self, request_id: int) -> None:
        """Ends a request, whatever its state; its stream takes nothing more."""
        self.engine.abort(request_id)
        self._streams.pop(request_id, None)


class Stream(ABC, Generic[T]):
    """A running request as text, or as what a subclass makes of text.

    Close a stream that is not read to its end; `with` does.
    """

    def __init__(
        self,
        llm: LLM,
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
            num_begun=len(self.begun_ids),
            num_repetitive=sum(1 for _ in likely),
            priority=priority,
            guide=guide,
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
        if self.finish_reason is not None:
            self._llm.detach(self.request_id)

    def _take_begun(self, token_id: int) -> Iterable[T]:
        """Takes a token of an answer that goes on from there."""
        items = self._read(self._stop.feed(self._detokenizer.feed([token_id])))
        if self._stop.is_found:
            raise ValueError("the answer that was begun has a stop text in it, it cannot go on")
        return items

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
        llm: LLM,
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
        engine = self._llm.engine
        if self._forced:
            engine.force(self.request_id, self._forced)
            self._forced.clear()
        if self._nudge is not None:
            engine.nudge(self.request_id, self._nudge.token_id, self._nudge.bias)

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


class StopTexts:
    """Passes text through until one of the stop texts appears, which is cut off.

    The stop text that begins first counts, however the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max((len(stop) for stop in stops), default=1)
        self._held = ""
        self.is_found = False

    def feed(self, piece: str, *, is_last: bool = False) -> str:
        """What can be passed on; what may be the beginning of a stop text waits for more."""
        if self.is_found:
            return ""
        text = self._held + piece
        open_at = len(text) if is_last else self._find_open(text)
        begins = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if begins and min(begins) <= open_at:
            self.is_found = True
            return text[: min(begins)]
        self._held = text[open_at:]
        return text[:open_at]

    def _find_open(self, text: str) -> int:
        """Where the first stop text begins that the end of text leaves open; else text's end."""
        for start in range(max(len(text) - self._longest + 1, 0), len(text)):
            rest = text[start:]
            if any(len(stop) > len(rest) and stop.startswith(rest) for stop in self._stops):
                return start
        return len(text)


def recommended_sampling(name: str, folder: Path, format: Format) -> SamplingParams:
    """The sampling of generation_config.json, else of the model's card, else of its family; and the
    thinking budget that the card says it was trained to.

    A field that is null is absent, and a top_k of 0 means none: so the hub's libraries write them.
    """
    card = get_card(name) if name.lower() in (card.name for card in list_cards()) else None
    params = _generation_config(folder / "generation_config.json")
    if params is None and card is not None:
        params = SamplingParams(**asdict(card.sampling))
    if params is None:
        params = SamplingParams(top_k=None if format.name == "minimax_m1" else 40)
    return replace(params, thinking_budget=card.thinking_budget) if card is not None else params


def _generation_config(file: Path) -> SamplingParams | None:
    given = read_json(file) if file.exists() else {}
    fields: dict[str, Any] = {
        key: given[key]
        for key in ("temperature", "top_p", "top_k", "min_p")
        if given.get(key) is not None
    }
    if fields.get("top_k") == 0:
        fields["top_k"] = None
    if given.get("do_sample") is False:
        fields["temperature"] = 0
    if not fields:
        return None
    try:
        return SamplingParams(**({"top_k": None, "top_p": 1.0} | fields))
    except ValueError as error:
        raise ValueError(f"{error}, see {file}") from None
