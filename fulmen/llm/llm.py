"""Checkpoint, engine and chat format behind one object: messages in, Reply out.

    messages -> format.encode -> engine -> token -> detokenizer -> stop texts -> parser -> Reply

Here ids become text and text becomes ids, once each way. What needs text is decided here, after
every token: a stop text ends a request, a thought near the end of its budget is led to its closing
tag (`thinking.py`). It is decided when a token is made, not when someone reads it, so an answer
never depends on who reads which stream when.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Unpack

import torch

from fulmen.catalog import OnProgress, recommended_sampling, resolve
from fulmen.chat import (
    ChatFormat,
    Guide,
    Message,
    Tokenizer,
    Tool,
    Vocabulary,
    load_format,
    make_guide,
    read_tools,
)
from fulmen.checkpoints import fingerprint, load_model
from fulmen.engine import Engine, EngineConfig, Origin
from fulmen.llm.stream import (
    ChatStream,
    Completion,
    RequestOptions,
    Stream,
    StreamOptions,
    TextStream,
)
from fulmen.models import Model
from fulmen.sampling import SamplingParams

Messages = Iterable[Message | Mapping[str, Any]]
Tools = Iterable[Tool | Mapping[str, Any]]


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
        defaults = recommended_sampling(name, folder, format.name)
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
            self.engine.step()  # which tells every stream
        except BaseException:
            for request_id, stream in list(self._streams.items()):
                if not self.engine.is_unfinished(request_id):
                    stream.close()
            raise
        for request_id in list(self._streams):
            if not self.engine.is_unfinished(request_id):
                del self._streams[request_id]

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
        self, params: SamplingParams, format: ChatFormat | None = None, tools: Tools | None = None
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
