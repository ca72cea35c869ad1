"""Places: how many answers may run and wait at once.

request -> Places.acquire -> Lease, for its answers -> release -> whoever waits for the end
"""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from fulmen.server.config import ServerConfig
from fulmen.server.errors import Refusal

_DEFAULT_MAX_NUM_SEQS: Final = 8
"""Answers at once of a model that does not say how many it can run"""


class Places:
    """Answers that run or wait, and how many may. For one event loop."""

    def __init__(self, model: object, config: ServerConfig) -> None:
        engine = getattr(getattr(model, "llm", None), "engine", None)
        says = getattr(engine, "config", model)  # an engine's config, or the model itself
        self.max_running: int = getattr(says, "max_num_seqs", _DEFAULT_MAX_NUM_SEQS)
        self.max_queued = config.max_queued
        self.num_taken = 0
        self._seconds: deque[float] = deque(maxlen=32)
        """Times that the last answers held their places"""

    @property
    def num_running(self) -> int:
        """Answers that have a place in the engine."""
        return min(self.num_taken, self.max_running)

    @property
    def num_waiting(self) -> int:
        """Answers that wait for one."""
        return self.num_taken - self.num_running

    def acquire(self, n: int = 1) -> "Lease":
        """Take places for n answers.

        Raises a Refusal: 429 where they are not free, 400 where so many can never be.
        """
        most = self.max_running + self.max_queued
        if n > most:
            raise Refusal(
                400, f"the request wants {n} answers, at most {most} may run and wait here"
            )
        if self.num_taken + n > most:
            raise Refusal(
                429,
                f"{self.num_running} answers run and {self.num_waiting} wait, at most "
                f"{self.max_running} may run and {self.max_queued} wait; try again later",
                code="rate_limit_exceeded",
                retry_after=self._retry_after(self.num_taken + n - most),
            )
        self.num_taken += n
        return Lease(self, n)

    def _retry_after(self, num_needed: int) -> int:
        """Return in how many seconds so many places should be free, from 1 to 60."""
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else 0.0
        return min(max(math.ceil(mean * num_needed / self.max_running), 1), 60)

    def _give_back(self, n: int, seconds: float) -> None:
        self.num_taken -= n
        self._seconds.append(seconds)


class Lease:
    """Places of one request, until they are released."""

    def __init__(self, places: Places, n: int) -> None:
        self._places = places
        self._n = n
        self._since = time.monotonic()
        self._ends: list[Callable[[], None]] = []

    def and_then(self, end: Callable[[], None]) -> None:
        """Call something once, when the places are given back; at once if they were."""
        if self._n:
            self._ends.append(end)
        else:
            end()

    def release(self) -> None:
        """Give the places back; safe to call again."""
        n, self._n = self._n, 0
        if n:
            self._places._give_back(n, time.monotonic() - self._since)
            for end in self._ends:
                end()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
