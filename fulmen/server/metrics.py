"""Metrics for Prometheus, under names and suffixes that dashboards for vLLM know, with our prefix.

Each application has a registry of its own. What the engine counts is read when someone asks.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram
from prometheus_client import generate_latest as _text_of
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fulmen.chat import Completion

_PREFIX: Final = "fulmen:"
_FINISH_REASONS: Final = ("stop", "length", "repetition", "abort", "error")
_TURN_STATES: Final = ("matched", "restored", "rendered")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50),
    *(100, 250, 500, 1000, 2500),
)
_GAP_SECONDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5),
    *(5, 10, 40),
)
_TOKENS: Final = tuple(base * 10**power for power in range(6) for base in (1, 2, 5))

_GAUGES: Final = (
    ("num_requests_running", "num_running", "Answers that are in the engine's batch."),
    ("num_requests_waiting", "num_waiting", "Answers that wait for a place in the batch."),
    ("kv_cache_usage_perc", "kv_cache_usage", "Share of the KV cache in use, 1 is all of it."),
)
_COUNTERS: Final = (
    ("prompt_tokens", "num_prompt_tokens", "Prompt tokens of all requests."),
    ("generation_tokens", "num_new_tokens", "New tokens of all answers."),
    ("prefix_cache_queries", "num_queried_tokens", "Tokens looked up in the cache."),
    ("prefix_cache_hits", "num_hit_tokens", "Tokens of those that were found."),
    ("prompt_tokens_cached", "num_hit_tokens", "Prompt tokens found in the cache."),
    ("evicted_tokens", "num_evicted_tokens", "Tokens dropped from the cache to make room."),
    ("num_preemptions", "num_preemptions", "Answers put aside to make room for others."),
)
"""Name of a metric, the field of `EngineStats` that holds it, and its help"""


class Metrics:
    """Counts and times of one application."""

    def __init__(self, model: object, model_name: str) -> None:
        """model: its `stats`, if it has any, are the engine's"""
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(model, model_name))
        self._model_name = model_name

        def histogram(name: str, text: str, buckets: Iterable[float]) -> Histogram:
            metric = Histogram(
                _PREFIX + name,
                text,
                ["model_name"],
                buckets=tuple(buckets),
                registry=self._registry,
            )
            return metric.labels(model_name)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(_PREFIX + name, text, ["model_name", *labels], registry=self._registry)

        self._first_token = histogram(
            "time_to_first_token_seconds", "Time until an answer's first token.", _SECONDS
        )
        self._gap = histogram(
            "inter_token_latency_seconds", "Time between two tokens of an answer.", _GAP_SECONDS
        )
        self._per_token = histogram(
            "request_time_per_output_token_seconds",
            "Mean time between the tokens of an answer.",
            _GAP_SECONDS,
        )
        self._all = histogram("e2e_request_latency_seconds", "Time of a whole answer.", _SECONDS)
        self._queue = histogram(
            "request_queue_time_seconds", "Time that an answer waited for a place.", _SECONDS
        )
        self._prefill = histogram(
            "request_prefill_time_seconds", "Time in which a prompt was read.", _SECONDS
        )
        self._decode = histogram(
            "request_decode_time_seconds", "Time in which an answer was sampled.", _SECONDS
        )
        self._prompt_tokens = histogram(
            "request_prompt_tokens", "Prompt tokens of an answer.", _TOKENS
        )
        self._new_tokens = histogram(
            "request_generation_tokens", "New tokens of an answer.", _TOKENS
        )
        self._finished = counter("request_success", "Answers that ended.", "finished_reason")
        self._rejected = counter("admission_rejections", "Requests that were refused.", "status")
        self._turns = counter(
            "history_turns",
            "Earlier answers in histories: matched in the log, matched and their thought put "
            "back, or rendered anew.",
            "state",
        )
        self._requests = counter("http_requests", "HTTP requests.", "method", "path", "status")
        for reason in _FINISH_REASONS:  # a dashboard shows zeros, not gaps
            self._finished.labels(model_name, reason)
        for state in _TURN_STATES:
            self._turns.labels(model_name, state)

    def add(self, collector: Collector) -> None:
        """Show what another collector counts too."""
        self._registry.register(collector)

    def first_token(self, seconds: float) -> None:
        """Count the time until an answer's first token."""
        self._first_token.observe(seconds)

    def token_gap(self, seconds: float, n: int = 1) -> None:
        """Count the time since the token before, in which n tokens came."""
        for _ in range(n):
            self._gap.observe(seconds / n)

    def finished(self, completion: Completion, seconds: float) -> None:
        """Count an answer that ended, and took this long from the request on."""
        usage = completion.usage
        self._finished.labels(self._model_name, completion.finish_reason).inc()
        self._all.observe(seconds)
        self._prompt_tokens.observe(usage.num_prompt_tokens)
        self._new_tokens.observe(usage.num_new_tokens)
        timing = getattr(completion, "timing", None)  # a scripted answer has none
        if timing is not None:
            self._queue.observe(timing.queue_seconds)
            self._prefill.observe(timing.prompt_seconds)
            self._decode.observe(timing.decode_seconds)
            if usage.num_new_tokens > 1:
                self._per_token.observe(timing.decode_seconds / (usage.num_new_tokens - 1))

    def rejected(self, status: int) -> None:
        """Count a request that was refused before it got a place."""
        self._rejected.labels(self._model_name, str(status)).inc()

    def turns(self, states: Iterable[str]) -> None:
        """Count the earlier answers of a history by what became of them."""
        for state in states:
            self._turns.labels(self._model_name, state).inc()

    def request(self, method: str, path: str | None, status: int) -> None:
        """Count an HTTP request.

        path  template of the route; None for one that there is not
        """
        known = method if method in _METHODS else "other"
        self._requests.labels(self._model_name, known, path or "other", str(status)).inc()

    def text(self) -> tuple[bytes, str]:
        """Return all metrics in Prometheus's text format, and the type of that content."""
        return _text_of(self._registry), CONTENT_TYPE_LATEST


class _EngineCollector(Collector):
    """Reads what the engine counts."""

    def __init__(self, model: object, model_name: str) -> None:
        self._model = model
        self._labels = [model_name]

    def collect(self) -> Iterator[Metric]:
        stats: Any = getattr(self._model, "stats", None)
        for name, field, text in _GAUGES:
            value = getattr(stats, field, None)
            if value is not None:
                gauge = GaugeMetricFamily(_PREFIX + name, text, labels=["model_name"])
                gauge.add_metric(self._labels, value)
                yield gauge
        for name, field, text in _COUNTERS:
            value = getattr(stats, field, None)
            if value is not None:
                counter = CounterMetricFamily(_PREFIX + name, text, labels=["model_name"])
                counter.add_metric(self._labels, value)
                yield counter
