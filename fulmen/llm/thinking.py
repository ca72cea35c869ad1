"""A thought within its budget, and a good end for it.

    0 ....................................................................... budget
    the model thinks as it likes | soft end: the closing tag gets   | a last phrase | closing tag,
                                 | likelier at the ends of sentences| is forced     | forced, free

Whoever reads the answer may end a running thought at any time: it is closed at the next token as if
its budget were used up, with the last phrase if there is room for it, and no other thought begins.

A thought that the model opens after its first has what that left of the budget. Where nothing is
left, it does not begin: its opening tag is drawn again, or, if that is more than one id, closed at
once.

Every decision follows from the tokens so far (and from what others left of a shared budget), so it
stays the same when an answer is stopped and continued. Forced text goes through the engine as ids
and through the parser as text, like everything else, so both agree on where the thought ends.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from fulmen.chat import ChatFormat, ThinkingTags, TokenBudget, Tokenizer
from fulmen.sampling import SamplingParams

MAX_BIAS: Final = 12.0
"""Gain of the closing tag's logit at a sentence's end just before the budget is used up"""
_MAX_PHRASE_SHARE: Final = 0.1
"""Share of the budget that the last phrase may take; a smaller budget ends without one."""
_TAIL_CHARS: Final = 8
"""Characters in which a sentence's end is looked for"""
_SENTENCE_END = re.compile(r"(\n|[^\d\s][.!?][\"')*\]]*|[\u3002\uff01\uff1f])[ \n]*\Z")
"""A full stop after a digit may be the point of a number. The last three are Chinese ones."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The next step of a thought."""

    forced_ids: tuple[int, ...] = ()
    """Ids that come next"""
    logit_bias: tuple[int, float] | None = None
    """An id, and what is added to its logit at the next draw"""
    may_think: bool = True
    """False if no thought may begin: the budget has no token for it"""
    num_free_drafts: int = 0
    """Drafts after the next token that may be checked without another decision"""


class _End:
    """Ids that end a thought; encoded when they are needed."""

    def __init__(self, tags: ThinkingTags, tokenizer: Tokenizer) -> None:
        self._tags, self._tokenizer = tags, tokenizer

    @cached_property
    def tag(self) -> list[int]:
        """Closing tag and the layout after it"""
        layout = self._tags.forced_end.partition(self._tags.end)[2]
        return self._tokenizer.encode(self._tags.end + layout)

    @cached_property
    def end(self) -> list[int]:
        """Closing tag as it is forced"""
        return self._tokenizer.encode(self._tags.forced_end)

    @cached_property
    def phrase(self) -> list[int]:
        """Last phrase, closing tag and layout"""
        tags = self._tags
        return self._tokenizer.encode(f"\n\n{tags.last_phrase}{tags.forced_end}")

    @cached_property
    def num_phrase_tokens(self) -> int:
        """Number of tokens of the last phrase alone"""
        return len(self.phrase) - len(self.end)


