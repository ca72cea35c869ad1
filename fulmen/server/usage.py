"""Use of the server by each API key: what came of it so far, and whether it may ask for more.

    request -> check: 429, before any work -> begin -> new tokens as they come
                                                    -> the prompt's and thought's at the end

Limits look at the last minute, which is kept by the second. An answer that runs is never cut: it
counts as it goes, and what it took beyond the limit delays the requests after it.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fulmen.server.errors import Refusal
from fulmen.server.keys import ApiKey, Keys

_MINUTE: Final = 60
_LONGEST_RETRY: Final = 60
"""Most seconds after which a refused caller is told to ask again; SDKs ignore longer times"""
_COUNTERS: Final = (
    ("requests", "num_requests", "Requests for answers of a key."),
    ("prompt_tokens", "num_prompt_tokens", "Prompt tokens of a key's requests."),
    ("cached_tokens", "num_cached_tokens", "Tokens of those that were found in the cache."),
    ("generation_tokens", "num_new_tokens", "New tokens of a key's answers."),
    ("thinking_tokens", "num_thinking_tokens", "Tokens of those that were thought."),
    ("rejections", "num_refused", "Requests that a limit of the key refused."),
)
"""Name of a metric after `key_`, the field of `KeyUsage` that holds it, and its help"""


class LastMinute:
    """Sum of what came within the last minute: at most 62 numbers, whatever comes.

    A second's sum is forgotten once all of it is a minute old, so any 60 seconds are covered.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sums: deque[tuple[int, int]] = deque()
        """Each second in which something came, and its sum"""

    def add(self, amount: int) -> None:
        """Count what comes now."""
        now = int(self._clock())
        if self._sums and self._sums[-1][0] == now:
            amount += self._sums.pop()[1]
        self._sums.append((now, amount))
        self._forget()

    def total(self) -> int:
        """Return the sum."""
        self._forget()
        return sum(amount for _, amount in self._sums)

    def seconds_until_below(self, limit: int) -> int:
        """Return in how many whole seconds the sum is less than a limit, if nothing comes."""
        total, now = self.total(), self._clock()
        if total < limit:
            return 0
        for second, amount in self._sums:
            total -= amount
            if total < limit:
                return max(math.ceil(second + 1 + _MINUTE - now), 1)
        return _MINUTE + 1  # only for a limit of 0

    def _forget(self) -> None:
        now = self._clock()
        while self._sums and self._sums[0][0] + 1 + _MINUTE <= now:
            self._sums.popleft()


