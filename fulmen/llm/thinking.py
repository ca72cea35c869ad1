"""How a thought is kept within its budget, and how it is made to end well.

    0 ............................ landing ................ budget
    the model thinks as it likes | the closing tag is made likelier at | a last phrase and the
                                 | the ends of sentences, more and more | closing tag are forced

Every decision follows from the tokens so far (and from what others left in a shared purse), so it
does not change when an answer is stopped and taken up again. What is forced goes through the engine
as ids and through the parser as text, like all else, so both always agree on where the thought
ends.
"""

import re
from dataclasses import dataclass

from fulmen.chat import ChatFormat, Tokenizer
from fulmen.sampling import SamplingParams

MAX_BIAS = 12.0
"""What the closing tag's logit gains at a sentence's end just before the budget is used up"""
_MAX_PHRASE_SHARE = 0.1
"""Of the budget; a smaller budget ends without a last phrase."""
_SENTENCE_END = re.compile(r"(\n|[^\d\s][.!?][\"')*\]]*|[\u3002\uff01\uff1f])[ \n]*\Z")
"""A full stop after a digit may be the point of a number. The last three are Chinese ones."""


class Purse:
    """Tokens of thought that several requests share: a trajectory's. Not for several threads."""

    def __init__(self, tokens: int) -> None:
        if tokens < 0:
            raise ValueError(f"a purse of {tokens} tokens was asked for, it must hold 0 or more")
        self.num_left = tokens

    def spend(self, tokens: int) -> None:
        """Takes tokens out; what is not there cannot be taken."""
        self.num_left = max(0, self.num_left - tokens)


@dataclass(frozen=True, slots=True)
class Nudge:
    """This id is likelier at the next draw."""

    token_id: int
    bias: float


class ThoughtBudget:
    """Counts the tokens of one answer's thought and says what to do about them."""

    def __init__(
        self,
        format: ChatFormat,
        tokenizer: Tokenizer,
        params: SamplingParams,
        purse: Purse | None = None,
    ) -> None:
        self.num_tokens = 0
        """Of thought so far, a last phrase included, a forced closing tag not"""
        self._purse = purse
        self._budget = params.thinking_budget
        self._landing = params.thinking_landing
        self._num_ahead = 0
        """Tokens taken from the purse that did not come yet"""
        self._is_closing = False
        self._tail = ""
        if format.thinking_end is None or format.thinking_forced_end is None:
            self._budget = self._purse = None  # a format without an end of thought never thinks
            return
        after = format.thinking_forced_end.partition(format.thinking_end)[2]
        self._tag_ids = tokenizer.encode(format.thinking_end + after)
        self._end_ids = tokenizer.encode(format.thinking_forced_end)
        phrase = f"\n\n{format.thinking_last_phrase}{format.thinking_forced_end}"
        self._phrase_ids = tokenizer.encode(phrase)
        self._num_phrase_tokens = len(self._phrase_ids) - len(self._end_ids)
        self._total = self._left()
        """What there was when the thought began"""

    def count(self, text: str) -> None:
        """Takes one more token of thought, and the text it settled."""
        if not self._is_closing:
            self.num_tokens += 1
        self._num_ahead = 0
        self._tail = (self._tail + text)[-8:]

    def took_nudge(self) -> list[int]:
        """The nudged id was drawn: the ids of the rest of the closing tag."""
        self._is_closing = True
        self.num_tokens += 1
        return self._tag_ids[1:]

    def end(self) -> None:
        """Nothing more is drawn: gives back what was taken for the next token."""
        if self._purse is not None:
            self._purse.num_left += self._num_ahead
        self._num_ahead = 0

    def reopen(self) -> None:
        """What was forced did not come: the answer was begun under another budget."""
        self._is_closing = False

    def decide(self) -> list[int] | Nudge | None:
        """What comes next, while the answer is inside its thought: ids, or a likelier one."""
        left = self._left()
        if left is None or self._total is None or self._is_closing:
            return None
        has_phrase = (
            self._landing > 0 and self._num_phrase_tokens <= _MAX_PHRASE_SHARE * self._total
        )
        reserve = self._num_phrase_tokens if has_phrase else 0
        if left <= reserve:
            self._is_closing = True
            # Another request may have emptied the purse since.
            if not has_phrase or left < reserve:
                return self._end_ids
            self.num_tokens += reserve
            self._spend(reserve)
            return self._phrase_ids
        self._spend(1)  # before it is drawn, so that requests side by side never overdraw
        self._num_ahead = 1
        landing = self._landing * self._total
        if left - reserve < landing and _SENTENCE_END.search(self._tail):
            return Nudge(self._tag_ids[0], MAX_BIAS * (1 - (left - reserve) / landing))
        return None

    def _left(self) -> int | None:
        """Tokens that the thought may still have; None without a limit."""
        limits = []
        if self._budget is not None:
            limits.append(self._budget - self.num_tokens)
        if self._purse is not None:
            limits.append(self._purse.num_left)
        return max(0, min(limits)) if limits else None

    def _spend(self, tokens: int) -> None:
        if self._purse is not None:
            self._purse.spend(tokens)
