"""Stop texts: an answer ends before the first of them that it says."""

from collections.abc import Sequence


class StopTexts:
    """Filter that passes text through until a stop text appears, which is cut off.

    The stop text that begins first counts, however the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max((len(stop) for stop in stops), default=1)
        self._held = ""
        self.found: str | None = None
        """Stop text that appeared; of two that begin alike, the shorter"""

    @property
    def is_found(self) -> bool:
        """True once a stop text appeared."""
        return self.found is not None

    @property
    def held(self) -> str:
        """Text that may be the beginning of a stop text."""
        return self._held

    def feed(self, piece: str, *, is_last: bool = False) -> str:
        """Return the text that can be passed on; a possible beginning of a stop text waits."""
        if self.is_found:
            return ""
        text = self._held + piece
        open_at = len(text) if is_last else self._find_open(text)
        begins = [(at, len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if begins and min(begins)[0] <= open_at:
            at, _, self.found = min(begins)
            return text[:at]
        self._held = text[open_at:]
        return text[:open_at]

    def _find_open(self, text: str) -> int:
        """Return the start of the first stop text that text leaves unfinished, else its end."""
        for start in range(max(len(text) - self._longest + 1, 0), len(text)):
            rest = text[start:]
            if any(len(stop) > len(rest) and stop.startswith(rest) for stop in self._stops):
                return start
        return len(text)
