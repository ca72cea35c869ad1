"""vLLM's protocol: POST /v1/completions with a prompt of ids and return_token_ids.

Each event holds the ids since the last one. The log-probabilities are those of the model alone
(logprobs_mode raw_logprobs, the default), whatever the temperature.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fulmen.engine import PromptLogprob
from fulmen.llm.upstream.wire import (
    Chunk,
    Draw,
    Drawn,
    checked_count,
    checked_id,
    checked_list,
    checked_logprob,
    lie,
    mapping,
    read_end,
    refuse_error,
)

NAME: Final = "vLLM"


class VllmWire:
    """Protocol of a vLLM server."""

    name = NAME
    path = "/v1/completions"

    def __init__(self, vocab_size: int, *, model: str) -> None:
        """model: name that the server lists it under"""
        self._vocab_size = vocab_size
        self._model = model

    def body(self, draw: Draw) -> dict[str, Any]:
        """Return the request for a stream of tokens."""
        params = draw.params
        # What is left out, the server takes from the checkpoint's generation_config.json.
        body = {
            "model": self._model,
            "prompt": list(draw.ids),
            "max_tokens": draw.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": 0 if params.top_k is None else params.top_k,
            "min_p": params.min_p,
            "repetition_penalty": 1.0,
            "stop_token_ids": list(draw.stop_token_ids),
            "ignore_eos": params.ignore_eos,
            "seed": draw.seed,
            "logprobs": params.logprobs or 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if draw.logit_bias:
            body["logit_bias"] = {str(key): value for key, value in draw.logit_bias.items()}
        return body

    def reader(self, draw: Draw) -> "VllmReader":
        """Return what reads the answer to it."""
        return VllmReader(draw, self._vocab_size)

    def max_tokens(self, draw: Draw) -> int:
        """Return the most tokens that one request is good for: all, its events are as small at the
        end as at the beginning."""
        return draw.max_tokens

    def score_body(self, ids: Sequence[int], start: int, num_top: int) -> dict[str, Any]:
        """Return the request for the log-probabilities of ids. vLLM tells those of all: the prompt
        is read whole, whatever is in the cache."""
        return {
            "model": self._model,
            "prompt": list(ids),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": num_top,
            "return_token_ids": True,
        }

    def read_scores(
        self, answer: Mapping[str, Any], ids: Sequence[int], start: int, num_top: int
    ) -> list[PromptLogprob]:
        """Return the log-probabilities of ids from a place on. Raises PeerError."""
        refuse_error(NAME, answer)
        choices = checked_list(NAME, answer.get("choices"), "choices")
        first = mapping(choices[0]) if choices else {}
        entries = checked_list(NAME, first.get("prompt_logprobs"), "prompt_logprobs")
        if len(entries) != len(ids):
            raise lie(NAME, f"log-probabilities of {len(entries)} tokens of {len(ids)}")
        return [
            self._score(token_id, mapping(entry), num_top)
            for token_id, entry in zip(ids[start:], entries[start:], strict=True)
        ]

    def _score(self, token_id: int, entry: Mapping[str, Any], num_top: int) -> PromptLogprob:
        """Return one token of a prompt; the entry has its own log-probability and the best ones."""
        values = {
            checked_id(NAME, _as_id(key), self._vocab_size): checked_logprob(
                NAME, mapping(value).get("logprob")
            )
            for key, value in entry.items()
        }
        if token_id not in values:
            raise lie(NAME, "log-probabilities of other ids than it was given")
        return PromptLogprob(token_id, values[token_id], _best(values, num_top))


class VllmReader:
    """Reads the events of one stream."""

    def __init__(self, draw: Draw, vocab_size: int) -> None:
        self._prompt = list(draw.ids)
        self._num_top = draw.params.logprobs or 0
        self._max_tokens = draw.max_tokens
        self._vocab_size = vocab_size
        self._num_tokens = 0

    def read(self, event: Mapping[str, Any]) -> Chunk:
        """Return what an event brings. Raises PeerError."""
        refuse_error(NAME, event)
        choices = checked_list(NAME, event.get("choices"), "choices")
        if not choices:
            return Chunk(num_cached_tokens=self._cached(event.get("usage")))
        choice = mapping(choices[0])
        prompt = choice.get("prompt_token_ids")
        if prompt is not None and prompt != self._prompt:
            raise lie(NAME, "an answer to other ids than it was given")
        ids = choice.get("token_ids")
        if ids is None and (choice.get("text") or not choice.get("finish_reason")):
            raise lie(NAME, "text without token ids, vLLM 0.10.2 or later is needed")
        tokens = self._tokens(checked_list(NAME, ids or [], "token_ids"), choice.get("logprobs"))
        self._num_tokens += len(tokens)
        if self._num_tokens > self._max_tokens:
            raise lie(NAME, f"{self._num_tokens} tokens, it was asked for {self._max_tokens}")
        return Chunk(tokens, read_end(NAME, choice.get("finish_reason")))

    def _cached(self, usage: object) -> int | None:
        """Return the tokens that were in the cache; the usage's count of tokens must be right."""
        total = mapping(usage).get("completion_tokens")
        if total is not None and total != self._num_tokens:
            raise lie(NAME, f"a count of {total!r} tokens where {self._num_tokens} came")
        cached = mapping(mapping(usage).get("prompt_tokens_details")).get("cached_tokens")
        return None if cached is None else checked_count(NAME, cached, "a cached_tokens")

    def _tokens(self, ids: list[Any], logprobs: object) -> list[Drawn]:
        if not ids:
            return []
        known = checked_list(NAME, mapping(logprobs).get("token_logprobs"), "token_logprobs")
        tops = mapping(logprobs).get("top_logprobs") or [None] * len(ids)
        if len(known) != len(ids) or len(tops) != len(ids):
            raise lie(NAME, f"{len(ids)} ids and {len(known)} log-probabilities")
        return [
            Drawn(
                checked_id(NAME, token_id, self._vocab_size),
                checked_logprob(NAME, logprob),
                self._top(top) if self._num_top else (),
            )
            for token_id, logprob, top in zip(ids, known, tops, strict=True)
        ]

    def _top(self, entry: object) -> tuple[tuple[int, float], ...]:
        """Return the best of an entry, which may hold the drawn token besides."""
        values = {
            checked_id(NAME, _as_id(key), self._vocab_size): checked_logprob(NAME, value)
            for key, value in mapping(entry).items()
        }
        return _best(values, self._num_top)


def _best(values: Mapping[int, float], number: int) -> tuple[tuple[int, float], ...]:
    """Return the likeliest ids, best first, the lowest id first on a tie."""
    best = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    return tuple(best[:number])


def _as_id(key: str) -> int | str:
    """Return the id in "token_id:5" or "5"."""
    digits = key.removeprefix("token_id:")
    return int(digits) if digits.isdecimal() and len(digits) < 12 else key