class ThoughtBudget:
    """Counts the tokens of one answer's thoughts and decides how they go on.

    Where a token counts against the budget:

        a token that the model draws              `count`, when it comes
        the last phrase                           `_close`, all of it, when it is forced
        a closing tag that the bias brought on    `start_closing`, its first id
        a forced closing tag                      not at all

    A budget that several requests share is charged before a token is drawn, so that together they
    never overdraw it: `decide` reserves tokens that may come, `count` uses one of them up, and the
    next `decide`, or `end`, gives back the rest.
    """

    def __init__(
        self,
        format: ChatFormat | None,
        tokenizer: Tokenizer,
        params: SamplingParams,
        shared: TokenBudget | None = None,
    ) -> None:
        """Without a format, or with one that has no thoughts, nothing is limited."""
        self.num_tokens = 0
        """Tokens of all thoughts so far"""
        self._shared = shared
        self._budget = params.thinking_budget
        self._soft_end = params.thinking_soft_end
        self._num_reserved = 0
        """Tokens that are charged to the shared budget and did not come yet"""
        self._is_closing = False
        self._num_phrase_counted = 0
        """Tokens of a last phrase that were counted when it was forced"""
        self._tail = ""
        """Last characters of the thought"""
        self._is_ended = False
        """True once a thought was ended from outside: no token of thought is left"""
        self._owes_phrase = False
        """True if the thought that was ended gets its last phrase"""
        self._end = _End(format.thinking, tokenizer) if format and format.thinking else None
        if self._end is None:
            self._budget = self._shared = None
        self.is_limited = self._budget is not None or self._shared is not None
        self._total = self._num_left() if self.is_limited else math.inf
        """Tokens there were when the answer began"""

    def decide(self, num_drafts: int = 0) -> Decision:
        """Decide how a thought goes on: for the next token, and for drafts after it.

        num_drafts  drafts that the engine would check after the next token
        """
        if not self.is_limited or self._is_closing:
            return Decision(num_free_drafts=num_drafts)
        self._return_reserved()
        if self._is_ended:
            with_phrase, self._owes_phrase = self._owes_phrase, False
            return self._close(with_phrase=with_phrase)
        num_soft = self._soft_end * self._total  # tokens of the soft end
        has_phrase = self._has_phrase()
        num_to_phrase = self._num_to_phrase()
        if num_to_phrase <= 0:
            return self._close(with_phrase=has_phrase and num_to_phrase == 0)
        # An engine that accepts k drafts draws k + 1 tokens without asking again, the last of them
        # with num_to_phrase - k tokens left. Even that one must need no forced end (1 token is left
        # at least) and no bias (num_soft are left at least).
        most_free = math.floor(num_to_phrase - max(num_soft, 1))
        num_free_drafts = max(0, min(num_drafts, most_free))  # none in the soft end
        self._reserve(1 + num_free_drafts)
        is_in_soft_end = num_to_phrase < num_soft
        if is_in_soft_end and _SENTENCE_END.search(self._tail):
            bias = MAX_BIAS * (1 - num_to_phrase / num_soft)
            return Decision(logit_bias=(self._ids.tag[0], bias))
        return Decision(num_free_drafts=num_free_drafts)

    def decide_outside(self, num_drafts: int = 0) -> Decision:
        """Decide, where no thought is open, whether one may begin."""
        if not self.is_limited:
            return Decision(num_free_drafts=num_drafts)
        self._return_reserved()
        return Decision(num_free_drafts=num_drafts, may_think=self._num_to_phrase() > 0)

    def end_thought(self) -> bool:
        """Close the thought that is open at the next token, and let no other begin; return False
        where nothing is a thought.

        Its last phrase comes where the rest of the budget holds it, unless thinking_soft_end is 0.
        """
        if self._end is None:
            return False
        if not self._is_closing and not self._is_ended:
            self._return_reserved()
            has_room = self._num_left() >= self._ids.num_phrase_tokens
            self._owes_phrase = self._soft_end > 0 and has_room
        self._is_ended = self.is_limited = True
        return True

    def start_thought(self) -> None:
        """Note that a thought was opened, which the end of an earlier one does not close."""
        self._is_closing = False
        self._num_phrase_counted = 0
        self._tail = ""

    def count(self, text: str) -> None:
        """Count a token that came inside the thought; text is what it added to the answer.

        Tokens of the closing come here too: they are counted where the class says, and only use up
        a reservation, if they have one.
        """
        if not self._is_closing:
            self.num_tokens += 1
            if self._shared is not None and not self._num_reserved:
                # An id of the request's forced_ids, for which `decide` is not asked, or a replayed
                # one where `decide` forced the end.
                self._reserve(1)
        if self._num_reserved:
            self._num_reserved -= 1
        self._tail = (self._tail + text)[-_TAIL_CHARS:]

    def start_closing(self) -> list[int]:
        """Note that the first id of the closing tag was drawn; return the ids of its rest."""
        self._is_closing = True
        self.num_tokens += 1
        return self._ids.tag[1:]

    def drop_forced_end(self) -> None:
        """Note that a forced end did not come: the answer had been drawn under another budget."""
        self._is_closing = False
        self.num_tokens -= self._num_phrase_counted
        if self._shared is not None:
            self._shared.give_back(self._num_phrase_counted)
        self._num_phrase_counted = 0

    def end(self) -> None:
        """Return what was reserved for tokens that will not come."""
        self._return_reserved()

    def refund(self) -> None:
        """Give back to a shared budget every token that was counted."""
        if self._shared is not None:
            self._shared.give_back(self.num_tokens)

    def _close(self, *, with_phrase: bool) -> Decision:
        """Force the end of the thought. Without room for the phrase (another request may have
        emptied the shared budget) it is the closing tag alone."""
        self._is_closing = True
        if not with_phrase:
            return Decision(forced_ids=tuple(self._ids.end))
        self._num_phrase_counted = self._ids.num_phrase_tokens
        self.num_tokens += self._num_phrase_counted
        if self._shared is not None:
            self._shared.reserve(self._num_phrase_counted)
        return Decision(forced_ids=tuple(self._ids.phrase))

    def _has_phrase(self) -> bool:
        """Return True if the budget has room for a last phrase."""
        if not self._soft_end * self._total > 0:
            return False
        return self._ids.num_phrase_tokens <= _MAX_PHRASE_SHARE * self._total

    @property
    def _ids(self) -> "_End":
        assert self._end is not None
        return self._end

    def _num_to_phrase(self) -> float:
        """Return how many tokens may still be drawn; less than 0 if the phrase does not fit."""
        return self._num_left() - (self._ids.num_phrase_tokens if self._has_phrase() else 0)

    def _num_left(self) -> float:
        """Return how many tokens the thought may still have; infinity without a limit."""
        limits = [0 if self._is_ended else math.inf]
        if self._budget is not None:
            limits.append(self._budget - self.num_tokens)
        if self._shared is not None:
            limits.append(self._shared.num_left)
        return max(0, min(limits))

    def _reserve(self, num_tokens: int) -> None:
        if self._shared is not None:
            self._num_reserved += self._shared.reserve(num_tokens)

    def _return_reserved(self) -> None:
        if self._shared is not None:
            self._shared.give_back(self._num_reserved)
        self._num_reserved = 0
