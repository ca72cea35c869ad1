"""Forced ids, a thought's budget and a grammar as one decision on the next token.

    ask -> forced ids first, then the budget of the thought, then the grammar
    take <- the id that came: each of them learns of it

Ids only. Which ids are a thought, the caller says: it reads their text.
"""

from collections import deque
from collections.abc import Iterable, Sequence

from fulmen.chat import Grammar, Tokenizer
from fulmen.engine import Choice
from fulmen.llm.thinking import Decision, ThoughtBudget
from fulmen.sampling import Mask


class AnswerSteering:
    """Forced ids, budget and grammar of one answer."""

    def __init__(
        self, budget: ThoughtBudget, grammar: Grammar | None, tokenizer: Tokenizer
    ) -> None:
        self._budget = budget
        self._grammar = grammar
        self._tokenizer = tokenizer
        self._forced: deque[int] = deque()
        self._decision: Decision | None = None
        """Decision on the next token; None until it is asked for"""

    @property
    def is_forced(self) -> bool:
        """True if the next id is given."""
        return bool(self._forced)

    def force(self, token_ids: Iterable[int]) -> None:
        """Make these the next ids, after those that are forced already."""
        self._forced.extend(token_ids)

    def decide(self, *, is_thinking: bool, num_drafts: int = 0) -> None:
        """Settle what comes next, unless it is settled."""
        if self._decision is not None or self._forced:
            return
        self._decision = Decision(num_drafts=num_drafts)
        if is_thinking:
            self._decision = self._budget.decide(num_drafts)
            self._forced.extend(self._decision.forced_ids)

    def ask(self, draft_ids: Sequence[int], *, is_thinking: bool) -> list[Choice]:
        """Return what may come next and after each draft, as `fulmen.engine.Steering` has it."""
        self.decide(is_thinking=is_thinking, num_drafts=len(draft_ids))
        if self._forced:
            return [Choice(forced_id=self._forced[0])]
        assert self._decision is not None
        draft = list(draft_ids[: self._decision.num_drafts])
        if self._budget.is_limited and not is_thinking:
            draft = self._up_to_a_tag(draft)
        masks: list[Mask | None] = [None] * (1 + len(draft))
        if self._grammar is not None:
            masks = self._grammar.masks(draft)
        bias = self._decision.logit_bias
        return [
            Choice(mask, logit_bias=bias if place == 0 else None)
            for place, mask in enumerate(masks)
        ]

    def take(self, token_id: int) -> None:
        """Learn the id that came, before its text is read."""
        bias = self._decision.logit_bias if self._decision is not None else None
        self._decision = None
        if self._forced and self._forced.popleft() != token_id:
            # Only ids that were given by the caller can differ: they began under other limits.
            self._forced.clear()
            self._budget.reopen()
        if bias is not None and token_id == bias[0]:
            self._forced.extend(self._budget.took_bias())
        if self._grammar is not None:
            self._grammar.accept(token_id)

    def _up_to_a_tag(self, draft: list[int]) -> list[int]:
        """Return the drafts before the first one that may open a thought, whose budget decides."""
        for place, token_id in enumerate(draft):
            if ">" in self._tokenizer.decode([token_id]):
                return draft[:place]
        return draft
