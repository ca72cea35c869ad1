"""SGLang's own protocol: POST /generate with input_ids.

Each event holds all ids so far, or, where the server was started with
--incremental-streaming-output, those since the last event; the count of completion_tokens tells the
two apart. All ids in each event are a number of bytes that grows with the square of the answer, so
such a server is asked for a few hundred tokens at a time.
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

NAME: Final = "SGLang"
_MAX_REPEATED: Final = 512
"""Tokens of one request to a server that repeats all of them in each event"""
_MIN_REPEATED: Final = 32


class SGLangWire:
    """Protocol of an SGLang server."""

    name = NAME
    path = "/generate"

    def __init__(self, vocab_size: int, *, is_incremental: bool = False) -> None:
        """is_incremental: the server sends new ids only, as far as it told"""
        self._vocab_size = vocab_size
        self._is_incremental = is_incremental

    def body(self, draw: Draw) -> dict[str, Any]:
        """Return the request for a stream of tokens."""
        params = draw.params
        sampling = {
            "max_new_tokens": draw.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": -1 if params.top_k is None else params.top_k,
            "min_p": params.min_p,
            "stop_token_ids": list(draw.stop_token_ids),
            "ignore_eos": params.ignore_eos,
            "sampling_seed": draw.seed,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "no_stop_trim": True,
        }
        if draw.logit_bias:
            sampling["logit_bias"] = {str(key): value for key, value in draw.logit_bias.items()}
        return {
            "input_ids": list(draw.ids),
            "sampling_params": sampling,
            "stream": True,
            "return_logprob": True,
            "logprob_start_len": -1,
            "top_logprobs_num": params.logprobs or 0,
        }

    def reader(self, draw: Draw) -> "SGLangReader":
        """Return what reads the answer to it."""
        return SGLangReader(draw, self._vocab_size)

    def max_tokens(self, draw: Draw) -> int:
        """Return the most tokens that one request is good for."""
        if self._is_incremental:
            return draw.max_tokens
        most = max(_MAX_REPEATED // (1 + (draw.params.logprobs or 0)), _MIN_REPEATED)
        return min(draw.max_tokens, most)

    def score_body(self, ids: Sequence[int], start: int, num_top: int) -> dict[str, Any]:
        """Return the request for the log-probabilities of ids from a place on."""
        return {
            "input_ids": list(ids),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            # The log-probability of the first id of this range is told as null: nothing is before.
            "logprob_start_len": start - 1,
            "top_logprobs_num": num_top,
        }

    def read_scores(
        self, answer: Mapping[str, Any], ids: Sequence[int], start: int, num_top: int
    ) -> list[PromptLogprob]:
        """Return the log-probabilities of those ids. Raises PeerError."""
        refuse_error(NAME, answer)
        meta = mapping(answer.get("meta_info"))
        wanted = ids[start:]
        entries = checked_list(NAME, meta.get("input_token_logprobs"), "input_token_logprobs")
        entries = entries[len(entries) - len(wanted) :] if len(entries) > len(wanted) else entries
        tops = meta.get("input_top_logprobs") if num_top else None
        tops = checked_list(NAME, tops, "input_top_logprobs")[-len(wanted) :] if num_top else []
        if len(entries) != len(wanted) or len(tops) != (len(wanted) if num_top else 0):
            raise lie(NAME, f"log-probabilities of {len(entries)} tokens of {len(wanted)}")
        found = [_entry(entry, self._vocab_size) for entry in entries]
        last = self._vocab_size - 1
        for token_id, (told, _) in zip(wanted, found, strict=True):
            # It tells 0 for the last id of the vocabulary, which stands for a picture there.
            if told != token_id and (told, token_id) != (0, last):
                raise lie(NAME, "log-probabilities of other ids than it was given")
        best = [_top(top, self._vocab_size) for top in tops] if num_top else [()] * len(found)
        return [
            PromptLogprob(token_id, logprob, top)
            for token_id, (_, logprob), top in zip(wanted, found, best, strict=True)
        ]


class SGLangReader:
    """Reads the events of one stream, whichever of the two kinds it is."""

    def __init__(self, draw: Draw, vocab_size: int) -> None:
        self._num_top = draw.params.logprobs or 0
        self._max_tokens = draw.max_tokens
        self._vocab_size = vocab_size
        self._ids: list[int] = []

    def read(self, event: Mapping[str, Any]) -> Chunk:
        """Return what an event brings. Raises PeerError."""
        refuse_error(NAME, event)
        meta = mapping(event.get("meta_info"))
        if "output_ids" not in event:
            raise lie(NAME, "an event without output_ids, SGLang 0.5.4 or later is needed")
        ids = checked_list(NAME, event["output_ids"], "output_ids")
        total = checked_count(NAME, meta.get("completion_tokens", len(ids)), "a completion_tokens")
        tokens = self._new_tokens(ids, total, meta)
        self._ids += [token.token_id for token in tokens]
        cached = meta.get("cached_tokens")
        return Chunk(
            tokens,
            read_end(NAME, meta.get("finish_reason")),
            None if cached is None else checked_count(NAME, cached, "a cached_tokens"),
        )

    def _new_tokens(self, ids: list[Any], total: int, meta: Mapping[str, Any]) -> list[Drawn]:
        """Return the tokens that were not in an earlier event."""
        num_seen = len(self._ids)
        num_new = total - num_seen
        if not 0 <= num_new <= len(ids):
            raise lie(NAME, f"{len(ids)} ids where {total} had come and {num_seen} were known")
        if total > self._max_tokens:
            raise lie(NAME, f"{total} tokens, it was asked for {self._max_tokens} at most")
        if len(ids) == total and ids[:num_seen] != self._ids:
            raise lie(NAME, "other ids in a later event than in those before")
        if not num_new:
            return []
        known = checked_list(NAME, meta.get("output_token_logprobs"), "output_token_logprobs")
        if len(known) < num_new:
            raise lie(NAME, f"{num_new} new ids and {len(known)} log-probabilities")
        entries = [_entry(entry, self._vocab_size) for entry in known[-num_new:]]
        if [token_id for token_id, _ in entries] != ids[-num_new:]:
            raise lie(NAME, "log-probabilities of other ids than it drew")
        tops: list[tuple[tuple[int, float], ...]] = [()] * num_new
        if self._num_top:
            given = checked_list(NAME, meta.get("output_top_logprobs"), "output_top_logprobs")
            if len(given) < num_new:
                raise lie(NAME, f"{num_new} new ids and {len(given)} lists of likeliest ones")
            tops = [_top(entry, self._vocab_size)[: self._num_top] for entry in given[-num_new:]]
        return [Drawn(*entry, top) for entry, top in zip(entries, tops, strict=True)]


def _entry(entry: object, vocab_size: int) -> tuple[int, float]:
    """Return the id and the log-probability of one token."""
    if not isinstance(entry, list) or len(entry) < 2:
        raise lie(NAME, f"the log-probability {entry!r}, it must be a number and an id")
    return checked_id(NAME, entry[1], vocab_size), checked_logprob(NAME, entry[0])


def _top(entries: object, vocab_size: int) -> tuple[tuple[int, float], ...]:
    """Return the ids and the log-probabilities of the likeliest tokens in a place."""
    return tuple(_entry(entry, vocab_size) for entry in checked_list(NAME, entries, "top_logprobs"))
