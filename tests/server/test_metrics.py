"""Metrics: names that dashboards know, values that add up, and a registry for each application."""

import re
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from fulmen.chat import Completion, Reply, Usage
from fulmen.engine import EngineStats
from fulmen.sampling import SamplingParams
from fulmen.server import ServerConfig
from fulmen.server.metrics import Metrics
from tests.server.serving import small_app


@dataclass
class Stats:
    """Counts of an engine."""

    num_running: int = 3
    num_waiting: int = 2
    kv_cache_usage: float = 0.25
    num_prompt_tokens: int = 1000
    num_queried_tokens: int = 1100
    num_new_tokens: int = 200
    num_hit_tokens: int = 600
    num_evicted_tokens: int = 50
    num_preemptions: int = 1


@dataclass
class Model:
    """A model that only counts."""

    stats: Stats


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text, content_type = metrics.text()
    assert content_type.startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[f"fulmen:{name}", frozenset({"model_name": "m", **labels}.items())]


def completion(num_prompt_tokens: int, num_new_tokens: int) -> Completion:
    return Completion(
        reply=Reply(content="a"),
        finish_reason="length",
        prompt_ids=(),
        tokens=(),
        params=SamplingParams(),
        usage=Usage(num_prompt_tokens=num_prompt_tokens, num_new_tokens=num_new_tokens),
    )


def test_the_engine_counts_all_that_is_read() -> None:
    assert {field.name for field in fields(Stats)} <= {field.name for field in fields(EngineStats)}


def test_the_engine_is_read_when_someone_asks() -> None:
    model = Model(Stats())
    metrics = Metrics({"m": model})
    for name, expected in (
        ("num_requests_running", 3),
        ("num_requests_waiting", 2),
        ("kv_cache_usage_perc", 0.25),
        ("prompt_tokens_total", 1000),
        ("generation_tokens_total", 200),
        ("prefix_cache_queries_total", 1100),
        ("prefix_cache_hits_total", 600),
        ("prompt_tokens_cached_total", 600),
        ("evicted_tokens_total", 50),
        ("num_preemptions_total", 1),
    ):
        assert value(metrics, name) == expected, name
    model.stats = Stats(num_running=8, num_new_tokens=201)
    assert value(metrics, "num_requests_running") == 8
    assert value(metrics, "generation_tokens_total") == 201


def test_a_model_that_does_not_count_has_the_rest() -> None:
    metrics = Metrics({"m": object()})
    assert value(metrics, "request_success_total", finished_reason="stop") == 0
    assert ("fulmen:num_requests_running", frozenset({("model_name", "m")})) not in samples(metrics)


def test_an_answer_is_counted() -> None:
    metrics = Metrics({"m": object()})
    metrics.of("m").first_token(0.3)
    metrics.of("m").token_gap(0.4, 4)
    metrics.of("m").token_gap(0.1)
    answer = completion(num_prompt_tokens=70, num_new_tokens=5)
    metrics.of("m").finished(answer, 2.5)
    for name, count, total in (
        ("time_to_first_token_seconds", 1, 0.3),
        ("inter_token_latency_seconds", 5, 0.5),
        ("e2e_request_latency_seconds", 1, 2.5),
        ("request_prompt_tokens", 1, 70),
        ("request_generation_tokens", 1, 5),
    ):
        assert value(metrics, f"{name}_count") == count, name
        assert value(metrics, f"{name}_sum") == pytest.approx(total), name
    # 0.1 s for each of five tokens: not one of 0.4 s.
    assert value(metrics, "inter_token_latency_seconds_bucket", le="0.1") == 5
    assert value(metrics, "request_success_total", finished_reason="length") == 1
    assert value(metrics, "request_success_total", finished_reason="stop") == 0


def test_an_answers_times_are_counted_where_they_are_known() -> None:
    metrics = Metrics({"m": object()})
    answer: Any = SimpleNamespace(
        usage=Usage(num_prompt_tokens=1, num_new_tokens=5),
        finish_reason="stop",
        timing=SimpleNamespace(queue_seconds=1.0, prompt_seconds=2.0, decode_seconds=4.0),
    )
    metrics.of("m").finished(answer, 7.0)
    for name, total in (
        ("request_queue_time_seconds", 1),
        ("request_prefill_time_seconds", 2),
        ("request_decode_time_seconds", 4),
        ("request_time_per_output_token_seconds", 1),
    ):
        assert value(metrics, f"{name}_sum") == total, name


def test_turns_and_refusals_are_counted_by_kind() -> None:
    metrics = Metrics({"m": object()})
    metrics.of("m").turns(["matched", "matched", "restored"])
    metrics.rejected(429)
    metrics.rejected(413)
    metrics.rejected(429)
    assert value(metrics, "history_turns_total", state="matched") == 2
    assert value(metrics, "history_turns_total", state="restored") == 1
    assert value(metrics, "history_turns_total", state="rendered") == 0
    assert value(metrics, "admission_rejections_total", status="429") == 2


def test_names_and_suffixes_are_those_of_the_field() -> None:
    text = Metrics({"m": Model(Stats())}).text()[0].decode()
    names = set(re.findall(r"^# TYPE (\S+) (?!gauge)", text, re.M))
    assert all(name.startswith("fulmen:") for name in names)
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)", text, re.M):
        if kind == "histogram":
            assert name.endswith(("_seconds", "_tokens"))
        elif kind == "counter":
            assert name.endswith("_total")


def test_requests_are_counted_by_route_so_that_clients_cannot_fill_the_memory() -> None:
    config = ServerConfig(model_name="m", api_keys=("sk-first-0123",))
    app = small_app(config)
    asked = TestClient(app, base_url="http://localhost")
    for number in range(50):
        asked.get(f"/v1/models/{number}", headers={"x-api-key": "sk-first-0123"})
        asked.get(f"/nowhere/{number}", headers={"x-api-key": "sk-first-0123"})
        asked.request(f"BREW{number}", "/health")
        asked.post("/v1/messages")
    counted = {
        tuple(sorted(dict(labels).items())): number
        for (name, labels), number in samples(app.state.metrics).items()
        if name == "fulmen:http_requests_total"
    }
    assert sorted(counted.values()) == [50, 50, 50, 50]
    assert value(app.state.metrics, "admission_rejections_total", status="401") == 50
    path = "/v1/models/{name}"
    assert (
        value(app.state.metrics, "http_requests_total", method="GET", path=path, status="200") == 50
    )


def test_two_applications_count_apart() -> None:
    one, other = (small_app(ServerConfig(model_name="m")) for _ in range(2))
    TestClient(one, base_url="http://localhost").get("/health")
    assert sum(samples(other.state.metrics).values()) < sum(samples(one.state.metrics).values())
