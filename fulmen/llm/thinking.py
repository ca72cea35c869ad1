"""A thought within its budget, and a good end for it.

    0 ............................ soft end ............... budget
    the model thinks as it likes | the closing tag gets    | a last phrase and the
                                 | likelier at the ends of | closing tag are forced
                                 | sentences, more and more|

Every decision follows from the tokens so far (and from what others left of a shared budget), so it
stays the same when an answer is stopped and continued. Forced text goes through the engine as ids
and through the parser as text, like everything else, so both agree on where the thought ends.
"""

import math
import re
from dataclasses import dataclass
from typing import Final

from fulmen.chat import ChatFormat, TokenBudget, Tokenizer
from fulmen.sampling import SamplingParams

MAX_BIAS: Final = 12.0
"""Gain of the closing tag's logit at a sentence's end just before the budget is used up"""
_MAX_PHRASE_SHARE: Final = 0.1
"""Share of the budget that the last phrase may take; a smaller budget ends without one."""
_SENTENCE_END = re.compile(r"(\n|[^\d\s][.!?][\"')*\]]*|[\u3002\uff01\uff1f])[ \n]*\Z")
"""A full stop after a digit may be the point of a number. The last three are Chinese ones."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The next token of a thought."""

    forced_ids: tuple[int, ...] = ()
    logit_bias: tuple[int, float] | None = None
    """An id and what its logit gains"""
    num_drafts: int = 0
    """Drafts after the next token on which no decision can fall but to go on"""


class ThoughtBudget:
    """Counts the tokens of one answer's thought and decides how it goes on."""

    def __init__(
        self,
        format: ChatFormat | None,
        tokenizer: Tokenizer,
        params: SamplingParams,
        shared: TokenBudget | None = None,
    ) -> None:
        """Without a format, or with one that has no thoughts, nothing is limited."""
        self.num_tokens = 0
        """Tokens of thought so far, with a last phrase, without a forced closing tag"""
        self._shared = shared
        self._budget = params.thinking_budget
        self._soft_end = params.thinking_soft_end
        self._num_reserved = 0
        """Tokens taken from the shared budget that did not come yet"""
        self._is_closing = False
        self._tail = ""
        if format is None or format.thinking_end is None or format.thinking_forced_end is None:
            self._budget = self._shared = None
        self.is_limited = self._budget is not None or self._shared is not None
        if not self.is_limited:
            return
        assert format is not None
        assert format.thinking_end is not None
        assert format.thinking_forced_end is not None
        after = format.thinking_forced_end.partition(format.thinking_end)[2]
        self._tag_ids = tokenizer.encode(format.thinking_end + after)
        self._end_ids = tokenizer.encode(format.thinking_forced_end)
        phrase = f"\n\n{format.thinking_last_phrase}{format.thinking_forced_end}"
        self._phrase_ids = tokenizer.encode(phrase)
        self._num_phrase_tokens = len(self._phrase_ids) - len(self._end_ids)
        self._total = self._left()
        """Tokens there were when the thought began"""

    def decide(self, num_drafts: int = 0) -> Decision:
        """Decide on the next token, inside the thought and once before each `count`.

        num_drafts  guesses that the engine could check after it
        """
        if not self.is_limited or self._is_closing:
            return Decision(num_drafts=num_drafts)
        self._release()
        left = self._left()
        soft = self._soft_end * self._total
        has_phrase = soft > 0 and self._num_phrase_tokens <= _MAX_PHRASE_SHARE * self._total
        phrase = self._num_phrase_tokens if has_phrase else 0
        if left <= phrase:
            self._is_closing = True
            # Another request may have emptied the shared budget since.
            if not has_phrase or left < phrase:
                return Decision(forced_ids=tuple(self._end_ids))
            self.num_tokens += phrase
            self._reserve(phrase)
            self._num_reserved = 0
            return Decision(forced_ids=tuple(self._phrase_ids))
        # Reserved before it is drawn, so that requests side by side never overdraw.
        room = math.floor(left - phrase - max(soft, 1))
        taken = max(0, min(num_drafts, room))
        self._reserve(1 + taken)
        if left - phrase < soft and _SENTENCE_END.search(self._tail):
            bias = MAX_BIAS * (1 - (left - phrase) / soft)
            return Decision(logit_bias=(self._tag_ids[0], bias))
        return Decision(num_drafts=taken)

    def count(self, text: str) -> None:
        """Take one more token of the thought, and the text it settled."""
        if not self._is_closing:
            self.num_tokens += 1
        if self._num_reserved:
            self._num_reserved -= 1
        elif not self._is_closing:
            self._reserve(1)
            self._num_reserved = 0
        self._tail = (self._tail + text)[-8:]

    def took_bias(self) -> list[int]:
        """Return the ids of the rest of the closing tag, whose first id was drawn."""
        self._is_closing = True
        self.num_tokens += 1
        return self._tag_ids[1:]

    def end(self) -> None:
        """Give back what was reserved for tokens that will not come."""
        self._release()

    def reopen(self) -> None:
        """Go on thinking: the forced end did not come, the answer began under another budget."""
        self._is_closing = False

    def _left(self) -> int:
        limits = []
        if self._budget is not None:
            limits.append(self._budget - self.num_tokens)
        if self._shared is not None:
            limits.append(self._shared.num_left)
        return max(0, min(limits))

    def _reserve(self, num_tokens: int) -> None:
        if self._shared is not None:
            self._num_reserved += self._shared.reserve(num_tokens)

    def _release(self) -> None:
        if self._shared is not None:
            self._shared.give_back(self._num_reserved)
        self._num_reserved = 0
