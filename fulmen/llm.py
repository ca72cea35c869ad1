"""Checkpoint, engine and chat format behind one object: messages in, Reply out.

    messages -> format.encode -> engine -> token -> detokenizer -> stop texts -> parser -> events ->
    Reply

Here ids become text and text becomes ids, once each way. What needs text happens here, between the
engine's steps: stop texts abort a request, a thought over its budget gets its closing tag forced.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fulmen.chat import Event, Format, Message, Reply, Tokenizer, Tool, load_format
from fulmen.engine import Engine, EngineConfig, FinishReason, TokenOutput
from fulmen.models import Model, OnProgress, get_card, list_cards, load_model, resolve
from fulmen.sampling import SamplingParams

Messages = Iterable[Message | Mapping[str, Any]]
Tools = Iterable[Tool | Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer and what it took."""

    reply: Reply
    finish_reason: FinishReason | None
    """None while the request still runs."""
    prompt_ids: tuple[int, ...]
    outputs: tuple[TokenOutput, ...]
    """Every sampled token with its log-probability, the end-of-turn token included."""
    num_thinking_tokens: int


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
    ) -> None:
        self.tokenizer = tokenizer
        self.format = format
        self.defaults = defaults or SamplingParams()
        """How the model's makers recommend to sample it."""
        self.engine = Engine(model, engine_config, eos_token_ids=tokenizer.eos_token_ids)
        self._outputs: dict[int, deque[TokenOutput]] = {}

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: torch.dtype | None = None,
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
        model = load_model(folder, dtype=dtype)
        defaults = recommended_sampling(name, folder)
        return cls(model, tokenizer, format, engine_config=engine_config, defaults=defaults)

    def chat(
        self, messages: Messages, tools: Tools | None = None, params: SamplingParams | None = None
    ) -> Completion:
        """The whole answer to a conversation."""
        stream = self.stream(messages, tools, params)
        for _ in stream:
            pass
        return stream.finish()

    def stream(
        self, messages: Messages, tools: Tools | None = None, params: SamplingParams | None = None
    ) -> "ChatStream":
        """The answer to a conversation, event by event."""
        tools = None if tools is None else list(tools)
        prompt_ids = self.format.encode(messages, tools, tokenizer=self.tokenizer)
        return ChatStream(self, prompt_ids, tools, params or self.defaults)

    def complete(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None
    ) -> "TextStream":
        """What the model writes after a prompt that is used as it stands, without a chat format."""
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return TextStream(self, ids, params or self.defaults)

    def next_output(self, request_id: int) -> TokenOutput:
        """The next token of a request; steps the engine, and keeps what other requests got."""
        queue = self._outputs.setdefault(request_id, deque())
        while not queue:
            for output in self.engine.step():
                self._outputs.setdefault(output.request_id, deque()).append(output)
        return queue.popleft()

    def forget(self, request_id: int) -> None:
        """Ends a request, whatever its state."""
        self.engine.abort(request_id)
        self._outputs.pop(request_id, None)


class TextStream:
    """A running request as text: iterate for one piece a token, which may be empty."""

    def __init__(self, llm: LLM, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        self._llm = llm
        self.prompt_ids = tuple(prompt_ids)
        self.request_id = llm.engine.add_request(prompt_ids, params)
        self.outputs: list[TokenOutput] = []
        self.finish_reason: FinishReason | None = None
        self._detokenizer = llm.tokenizer.detokenizer()
        self._stop = StopTexts(params.stop)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.finish_reason is not None:
            raise StopIteration
        output = self._llm.next_output(self.request_id)
        self.outputs.append(output)
        self.finish_reason = output.finish_reason
        text = ""
        if output.finish_reason != "stop":  # the id that ended the answer is no part of its text
            text = self._detokenizer.feed([output.token_id])
        if output.finish_reason is not None:
            text += self._detokenizer.flush()
        text = self._stop.feed(text)
        if self._stop.is_found:
            self.finish_reason = "stop"
        elif self.finish_reason is not None:
            text += self._stop.flush()
        if self.finish_reason is not None:
            self._llm.forget(self.request_id)
        return text

    def close(self) -> None:
        """Ends the request now, if it still runs."""
        if self.finish_reason is None:
            self.finish_reason = "abort"
            self._llm.forget(self.request_id)


class ChatStream:
    """A running answer: iterate for its events, `finish` for what they came to."""

    def __init__(
        self,
        llm: LLM,
        prompt_ids: Sequence[int],
        tools: Sequence[Tool | Mapping[str, Any]] | None,
        params: SamplingParams,
    ) -> None:
        self._llm = llm
        self._budget = params.thinking_budget
        self._parser = llm.format.parser(tools, llm.format.thinking_open_in_prompt)
        self._pieces = TextStream(llm, prompt_ids, params)
        self._num_thinking_tokens = 0
        self._events: deque[Event] = deque()
        self._limit_thinking()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        while not self._events:
            is_thinking = self._parser.is_thinking
            piece = next(self._pieces, None)
            if piece is None:
                raise StopIteration
            self._num_thinking_tokens += is_thinking
            self._events.extend(self._parser.feed(piece))
            self._limit_thinking()
            if self._pieces.finish_reason is not None:
                self._events.extend(self._parser.finish_events())
        return self._events.popleft()

    def _limit_thinking(self) -> None:
        """Forces the end of a thought that has used up its budget, once."""
        if self._budget is None or self._pieces.finish_reason is not None:
            return
        if self._parser.is_thinking and self._num_thinking_tokens >= self._budget:
            self._budget = None
            forced_end = self._llm.format.thinking_forced_end
            assert forced_end is not None  # a format without an end of thought never thinks
            self._llm.engine.force(self._pieces.request_id, self._llm.tokenizer.encode(forced_end))

    def close(self) -> None:
        """Ends the answer now; `finish` then returns what there is."""
        self._pieces.close()

    def finish(self) -> Completion:
        """Ends the answer if it still runs, and returns what it came to."""
        self.close()
        return Completion(
            self._parser.finish(),
            self._pieces.finish_reason,
            self._pieces.prompt_ids,
            tuple(self._pieces.outputs),
            self._num_thinking_tokens,
        )


class StopTexts:
    """Passes text through until one of the stop texts appears, which is cut off."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.is_found = False

    def feed(self, piece: str) -> str:
        """What can be passed on: nothing that may be the beginning of a stop text."""
        text, self._held = self._held + piece, ""
        if self.is_found:
            return ""
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.is_found = True
            return text[: min(found)]
        held = max((self._overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What was held back, when no more comes."""
        text, self._held = self._held, ""
        return text

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of text that begins stop."""
        longest = min(len(text), len(stop) - 1)
        return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def recommended_sampling(name: str, folder: Path) -> SamplingParams:
    """The sampling of generation_config.json, else of the model's card, else what M2's makers
    recommend."""
    file = folder / "generation_config.json"
    given = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    fields = {key: given[key] for key in ("temperature", "top_p", "top_k") if key in given}
    if fields:
        return replace(SamplingParams(top_k=None, top_p=1.0), **fields)
    if name.lower() in (card.name for card in list_cards()):
        return SamplingParams(**asdict(get_card(name).sampling))
    return SamplingParams()
