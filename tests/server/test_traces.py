"""Traces: a span for each request with its answers' times, in the client's trace, and no text."""

import contextlib
import gzip
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanContext, SpanKind, StatusCode

from fulmen.llm import LLM, LocalModel
from fulmen.server import ServerConfig, Traces, create_app
from fulmen.server import traces as traces_file
from tests.cli.test_cli import called
from tests.server.helpers import answering, ask, scripted, served
from tests.server.serving import serving
from tests.tiny import write_checkpoint

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
SECRET = "a secret question"
BODY: dict[str, Any] = {
    "model": "any",
    "messages": [{"role": "user", "content": SECRET}],
    "max_tokens": 6,
}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CONVENTIONS = {
    value for value in vars(gen_ai_attributes).values() if isinstance(value, str) and "." in value
}


@contextlib.contextmanager
def traced(model: Any, **settings: Any) -> Iterator[tuple[str, InMemorySpanExporter]]:
    """Serve a model whose spans stay in memory."""
    exporter = InMemorySpanExporter()
    config = ServerConfig(port=0, drain_seconds=1, **settings)
    traces = Traces(SimpleSpanProcessor(exporter))
    with serving(create_app(model, config, traces=traces), config) as (host, port):
        yield f"http://{host}:{port}", exporter


def spans_of(exporter: InMemorySpanExporter, number: int) -> list[ReadableSpan]:
    """Return the spans, once so many are there: they are made after the answer went out."""
    until = time.monotonic() + 20
    while len(spans := exporter.get_finished_spans()) < number:
        assert time.monotonic() < until, [span.name for span in spans]
        time.sleep(0.01)
    return list(spans)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def context_of(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM.load(str(write_checkpoint(tmp_path_factory.mktemp("m2"), "m2")))


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_request_is_a_span_with_the_numbers_of_its_reply(
    llm: LLM, path: str, is_streamed: bool
) -> None:
    model = LocalModel(llm)
    before = time.time_ns()
    with traced(model, model_name="m2") as (url, exporter):
        body = {**BODY, "temperature": 0.5, "stream": is_streamed}
        if path == CHAT and is_streamed:
            body["stream_options"] = {"include_usage": True}
        reply = ask(url, path, body, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        assert reply.status == 200
        *children, span = spans_of(exporter, 4)
    after = time.time_ns()
    values = attributes(span)
    assert {name for name in values if name.startswith("gen_ai.")} <= CONVENTIONS
    usage = (reply.chunks()[-2 if path == MESSAGES else -1] if is_streamed else reply.json())[
        "usage"
    ]
    if path == CHAT:
        prompt, new = usage["prompt_tokens"], usage["completion_tokens"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
    else:
        cached, new = usage["cache_read_input_tokens"], usage["output_tokens"]
        prompt = usage["input_tokens"] + cached + usage.get("cache_creation_input_tokens", 0)
    assert (
        values["gen_ai.usage.input_tokens"],
        values["gen_ai.usage.cache_read.input_tokens"],
        values["gen_ai.usage.output_tokens"],
    ) == (prompt, cached, new)
    assert (span.name, span.kind) == ("chat any", SpanKind.SERVER)
    assert (values["gen_ai.request.model"], values["gen_ai.response.model"]) == ("any", "m2")
    assert (values["http.route"], values["http.response.status_code"]) == (path, 200)
    assert values["gen_ai.request.temperature"] == 0.5
    assert values["gen_ai.request.max_tokens"] == 6
    assert values["gen_ai.response.finish_reasons"] == ("length",)
    assert values["fulmen.request.id"] == reply.headers["x-request-id"]
    # The client's trace goes on, and the parts of the request lie in it one after the other.
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT
    assert {f"{context_of(each).trace_id:032x}" for each in (span, *children)} == {TRACE}
    assert [child.name for child in children] == ["queue", "prompt", "decode"]
    times = [before]
    for child in children:
        assert child.parent is not None
        assert child.parent.span_id == context_of(span).span_id
        times += [child.start_time or 0, child.end_time or 0]
    assert times == sorted(times)
    assert (span.start_time or 0) <= times[1]
    assert times[-1] <= (span.end_time or 0) <= after
    assert (children[1].end_time or 0) - (children[1].start_time or 0) > 0
    assert SECRET not in span.to_json() + "".join(child.to_json() for child in children)


def test_each_answer_has_its_times_and_a_prompt_counts_once(llm: LLM) -> None:
    with traced(LocalModel(llm)) as (url, exporter):
        reply = ask(url, CHAT, {**BODY, "n": 3}).json()
        *children, span = spans_of(exporter, 10)
    values = attributes(span)
    assert values["gen_ai.usage.input_tokens"] == reply["usage"]["prompt_tokens"]
    assert values["gen_ai.usage.output_tokens"] == reply["usage"]["completion_tokens"]
    assert values["gen_ai.request.choice.count"] == 3
    assert [attributes(child)["fulmen.answer.index"] for child in children] == [
        index for index in range(3) for _ in range(3)
    ]


def test_refusals_and_failures_are_spans_too_and_signs_of_life_are_none() -> None:
    model = scripted("m2", RuntimeError("broken"))
    with traced(model, api_keys=("sk-first-0123",)) as (url, exporter):
        for path in ("/health", "/ready"):
            ask(url, path)
        ask(url, CHAT, BODY)
        ask(url, "/v1/nowhere/" + "x" * 300, headers={"x-api-key": "sk-first-0123"})
        ask(url, CHAT, BODY, headers={"x-api-key": "sk-first-0123", "traceparent": "00-nonsense"})
        spans = spans_of(exporter, 3)
    told = [(span.name, attributes(span)["http.response.status_code"]) for span in spans]
    assert told == [(f"POST {CHAT}", 401), ("GET", 404), ("chat any", 500)]
    assert [span.status.status_code for span in spans] == [
        *(StatusCode.UNSET, StatusCode.UNSET, StatusCode.ERROR)
    ]
    assert attributes(spans[-1])["error.type"] == "500"
    assert all(span.parent is None for span in spans)
    assert "sk-first" not in "".join(span.to_json() for span in spans)


def test_a_client_that_goes_away_is_told_of() -> None:
    model = answering("m2", lambda _: "word " * 300, delay_seconds=0.02)
    with traced(model) as (url, exporter):
        host, port = url.removeprefix("http://").rsplit(":", 1)
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        connection.request(
            "POST", CHAT, json.dumps({**BODY, "stream": True, "max_tokens": 500}), {}
        )
        response = connection.getresponse()
        response.readline()
        response.close()
        connection.close()
        (span,) = spans_of(exporter, 1)
    assert attributes(span)["error.type"] == "client_gone"


def test_what_the_client_does_not_sample_is_not_sent(llm: LLM) -> None:
    with traced(LocalModel(llm)) as (url, exporter):
        for flags in ("00", "01"):
            header = {"traceparent": f"00-{TRACE}-{PARENT}-{flags}"}
            assert ask(url, CHAT, BODY, headers=header).status == 200
        spans = spans_of(exporter, 4)
    assert len(spans) == 4


def test_a_response_in_the_background_is_a_span_once_it_is_over(llm: LLM) -> None:
    with traced(LocalModel(llm)) as (url, exporter):
        body = {"input": SECRET, "background": True, "max_output_tokens": 20}
        id = ask(url, "/v1/responses", body).json()["id"]
        *children, span = spans_of(exporter, 4)
        usage = ask(url, f"/v1/responses/{id}").json()["usage"]
    values = attributes(span)
    assert values["gen_ai.response.id"] == id
    assert values["gen_ai.usage.output_tokens"] == usage["output_tokens"]
    assert [child.name for child in children] == ["queue", "prompt", "decode"]
    assert (children[-1].end_time or 0) <= (span.end_time or 0)


# ---- a collector


class Collector(HTTPServer):
    """A collector of OTLP over HTTP that keeps what it gets."""

    def __init__(self) -> None:
        self.received: list[tuple[str, ExportTraceServiceRequest, bytes]] = []
        super().__init__(("127.0.0.1", 0), _Posts)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Posts(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        message = ExportTraceServiceRequest.FromString(body)
        self.server.received.append((self.path, message, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("way", ["address", "whole address", "environment"])
def test_a_collector_gets_all_spans_when_the_server_ends(
    collector: Collector, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"trace_endpoint": f"{collector.url}/"}
    if way == "whole address":
        settings = {"trace_endpoint": f"{collector.url}/v1/traces"}
    elif way == "environment":
        settings = {"trace": True}
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    with served(scripted("m2", "Fine.", "A secret answer."), **settings) as url:
        for _ in range(2):
            assert ask(url, CHAT, BODY).status == 200
    names, service = [], set()
    for path, message, body in collector.received:
        assert path == "/v1/traces"
        assert b"secret" not in body
        for resource in message.resource_spans:
            service |= {
                each.value.string_value
                for each in resource.resource.attributes
                if each.key == "service.name"
            }
            names += [span.name for scope in resource.scope_spans for span in scope.spans]
    assert names == ["queue", "prompt", "decode", "chat any"] * 2
    assert service == {"ours" if way == "environment" else "fulmen"}


def test_a_collector_that_is_not_there_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces_file, "_END_SECONDS", 0.2)
    with served(scripted("m2", "Fine."), trace_endpoint="http://127.0.0.1:9") as url:
        assert ask(url, CHAT, BODY).status == 200
        ended = time.monotonic()
    assert time.monotonic() - ended < 8


# ---- without it


def test_without_the_package_the_line_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    for flags in (("--trace",), ("--trace-endpoint", "http://localhost:4318")):
        run = called("serve", tmp_path / "missing", "--no-transcripts", "--port", "0", *flags)
        assert run.returncode == 2
        said = " ".join(run.stderr.split())
        assert f"{flags[0]} needs OpenTelemetry, which is not installed" in said
        assert "pip install 'fulmen[otel]'" in said


@pytest.mark.parametrize("address", ["localhost:4318", "", "ftp://a", "http://", "http://a:b"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="it must be an address such as"):
        ServerConfig(trace_endpoint=address)


def test_a_server_without_traces_loads_nothing_of_it() -> None:
    program = (
        "import sys\n"
        "from tests.server.helpers import ask, scripted, served\n"
        "with served(scripted('m2', 'Fine.')) as url:\n"
        "    body = {'messages': [{'role': 'user', 'content': 'Hi'}]}\n"
        "    assert ask(url, '/v1/chat/completions', body).status == 200\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.sdk')]\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.exporter')]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
