"""A checkpoint, an engine and a chat format behind one object, without threads or an event loop.

    llm.chat(messages)      -> Completion        the whole answer
    llm.stream(messages)    -> Stream of events  the answer as it comes
    llm.generate(text)      -> Completion        a text continued as it stands

Each takes the fields of `ChatRequest` by name, or a request. Reading a stream steps the engine for
all that run. Many callers in one event loop share a model through `local.py`.
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Self

import torch

from fulmen.catalog import (
    Language,
    OnProgress,
    checkpoint_card,
    recommended_sampling,
    resolve,
)
from fulmen.chat import (
    ChatFormat,
    ChatRequest,
    Completion,
    ContentDelta,
    Event,
    Message,
    Token,
    Tokenizer,
    as_request,
    load_format,
    text_request,
)
from fulmen.checkpoints import fingerprint, load_model, read_config
from fulmen.engine import Engine, EngineConfig, Origin
from fulmen.llm.answer import Answer
from fulmen.llm.preparation import Preparation, end_ids
from fulmen.models import Model
from fulmen.sampling import FinishReason, SamplingParams

Messages = Iterable[Message | Mapping[str, Any]]


class LLM:
    """One model, ready to answer."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        format: ChatFormat,
        *,
        engine_config: EngineConfig | None = None,
        defaults: SamplingParams | None = None,
        folder: Path | None = None,
        ignore_config_fields: Sequence[str] = (),
    ) -> None:
        """folder is where the model was loaded from, ignoring these fields of its config.json;
        sessions on disk need to know."""
        self.tokenizer = tokenizer
        self.format = format
        self.defaults = defaults or SamplingParams()
        """Recommended sampling of the model"""
        self.engine = Engine(model, engine_config, eos_token_ids=end_ids(tokenizer, format))
        self._folder = folder
        self._ignore_config_fields = tuple(ignore_config_fields)
        self._fingerprint: str | None = None
        self._fingerprint_version = 0
        """`Engine.policy_version` that the fingerprint is of"""
        self._preparation = Preparation(
            tokenizer,
            format,
            vocab_size=model.config.vocab_size,
            eos_token_ids=self.engine.eos_token_ids,
        )

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        engine_config: EngineConfig | None = None,
        on_progress: OnProgress | None = None,
        ignore_config_fields: Sequence[str] = (),
    ) -> "LLM":
        """Load a model by path, catalog name or hub id, and fetch it first if it is not here.

        on_progress           called with the bytes so far and in all while something is fetched
        ignore_config_fields  names of fields of config.json that count as absent: those that stop
                              the load and are known not to matter
        """
        folder = resolve(name, on_progress=on_progress)
        if not folder.is_dir():
            raise ValueError(f"{folder} is a file, a checkpoint folder or a GGUF is needed")
        read_config(folder, ignore_config_fields=ignore_config_fields)  # first of all: what it is
        tokenizer, format = Tokenizer.from_folder(folder), load_format(folder)
        defaults = recommended_sampling(name, folder, format.name)
        model = load_model(
            folder, dtype=dtype, device=device, ignore_config_fields=ignore_config_fields
        )
        return cls(
            model,
            tokenizer,
            format,
            engine_config=engine_config,
            defaults=defaults,
            folder=folder,
            ignore_config_fields=ignore_config_fields,
        )

    @property
    def origin(self) -> Origin:
        """Weights and numerics: all that states depend on besides their tokens."""
        if self._fingerprint is None:
            if self._folder is None:
                raise ValueError("the model was not loaded from a folder, a session needs one")
            self._fingerprint = fingerprint(
                self._folder, ignore_config_fields=self._ignore_config_fields
            )
        if self._fingerprint_version != self.engine.policy_version:
            # The weights are no folder's any more: a name that no other process will come upon.
            self._fingerprint = secrets.token_hex(32)
            self._fingerprint_version = self.engine.policy_version
        return Origin(model=self._fingerprint, numerics=self.engine.numerics)

    def card(self, name: str) -> dict[Language, str]:
        """Return a short card of the model in Markdown, in English and in German. name is the one
        that it was loaded by."""
        return checkpoint_card(
            self.engine.model.config,
            self._folder,
            name=name,
            has_thoughts=self.format.thinking is not None,
            has_tools=self.format.calls is not None,
        )

    def chat(self, messages: ChatRequest | Messages = (), **fields: Any) -> Completion:
        """Return the whole answer to a conversation. fields are those of `ChatRequest`."""
        with self.stream(messages, **fields) as stream:
            return stream.read()

    def chat_many(self, requests: Iterable[ChatRequest]) -> list[Completion]:
        """Return the whole answers to several requests, computed together."""
        with ExitStack() as stack:
            streams = [stack.enter_context(self.stream(request)) for request in requests]
            return [stream.read() for stream in streams]

    def stream(self, messages: ChatRequest | Messages = (), **fields: Any) -> "Stream":
        """Return the answer event by event. fields are those of `ChatRequest`."""
        return Stream(self, self.start(self.prepare(as_request(messages, **fields))))

    def generate(self, prompt: str | Sequence[int], **fields: Any) -> Completion:
        """Return what the model writes after a text or ids that are used as they stand."""
        with self.stream_text(prompt, **fields) as stream:
            return stream.read()

    def stream_text(self, prompt: str | Sequence[int], **fields: Any) -> "Stream":
        """Return the continuation of a text or ids, event by event; all of it is content."""
        return self.stream(text_request(prompt, **fields))

    def step(self) -> None:
        """Run one step of the engine: every running answer reads its new tokens."""
        self.engine.step()

    def load_weights(self, model: Model, *, running: Literal["end", "continue"] = "end") -> int:
        """Take a model's weights, in place, between two steps; return the new policy_version. What
        runs ends with finish_reason abort, or continues; see `Engine.load_weights`."""
        return self.engine.load_weights(model, running=running)

    def prepare(self, request: ChatRequest) -> Answer:
        """Return the answer to a request, yet to be started: its prompt is rendered and encoded and
        its grammar made. Any thread may do this."""
        return self._preparation.prepare(request, self.defaults)

    def prepare_next(self, answer: Answer, request: ChatRequest, number: int) -> Answer:
        """Return the answer after `number` others to one request, yet to be started. answer is the
        first, whose prompt is not rendered again; its seed and the number make the seed."""
        return self._preparation.prepare_next(answer, request, number)

    def start(self, answer: Answer) -> Answer:
        """Queue an answer's request: it comes with the engine's steps."""
        try:
            request_id = self.engine.add_request(
                [*answer.prompt.ids, *answer.prefix_ids],
                answer.params,
                num_prefix_ids=len(answer.prefix_ids),
                num_repetitive=answer.num_repetitive,
                first_scored=answer.first_scored,
                priority=answer.priority,
                steering=answer,
            )
        except BaseException:
            answer.cancel()
            raise
        answer.started(request_id)
        return answer

    def end(self, answer: Answer, error: Exception | None = None) -> None:
        """End an answer now, if it still runs, and free what it owns; with an error, because of
        that."""
        if answer.finish_reason is None:
            if answer.request_id is None:
                answer.cancel()
            else:
                self.engine.abort(answer.request_id)
        if error is None:
            answer.abort()
        else:
            answer.fail(error)


