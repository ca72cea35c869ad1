"""A user who follows a script: answers what is asked for, then goes on with the next words.

Each fact is told at most twice and each word said once, so every script ends.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from fulmen.envs.tools.domain import Fact

_MAX_TOLD: Final = 2
_MAX_READ: Final = 4000
"""Characters at an answer's end that the user reads"""
_SENTENCE: Final = re.compile(r"[^.!?\n]+[.!?\n]?")
_ASKS: Final = re.compile(
    r"\?$|\b(please|need|give|tell me|provide|share|send|enter|confirm|may I have)\b",
    re.IGNORECASE,
)
_ELSE: Final = re.compile(r"\b(else|more I can|further)\b", re.IGNORECASE)


class User:
    """The words of one conversation."""

    def __init__(self, facts: Sequence[Fact], words: Sequence[str]) -> None:
        self._facts = facts
        self._words = words
        self._told: Counter[Fact] = Counter()
        self.num_said = 0
        """Words that were said so far"""
        self.is_over = False
        """True once the user has nothing more to say"""

    def answer(self, text: str) -> str | None:
        """Return what the user says to an answer; None at the end."""
        asked = self._asked(text[-_MAX_READ:])
        if asked:
            self._told.update(asked)
            return " ".join(fact.answer for fact in asked)
        if self.num_said < len(self._words):
            self.num_said += 1
            return self._words[self.num_said - 1]
        self.is_over = True
        return None

    def _asked(self, text: str) -> list[Fact]:
        """Return the facts that are asked for; the first untold one if a question is about none."""
        asking = [one.strip() for one in _SENTENCE.findall(text) if _ASKS.search(one.strip())]
        left = [fact for fact in self._facts if self._told[fact] < _MAX_TOLD]
        found = [
            fact
            for fact in left
            if any(re.search(fact.asked, one, re.IGNORECASE) for one in asking)
        ]
        if found or not any(one.endswith("?") and not _ELSE.search(one) for one in asking):
            return found
        return [fact for fact in left if not self._told[fact]][:1]
