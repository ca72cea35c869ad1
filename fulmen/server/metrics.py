"""Metrics for Prometheus, under names and suffixes that dashboards for vLLM know, with our prefix.

Each application has a registry of its own. What the engine counts is read when someone asks.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

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
_HISTOGRAMS: Final = (
    ("time_to_first_token_seconds", "Time until an answer's first token.", _SECONDS),
    ("inter_token_latency_seconds", "Time between two tokens of an answer.", _GAP_SECONDS),
    (
        "request_time_per_output_token_seconds",
        "Mean time between the tokens of an answer.",
        _GAP_SECONDS,
    ),
    ("e2e_request_latency_seconds", "Time of a whole answer.", _SECONDS),
    ("request_queue_time_seconds", "Time that an answer waited for a place.", _SECONDS),
    ("request_prefill_time_seconds", "Time in which a prompt was read.", _SECONDS),
    ("request_decode_time_seconds", "Time in which an answer was sampled.", _SECONDS),
    ("request_prompt_tokens", "Prompt tokens of an answer.", _TOKENS),
    ("request_generation_tokens", "New tokens of an answer.", _TOKENS),
)
"""Name of a metric, its help, and the bounds of its buckets"""


class Metrics:
    """Counts and times of one application, each with the name of its model.

    What concerns no model, such as a key that is refused, has the name of the only one; an empty
    name where several are served.
    """

    def __init__(self, models: Mapping[str, object]) -> None:
        """models: those served, by their names; the `stats` of each, if it has any, are its
        engine's"""
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(models))
        self._name_of_none = next(iter(models)) if len(models) == 1 else ""
        self._rejected = self._counter(
            "admission_rejections", "Requests that were refused.", "status"
        )
        self._requests = self._counter(
            "http_requests", "HTTP requests.", "method", "path", "status"
        )
        times = {name: self._histogram(name, text, buckets) for name, text, buckets in _HISTOGRAMS}
        finished = self._counter("request_success", "Answers that ended.", "finished_reason")
        turns = self._counter(
            "history_turns",
            "Earlier answers in histories: matched in the log, matched and their thought put "
            "back, or rendered anew.",
            "state",
        )
        self._of = {name: ModelMetrics(name, times, finished, turns) for name in models}

    def _histogram(self, name: str, text: str, buckets: Iterable[float]) -> Histogram:
        return Histogram(
            _PREFIX + name, text, ["model_name"], buckets=tuple(buckets), registry=self._registry
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, text, ["model_name", *labels], registry=self._registry)

    def of(self, model_name: str) -> "ModelMetrics":
        """Return what is counted of one model."""
        return self._of[model_name]

    def add(self, collector: Collector) -> None:
        """Show what another collector counts too."""
        self._registry.register(collector)

    def rejected(self, status: int, model_name: str | None = None) -> None:
        """Count a request that was refused before it got a place; model_name is None where it came
        to no model."""
        self._rejected.labels(self._named(model_name), str(status)).inc()

    def request(
        self, method: str, path: str | None, status: int, model_name: str | None = None
    ) -> None:
        """Count an HTTP request.

        path        template of the route; None for one that there is not
        model_name  model that it was for; None for none
        """
        known = method if method in _METHODS else "other"
        name = self._named(model_name)
        self._requests.labels(name, known, path or "other", str(status)).inc()

    def _named(self, model_name: str | None) -> str:
        return self._name_of_none if model_name is None else model_name

    def text(self) -> tuple[bytes, str]:
        """Return all metrics in Prometheus's text format, and the type of that content."""
        return _text_of(self._registry), CONTENT_TYPE_LATEST


class ModelMetrics:
    """Counts and times of one model's answers."""

    def __init__(
        self,
        model_name: str,
        times: Mapping[str, Histogram],
        finished: Counter,
        turns: Counter,
    ) -> None:
        """times: histograms by their names"""
        self._model_name = model_name
        self._times = {name: each.labels(model_name) for name, each in times.items()}
        self._finished = finished
        self._turns = turns
        for reason in _FINISH_REASONS:  # a dashboard shows zeros, not gaps
            finished.labels(model_name, reason)
        for state in _TURN_STATES:
            turns.labels(model_name, state)

    def first_token(self, seconds: float) -> None:
        """Count the time until an answer's first token."""
        self._times["time_to_first_token_seconds"].observe(seconds)

    def token_gap(self, seconds: float, n: int = 1) -> None:
        """Count the time since the token before, in which n tokens came."""
        gaps = self._times["inter_token_latency_seconds"]
        for _ in range(n):
            gaps.observe(seconds / n)

    def finished(self, completion: Completion, seconds: float) -> None:
        """Count an answer that ended, and took this long from the request on."""
        usage, times = completion.usage, self._times
        self._finished.labels(self._model_name, completion.finish_reason).inc()
        times["e2e_request_latency_seconds"].observe(seconds)
        times["request_prompt_tokens"].observe(usage.num_prompt_tokens)
        times["request_generation_tokens"].observe(usage.num_new_tokens)
        timing = getattr(completion, "timing", None)  # a scripted answer has none
        if timing is not None:
            times["request_queue_time_seconds"].observe(timing.queue_seconds)
            times["request_prefill_time_seconds"].observe(timing.prompt_seconds)
            times["request_decode_time_seconds"].observe(timing.decode_seconds)
            if usage.num_new_tokens > 1:
                mean = timing.decode_seconds / (usage.num_new_tokens - 1)
                times["request_time_per_output_token_seconds"].observe(mean)

    def turns(self, states: Iterable[str]) -> None:
        """Count the earlier answers of a history by what became of them."""
        for state in states:
            self._turns.labels(self._model_name, state).inc()


class _EngineCollector(Collector):
    """Reads what the engines count."""

    def __init__(self, models: Mapping[str, object]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        for metric, fields in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for name, field, text in fields:
                family = metric(_PREFIX + name, text, labels=["model_name"])
                for model_name, model in self._models.items():
                    value = getattr(getattr(model, "stats", None), field, None)
                    if value is not None:
                        family.add_metric([model_name], value)
                if family.samples:
                    yield family