class Stream:
    """A running answer: iterate for its events, `finish` for everything they came to.

    Close a stream that is not read to its end; `with` does.
    """

    def __init__(self, llm: LLM, answer: Answer) -> None:
        self._llm = llm
        self._answer = answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Event]:
        for events in self.updates():
            yield from events

    def updates(self) -> Iterator[list[Event]]:
        """Yield the new events after each step of the engine; none while the prompt is read.

        Raises the error that ended the answer, if one did.
        """
        answer = self._answer
        while True:
            events = answer.take_events()
            if not events and answer.finish_reason is None:
                self._llm.step()
                events = answer.take_events()
            elif not events:
                break
            yield events
        answer.raise_error()

    def texts(self) -> Iterator[str]:
        """Yield the text of the content, piece by piece."""
        for event in self:
            if isinstance(event, ContentDelta):
                yield event.text

    def read(self) -> Completion:
        """Read the answer to its end and return everything it came to."""
        for _ in self:
            pass
        return self.finish()

    @property
    def tokens(self) -> Sequence[Token]:
        """New tokens so far."""
        return self._answer.tokens

    @property
    def prefix_events(self) -> Sequence[Event]:
        """Events of the prefix that the answer was told to begin with."""
        return self._answer.prefix_events

    @property
    def finish_reason(self) -> FinishReason | None:
        """Reason why the answer ended; None while it runs."""
        return self._answer.finish_reason

    def close(self) -> None:
        """End the answer now, if it still runs."""
        self._llm.end(self._answer)

    def finish(self) -> Completion:
        """End the answer if it still runs, and return everything it came to.

        Raises the error that ended it, if one did.
        """
        self.close()
        self._answer.raise_error()
        return self._answer.completion()
