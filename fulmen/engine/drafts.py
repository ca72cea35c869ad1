"""Guesses of a request's next tokens from its own text (as in arXiv:2304.04487, arXiv:2411.04975).

Where the last tokens stood before, the tokens that followed them then may follow now. There is no
second model; a wrong guess costs its share of one pass.
"""

from collections.abc import Sequence
from typing import Final

KEY: Final = 3
"""Number of last tokens that must have stood before for a guess."""
LONGEST_MATCH: Final = 32
"""Most last tokens that are compared."""
RECENT: Final = 1 << 14
"""Tokens before the first guess that are looked at, so that a long prompt holds up no step."""
MOST_PLACES: Final = 4
"""Latest places of the same KEY tokens that are compared"""


class Drafter:
    """Places of every run of KEY tokens in one growing sequence."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], list[int]] = {}
        """Run of tokens -> where its latest occurrences end, the latest last"""
        self._num_known = 0

    def draft(self, ids: Sequence[int], most: int) -> list[int]:
        """Return at most `most` tokens that may follow ids, which only grow from call to call.

        They are those that followed the longest, latest match of the last tokens, and no more than
        the match is long.
        """
        start = max(self._num_known or len(ids) - RECENT, KEY)
        for end in range(start, len(ids)):  # without the last run, which is what we look for
            places = self._places.setdefault(tuple(ids[end - KEY : end]), [])
            places.append(end)
            del places[:-MOST_PLACES]
        self._num_known = max(len(ids), KEY)
        best, longest = 0, 0
        for place in self._places.get(tuple(ids[-KEY:]), ()):
            length = KEY
            while (
                length < min(LONGEST_MATCH, place) and ids[place - length - 1] == ids[-length - 1]
            ):
                length += 1
            if length >= longest:
                best, longest = place, length
        return list(ids[best : best + min(most, longest)]) if longest else []
