"""Replies of OpenAI's Completions: updates become chunks, or one object.

    the prompt, with echo -> text ... -> finish_reason -> usage -> [DONE]

Choices are numbered prompt by prompt: answer j to prompt i has the index i * n + j. What the model
thinks of a prompt is told when its answer ends, so a stream that wants it has one chunk a choice.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fulmen.chat import ContentDelta, Token, Tokenizer
from fulmen.server.answers import Answers
from fulmen.server.asking import End, Progress, Update
from fulmen.server.errors import Refusal
from fulmen.server.openai_completions import CompletionsCall
from fulmen.server.openai_reply import LOWEST_LOGPROB, finish_reason, token_by_id, usage
from fulmen.server.sse import DONE, comment, frame


@dataclass
class CompletionsWriter:
    """The replies to one request."""

    call: CompletionsCall
    answers: Answers
    tokenizer: Tokenizer | None
    created: int = field(default_factory=lambda: int(time.time()))
    _places: dict[int, "_Place"] = field(default_factory=dict)

    def whole(self, ends: Sequence[End]) -> dict[str, Any]:
        """Return the answers as one object."""
        ends = sorted(ends, key=lambda end: end.index)
        return {
            **self._head(),
            "choices": [self._choice(end.index, finish=end, **self._all(end)) for end in ends],
            "usage": self._usage(ends),
            "fulmen": self.answers.report.to_dict(),
        }

    def begin(self) -> Iterator[bytes]:
        """Yield the prompt of each choice, if the request wants it back."""
        call = self.call
        if not (call.has_echo or call.has_token_ids) or self._is_in_one:
            return
        for index in range(call.ask.num_all_answers):
            yield self._chunk(self._choice(index, text=self._echo(index), prompt=True))

    def update(self, update: Update) -> Iterator[bytes]:
        """Yield the chunks of an update."""
        if self._is_in_one or not self.call.has_new_tokens:
            return
        texts = [event.text for event in update.events if isinstance(event, ContentDelta)]
        if not texts and (self.call.has_logprobs or self.call.has_token_ids):
            texts = [""] if update.tokens else []
        for number, text in enumerate(texts):
            tokens = update.tokens if number == 0 else ()
            self._place(update.index).num_tokens += len(tokens)
            yield self._chunk(self._choice(update.index, text=text, tokens=tokens))

    def progress(self, progress: Progress) -> Iterator[bytes]:
        """Yield a sign of life."""
        yield comment(f"ping {progress.num_read_tokens}/{progress.num_prompt_tokens} prompt tokens")

    def end(self, end: End) -> Iterator[bytes]:
        """Yield the last chunk of a choice."""
        if self._is_in_one:
            yield self._chunk(self._choice(end.index, finish=end, **self._all(end)))
            return
        left = end.completion.tokens[self._place(end.index).num_tokens :]
        tokens = left if self.call.has_new_tokens else ()
        yield self._chunk(self._choice(end.index, tokens=tokens, finish=end))

    def finish(self, ends: Sequence[End]) -> Iterator[bytes]:
        """Yield the usage and the end of the stream."""
        ends = sorted(ends, key=lambda end: end.index)
        if self.call.has_usage:
            report = self.answers.report.to_dict()
            yield frame(
                {**self._head(), "choices": [], "usage": self._usage(ends), "fulmen": report}
            )
        yield DONE

    def fail(self, refusal: Refusal, request_id: str) -> Iterator[bytes]:
        """Yield an error and the end of the stream."""
        yield frame(refusal.body("openai", request_id))
        yield DONE

    @property
    def _is_in_one(self) -> bool:
        """True if a choice of a stream is one chunk, since it begins with what is known last."""
        return self.call.has_echo and self.call.has_logprobs

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.answers.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.call.ask.model,
        }

    def _chunk(self, choice: Mapping[str, Any]) -> bytes:
        chunk = {**self._head(), "choices": [choice]}
        if self.call.has_usage:
            chunk["usage"] = None
        return frame(chunk)

    def _all(self, end: End) -> dict[str, Any]:
        """Return all of a choice at once."""
        text: str = ""
        tokens: Sequence[Token] = ()
        if self.call.has_new_tokens:
            text, tokens = end.shown.content, end.completion.tokens
        prompt_tokens = end.completion.prompt_tokens if self._is_in_one else None
        return {
            "text": self._echo(end.index) + text,
            "tokens": tokens,
            "prompt": True,
            "prompt_tokens": prompt_tokens,
        }

    def _choice(
        self,
        index: int,
        *,
        text: str = "",
        tokens: Sequence[Token] = (),
        prompt: bool = False,
        prompt_tokens: Sequence[Token] | None = None,
        finish: End | None = None,
    ) -> dict[str, Any]:
        """Return a choice, or a piece of one.

        prompt         it begins with the prompt
        prompt_tokens  tokens of the prompt from its second on, if their log-probabilities are shown
        finish         end of the answer, where the piece is the last
        """
        choice: dict[str, Any] = {
            "index": index,
            "text": text,
            "logprobs": None,
            "finish_reason": None if finish is None else finish_reason(finish),
        }
        if self.call.has_logprobs and (tokens or prompt_tokens is not None):
            choice["logprobs"] = self._logprobs(index, tokens, prompt_tokens)
        if self.call.has_token_ids:
            if prompt:
                choice["prompt_token_ids"] = list(self._prompt_ids(index))
            choice["token_ids"] = [token.token_id for token in tokens]
        return choice

    def _logprobs(
        self, index: int, tokens: Sequence[Token], prompt_tokens: Sequence[Token] | None
    ) -> dict[str, Any]:
        """Return OpenAI's columns: the first token of a prompt has no log-probability, and none has
        one that the model does not tell."""
        assert self.tokenizer is not None
        place = self._place(index)
        ids = [token.token_id for token in tokens]
        offsets = place.offsets(self.tokenizer, ids)
        shown: list[Token | None] = list(tokens)
        if prompt_tokens is not None:
            prompt_ids = self._prompt_ids(index)
            ids = [*prompt_ids, *ids]
            offsets = [*_offsets_in(self._echo(index), prompt_ids, self.tokenizer), *offsets]
            num_unknown = len(prompt_ids) - len(prompt_tokens)
            shown = [*[None] * num_unknown, *prompt_tokens, *shown]
        return {
            "tokens": [self._shown(each) for each in ids],
            "token_logprobs": [None if each is None else _finite(each.logprob) for each in shown],
            "top_logprobs": [None if each is None else self._top(each) for each in shown],
            "text_offset": offsets,
        }

    def _top(self, token: Token) -> dict[str, float]:
        """Return the likeliest tokens at a place, and the one that stands there."""
        top: dict[str, float] = {}
        for token_id, logprob in (*token.top_logprobs, (token.token_id, token.logprob)):
            top.setdefault(self._shown(token_id), _finite(logprob))
        return top

    def _shown(self, token_id: int) -> str:
        assert self.tokenizer is not None
        if self.call.shows_ids:
            return token_by_id(token_id)
        return shown_token(self.tokenizer, token_id)

    def _place(self, index: int) -> "_Place":
        if index not in self._places:
            self._places[index] = _Place(len(self._echo(index)))
        return self._places[index]

    def _prompt_ids(self, index: int) -> Sequence[int]:
        prompt = self.answers.prepared.requests[index // self.call.ask.num_answers].prompt
        return () if prompt is None else prompt.ids

    def _echo(self, index: int) -> str:
        """Return the prompt of a choice, where it is repeated."""
        if not self.call.has_echo:
            return ""
        text = self.call.ask.texts[index // self.call.ask.num_answers]
        if isinstance(text, str):
            return text
        assert self.tokenizer is not None
        return self.tokenizer.decode(text)

    def _usage(self, ends: Sequence[End]) -> dict[str, Any]:
        """Return the tokens of all prompts and of their answers."""
        n = self.call.ask.num_answers
        each = [usage(ends[start : start + n]) for start in range(0, len(ends), n)]
        total = _sum(each)
        if not self.call.has_new_tokens:
            total |= {"completion_tokens": 0, "total_tokens": total["prompt_tokens"]}
        return total


@dataclass(slots=True)
class _Place:
    """Place that a choice has come to."""

    num_chars: int
    """Characters so far; those of the prompt are part of it, if it is repeated"""
    num_tokens: int = 0
    """New tokens that were sent"""
    detokenizer: Any = None

    def offsets(self, tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
        """Return the characters before each of the next tokens."""
        if self.detokenizer is None:
            self.detokenizer = tokenizer.detokenizer()
        offsets = []
        for token_id in ids:
            begin = self.num_chars
            self.num_chars += len(self.detokenizer.feed([token_id]))
            own = _text_of(tokenizer, token_id)
            # What comes with a token may begin with a mark for bytes that became no character.
            offsets.append(begin if own is None else max(begin, self.num_chars - len(own)))
        return offsets


def _offsets_in(text: str, ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return the characters of a prompt before each of its tokens. What the tokenizer put before
    the text has no place in it, and stands at 0."""
    place = _Place(0)
    offsets = place.offsets(tokenizer, ids)
    num_added = max(0, place.num_chars - len(text))
    return [min(max(0, offset - num_added), len(text)) for offset in offsets]


def shown_token(tokenizer: Tokenizer, token_id: int) -> str:
    """Return a token as OpenAI shows it: its text, or its bytes where they are no whole characters,
    so that two such tokens differ."""
    text = _text_of(tokenizer, token_id)
    if text is not None:
        return text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in tokenizer.token_bytes(token_id))


def _text_of(tokenizer: Tokenizer, token_id: int) -> str | None:
    """Return the text of a token; None if it begins or ends within a character."""
    try:
        return tokenizer.token_bytes(token_id).decode()
    except UnicodeDecodeError:
        return None


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB


def _sum(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return objects of numbers added up, field by field."""
    return {
        name: _sum([value[name] for value in values])
        if isinstance(first, Mapping)
        else sum(value[name] for value in values)
        for name, first in values[0].items()
    }
