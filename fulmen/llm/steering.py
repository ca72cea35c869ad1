"""Forced ids, a thought's budget and a grammar as one decision on the next token.

    ask -> forced ids first, then the budget of the thought, then the grammar
    take <- the id that came: each of them learns of it

Ids only. Which ids are a thought, the caller says: it reads their text.
"""

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from fulmen.chat import CodePlace, Grammar, Tokenizer
from fulmen.engine import Choice
from fulmen.llm.thinking import Decision, ThoughtBudget
from fulmen.sampling import Mask


class AnswerSteering:
    """Forced ids, budget and grammar of one answer.

    A prefix that the answer was told to begin with is replayed: `decide` and `take` for each of its
    ids, as if it were drawn again.
    """

    def __init__(
        self,
        budget: ThoughtBudget,
        grammar: Grammar | None,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        opening: str | None = None,
    ) -> None:
        """opening: tag by which the answer opens another thought; masked only if it is one id"""
        self._vocab_size = vocab_size
        self._opening_id = tokenizer.token_id(opening) if opening else None
        self._budget = budget
        self._grammar = grammar
        self._tokenizer = tokenizer
        self._forced: deque[int] = deque()
        """Ids that come next"""
        self._decision: Decision | None = None
        """Decision on the next token; None until it is made"""

    @property
    def is_forced(self) -> bool:
        """True if the next id is given."""
        return bool(self._forced)

    @property
    def forced_ids(self) -> tuple[int, ...]:
        """Ids that come next, as far as they are given."""
        return tuple(self._forced)

    def force(self, token_ids: Iterable[int]) -> None:
        """Make these the next ids, after those that are forced already."""
        self._forced.extend(token_ids)

    def decide(self, *, is_thinking: bool, num_drafts: int = 0) -> None:
        """Settle what comes next; asked again before `take`, it stays settled."""
        if self._decision is not None or self._forced:
            return
        if is_thinking:
            self._decision = self._budget.decide(num_drafts)
        else:
            self._decision = self._budget.decide_outside(num_drafts)
        self._forced.extend(self._decision.forced_ids)

    def ask(
        self, draft_ids: Sequence[int], *, is_thinking: bool, code_place: CodePlace | None = None
    ) -> list[Choice]:
        """Return what may come next, and after each draft as far as nothing new is decided.

        code_place  place in the content, where an opening tag that came next would open another
                    thought unless it stood in code; None where it would open none
        """
        self.decide(is_thinking=is_thinking, num_drafts=len(draft_ids))
        if self._forced:
            return [Choice(forced_id=self._forced[0])]
        assert self._decision is not None
        # The engine drops drafts that have no entry in the returned list. A draft is kept only if
        # the token after it needs no new decision of the budget: inside a thought the first free
        # ones, outside those before one that may open a thought.
        draft = list(draft_ids[: self._decision.num_free_drafts])
        if self._budget.is_limited and not is_thinking:
            draft = self._until_a_thought_may_open(draft)
        masks: list[Mask | None] = [None] * (1 + len(draft))
        if self._grammar is not None:
            masks = self._grammar.masks(draft)  # ends at the first draft that it refuses
        if code_place is not None and not is_thinking and not self._decision.may_think:
            masks = self._without_opening(masks, draft, code_place)
        # A decision with a bias has no free drafts, so only the first choice can have one.
        first = Choice(masks[0], logit_bias=self._decision.logit_bias)
        return [first, *map(Choice, masks[1:])]

    def take(self, token_id: int) -> None:
        """Learn the id that came, before its text is read."""
        decision, self._decision = self._decision, None
        if self._forced and self._forced.popleft() != token_id:
            # Only a replayed prefix can disagree with a forced id: the engine always brings one.
            # The prefix was drawn under another budget, which let the thought go on where this one
            # ends it. What was said stands, and the forced end is dropped.
            self._forced.clear()
            self._budget.drop_forced_end()
        if decision is not None and decision.logit_bias is not None:
            favoured_id, _ = decision.logit_bias
            if token_id == favoured_id:
                # The closing tag began. It may have more ids, which no bias favours.
                self._forced.extend(self._budget.start_closing())
        if self._grammar is not None:
            self._grammar.accept(token_id)

    def _without_opening(
        self, masks: list[Mask | None], draft: list[int], code_place: CodePlace
    ) -> list[Mask | None]:
        """Return the masks without the opening tag's id, where that would open another thought."""
        if self._opening_id is None or self._opening_id >= self._vocab_size:
            return masks
        found: list[Mask | None] = []
        for place, mask in enumerate(masks):
            if place:
                code_place = code_place.after(self._tokenizer.decode([draft[place - 1]]))
            is_code = code_place.is_code
            found.append(mask if is_code else self._without_id(mask, self._opening_id))
        return found

    def _without_id(self, mask: Mask | None, token_id: int) -> Mask | None:
        """Return a mask that leaves out one more id, if that leaves any."""
        everything = np.ones(self._vocab_size, dtype=np.bool_)
        allowed = everything if mask is None else mask.allowed.copy()
        allowed[token_id] = False
        if not allowed.any():
            return mask
        return Mask(allowed, redraw_only=mask is None or mask.redraw_only)

    def _until_a_thought_may_open(self, draft: list[int]) -> list[int]:
        """Return the drafts before the first with a ">" in it.

        That one may complete an opening tag such as <think>; then the next token is part of a
        thought, and the budget has to be asked first.
        """
        for place, token_id in enumerate(draft):
            if ">" in self._tokenizer.decode([token_id]):
                return draft[:place]
        return draft