class KeyUsage:
    """Use of the server by one key since the start. For one event loop."""

    def __init__(
        self,
        name: str,
        limits: ApiKey | None,
        clock: Callable[[], float] = time.monotonic,
        *,
        whole: "KeyUsage | None" = None,
    ) -> None:
        """
        limits  the key with its limits; None for one without any
        whole   use of all models by the key, which this one's is part of: limits look at that
        """
        self.name = name
        self._whole = whole
        self.num_requests = 0
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_new_tokens = 0
        self.num_thinking_tokens = 0
        self.num_refused = 0
        self.num_running = 0
        """Answers that run or wait"""
        self._limits = limits
        self._clock = clock
        self._requests = LastMinute(clock)
        self._tokens = LastMinute(clock)
        self._seconds: deque[float] = deque(maxlen=32)
        """Times that the last requests took"""

    def check(self, n: int = 1) -> None:
        """Raise a Refusal where a limit keeps a request for n answers from beginning now."""
        try:
            if self._whole is not None:
                self._whole.check(n)
            elif self._limits is not None:
                self._check(n, self._limits)
        except Refusal:
            self.num_refused += 1
            raise

    def _check(self, n: int, limits: ApiKey) -> None:
        most = limits.max_running
        if most is not None and n > most:
            raise Refusal(
                400, f"the request wants {n} answers, at most {most} may run for {self.name}"
            )
        if most is not None and self.num_running + n > most:
            mean = sum(self._seconds) / len(self._seconds) if self._seconds else 0
            raise self._refusal(
                f"{self.num_running} answers run for {self.name}, at most {most} may",
                math.ceil(mean * (self.num_running + n - most) / most),
            )
        for what, window, limit in (
            ("requests", self._requests, limits.requests_per_minute),
            ("tokens", self._tokens, limits.tokens_per_minute),
        ):
            if limit is not None and window.total() >= limit:
                raise self._refusal(
                    f"{self.name} has had {window.total():,} {what} within a minute, the limit is "
                    f"{limit:,}",
                    window.seconds_until_below(limit),
                )

    def _refusal(self, said: str, seconds: int) -> Refusal:
        seconds = min(max(seconds, 1), _LONGEST_RETRY)
        return Refusal(
            429,
            f"{said}; try again in {seconds} s",
            code="rate_limit_exceeded",
            retry_after=seconds,
        )

    def begin(self, n: int = 1) -> Callable[[], None]:
        """Count a request for n answers that begins, and return what to call when it is over."""
        self.num_requests += 1
        self.num_running += n
        self._requests.add(1)
        started = self._clock()
        end_of_whole = None if self._whole is None else self._whole.begin(n)

        def end() -> None:
            self.num_running -= n
            self._seconds.append(self._clock() - started)
            if end_of_whole is not None:
                end_of_whole()

        return end

    def add_new(self, n: int) -> None:
        """Count n new tokens."""
        if n > 0:
            self.num_new_tokens += n
            self._tokens.add(n)
            if self._whole is not None:
                self._whole.add_new(n)

    def add_prompt(self, n: int, num_cached: int) -> None:
        """Count a prompt of n tokens, some of which were found in the cache."""
        num_cached = min(num_cached, n)
        self.num_prompt_tokens += n
        self.num_cached_tokens += num_cached
        self._tokens.add(n - num_cached)
        if self._whole is not None:
            self._whole.add_prompt(n, num_cached)

    def add_thinking(self, n: int) -> None:
        """Tell how many of the new tokens were thought."""
        self.num_thinking_tokens += n
        if self._whole is not None:
            self._whole.add_thinking(n)

    def to_dict(self) -> dict[str, Any]:
        """Return the use as `GET /v1/usage` tells it."""
        limits = {
            name: getattr(self._limits, name, None)
            for name in ("max_running", "requests_per_minute", "tokens_per_minute")
        }
        return {
            "object": "usage",
            "key": self.name,
            "requests": self.num_requests,
            "refused_requests": self.num_refused,
            "running": self.num_running,
            "prompt_tokens": self.num_prompt_tokens,
            "cached_tokens": self.num_cached_tokens,
            "new_tokens": self.num_new_tokens,
            "thinking_tokens": self.num_thinking_tokens,
            "last_minute": {"requests": self._requests.total(), "tokens": self._tokens.total()},
            "limits": limits,
        }


class Usages(Collector):
    """Use of the server's models by all of its keys; Prometheus reads it here, by their names."""

    def __init__(self, keys: Keys, model_names: Iterable[str]) -> None:
        self.since = int(time.time())
        """Time of the start, in seconds since 1970"""
        self._of_scope = {
            scope: KeyUsage(keys.name_of(scope), keys.limits_of(scope)) for scope in keys.scopes
        }
        self._of_model = {
            (model_name, scope): KeyUsage(whole.name, None, whole=whole)
            for model_name in model_names
            for scope, whole in self._of_scope.items()
        }

    def of(self, scope: str, model_name: str | None = None) -> KeyUsage:
        """Return the use of one model, or of all, by the key of a scope."""
        return self._of_scope[scope] if model_name is None else self._of_model[model_name, scope]

    def collect(self) -> Iterator[Metric]:
        """Yield each count of each key."""
        labels = ["model_name", "key"]
        for name, field, text in _COUNTERS:
            counter = CounterMetricFamily(f"fulmen:key_{name}", text, labels=labels)
            for (model_name, _), usage in self._of_model.items():
                counter.add_metric([model_name, usage.name], getattr(usage, field))
            yield counter
        gauge = GaugeMetricFamily(
            "fulmen:key_answers_running", "Answers of a key that run or wait.", labels=labels
        )
        for (model_name, _), usage in self._of_model.items():
            gauge.add_metric([model_name, usage.name], usage.num_running)
        yield gauge
