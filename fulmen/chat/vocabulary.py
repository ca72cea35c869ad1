"""The ids of a model as bytes, sorted so that a grammar can ask which of them spell a tag.

Tags may be made of several ids, and an id may hold the end of a tag and more. The questions below
are about text; the answers are ids.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from typing import Final

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from fulmen.chat.tokenizer import Tokenizer
from fulmen.sampling import shown

Allowed = NDArray[np.bool_]
_NUM_KEPT: Final = 32
"""Grammars whose matchers are kept: an agent sends the same tools with every request"""
_FAR: Final = 2**40
"""Cost of ids that may not come"""
_NUM_TRIED: Final = 4
"""Ids that a new grammar is tried out with"""


class Vocabulary:
    """Ids of a model as bytes, and as llguidance wants them."""

    def __init__(
        self, tokenizer: Tokenizer, *, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        if not eos_token_ids:
            raise ValueError(
                "the checkpoint names no token that ends a turn, a constrained answer needs one"
            )
        if not all(0 <= token_id < vocab_size for token_id in eos_token_ids):
            raise ValueError(
                f"eos_token_id is {shown(tuple(eos_token_ids))}, the model has only the ids below "
                f"{vocab_size}, see generation_config.json"
            )
        self._matchers: dict[str, LLMatcher] = {}
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        """Number of rows of the model's head; rows without a token are never allowed."""
        self.eos_token_ids = tuple(eos_token_ids)
        size = max(vocab_size, tokenizer.vocab_size)
        try:
            self.ll_tokenizer = LLTokenizer(
                tokenizer.to_json(), n_vocab=size, eos_token=list(eos_token_ids)
            )
        except Exception as error:  # the library's Rust side names no kind
            raise ValueError(f"this tokenizer cannot follow a grammar: {error}") from None
        self.texts: list[bytes] = [
            b"" if tokenizer.token(token_id) is None else self.ll_tokenizer.decode_bytes([token_id])
            for token_id in range(size)
        ]

    @cached_property
    def _order(self) -> list[int]:
        return sorted(range(len(self.texts)), key=self.texts.__getitem__)

    @cached_property
    def _sorted(self) -> list[bytes]:
        return [self.texts[token_id] for token_id in self._order]

    def starting_with(self, text: bytes) -> list[int]:
        """Return the ids whose text starts with this text."""
        begin = bisect_left(self._sorted, text)
        end = begin
        while end < len(self._sorted) and self._sorted[end].startswith(text):
            end += 1
        return self._order[begin:end]

    def beginning(self, text: bytes) -> list[int]:
        """Return the ids whose text is a beginning of this text, or all of it."""
        ids: list[int] = []
        for end in range(1, len(text) + 1):
            for place in range(bisect_left(self._sorted, text[:end]), len(self._sorted)):
                if self._sorted[place] != text[:end]:
                    break
                ids.append(self._order[place])
        return ids

    def completing(self, tail: bytes, tag: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the ids that complete the tag after this tail, and their text past the tag."""
        yield from self._containing(tag)
        for size in range(1, len(tag)):
            if tail.endswith(tag[:size]):
                rest = tag[size:]
                for token_id in self.starting_with(rest):
                    yield token_id, self.texts[token_id][len(rest) :]

    @cache  # noqa: B019, a vocabulary lives as long as its model
    def _containing(self, tag: bytes) -> list[tuple[int, bytes]]:
        return [
            (token_id, text.partition(tag)[2])
            for token_id, text in enumerate(self.texts)
            if tag in text
        ]

    def id_of(self, text: bytes) -> int | None:
        """Return an id with exactly this text, or None."""
        place = bisect_left(self._sorted, text)
        return self._order[place] if self._sorted[place : place + 1] == [text] else None

    def matcher(self, grammar: str) -> LLMatcher:
        """Return a matcher at a grammar's start. Grammars seen lately are not read again.

        Raises ValueError, with the reason only, for a grammar that cannot be followed.
        """
        kept = self._matchers.pop(grammar, None)
        if kept is None:
            kept = LLMatcher(self.ll_tokenizer, grammar, log_level=0)
            if kept.is_error():
                raise ValueError(_reason(kept))
            for sign in (1, -1):
                self._try_out(kept.deep_copy(), sign * self._lengths)
        self._matchers[grammar] = kept  # the last used comes last
        if len(self._matchers) > _NUM_KEPT:
            del self._matchers[next(iter(self._matchers))]
        return kept.deep_copy()

    def _try_out(self, matcher: LLMatcher, costs: NDArray[np.int64]) -> None:
        """Walk a few ids into a grammar, so that most that are too large fail before an answer.

        costs  (vocab_size,) of ids that may come, the one of the lowest cost is taken
        """
        for _ in range(_NUM_TRIED):
            mask = self.mask(matcher)
            mask[list(self.eos_token_ids)] = False
            if not mask.any():
                return
            if not matcher.consume_token(int(np.where(mask, costs, _FAR).argmin())):
                raise grammar_failed(matcher)

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        return np.array([len(text) for text in self.texts[: self.vocab_size]], dtype=np.int64)

    def mask(self, matcher: LLMatcher) -> Allowed:
        """Return a mask of the ids that a matcher allows.

        Raises ValueError if it can follow its grammar no further, or no id may come.
        """
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if matcher.is_error():
            raise grammar_failed(matcher)
        mask = np.unpackbits(bits, bitorder="little")[: self.vocab_size].astype(np.bool_)
        if not matcher.is_accepting():  # an id that ends the turn is no way to spell its text
            ends = [one for one in self.eos_token_ids if mask[one]]
            mask[ends] = False
            if not mask.any():
                return self.only(self._spelled(matcher) or ends)
        only = int(mask.argmax())
        if (
            mask.sum() == 1
            and only not in self.eos_token_ids
            and not matcher.validate_tokens([only])
        ):
            # llguidance 1.9 offers an added token for text that spells it, and does not take it.
            return self.only(self._spelled(matcher))
        return mask

    def _spelled(self, matcher: LLMatcher) -> list[int]:
        """Return the ids that spell the text a grammar forces, without those that end the turn."""
        forced = self.beginning(matcher.compute_ff_bytes())
        return [
            one
            for one in forced
            if one not in self.eos_token_ids and matcher.validate_tokens([one])
        ]

    def only(self, token_ids: Iterable[int]) -> Allowed:
        """Return a mask of these ids."""
        mask = np.zeros(self.vocab_size, dtype=np.bool_)
        mask[list(token_ids)] = True
        return mask


def grammar_failed(matcher: LLMatcher) -> ValueError:
    """Return the error of a matcher that can follow its grammar no further."""
    if matcher.get_error().startswith("NoExtension"):
        return ValueError("no text fits it")
    return ValueError("it is too large for the matcher")


def _reason(matcher: LLMatcher) -> str:
    """Return why a grammar is refused, without the grammar."""
    error = matcher.get_error().partition("\n   1 |")[0]
    return " ".join(error.split())[:300]
