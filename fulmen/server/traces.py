"""Traces: a span for each request, with its answers' times, for OpenTelemetry.

    request -> its headers name the trace it belongs to -> answered as ever
            -> span of the request -> queue, prompt, decode of each answer -> OTLP over HTTP

Spans are made when a request is over, from times that are known by then, so that a request costs
nothing while it runs. Attributes have the names of the semantic conventions for generative AI. No
text of a prompt or an answer is in any. The package `opentelemetry-sdk` is optional.
"""

import asyncio
import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from fulmen import __version__
from fulmen.files import shorten
from fulmen.server.config import ServerConfig

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

    from fulmen.server.answers import Answers

_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
}
"""Name of the operation behind a route, by the conventions for generative AI"""
_QUIET_PATHS: Final = ("/health", "/ready", "/metrics")
"""Paths that are asked every few seconds, and have no span"""
_END_SECONDS: Final = 5.0
"""Time that the last spans get to go out when the server ends"""
_NANO: Final = 10**9


class Traces:
    """Spans of requests, on their way to an exporter."""

    def __init__(self, processor: "SpanProcessor") -> None:
        """processor: takes each span as it ends"""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        attributes = {"service.version": __version__}
        if "OTEL_SERVICE_NAME" not in os.environ:
            attributes["service.name"] = "fulmen"
        self._provider = TracerProvider(
            resource=Resource.create(attributes), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("fulmen.server", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(
        self,
        *,
        headers: Mapping[str, str],
        method: str,
        route: str | None,
        status: int,
        request_id: str,
        started: int,
        answers: "Answers | None" = None,
        is_gone: bool = False,
    ) -> None:
        """Make the spans of a request whose answers are over now.

        headers  the request's; their traceparent is the parent of its span
        route    template of the route; None for a path that there is not
        started  time at which the request came, in nanoseconds since 1970
        answers  what it came to, if it came to any
        is_gone  the client went away before the end
        """
        if route in _QUIET_PATHS:
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        ended = time.time_ns()
        attributes: dict[str, Any] = {
            "http.request.method": shorten(method, 20),
            "http.response.status_code": status,
            "fulmen.request.id": request_id,
        }
        if route is not None:
            attributes["http.route"] = route
        name = f"{attributes['http.request.method']} {route or ''}".strip()
        if answers is not None:
            attributes |= _attributes_of(answers)
            attributes["gen_ai.operation.name"] = _OPERATIONS.get(route or "", "chat")
            attributes["gen_ai.response.model"] = answers.model_name
            name = f"{attributes['gen_ai.operation.name']} {attributes['gen_ai.request.model']}"
        span = self._tracer.start_span(
            name,
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=min(started, ended),
        )
        if status >= 500 or is_gone:
            span.set_attribute("error.type", "client_gone" if is_gone else str(status))
            span.set_status(Status(StatusCode.ERROR))
        if answers is not None and span.is_recording():
            self._record_times(answers, set_span_in_context(span), ended)
        span.end(ended)

    def _record_times(self, answers: "Answers", context: Any, ended: int) -> None:
        """Make the spans of what each answer went through; an answer without times has none."""
        for index, completion in enumerate(answers.completions):
            timing = getattr(completion, "timing", None)
            if timing is None:
                continue
            begun = answers.begun_at
            for name in ("queue", "prompt", "decode"):
                until = begun + int(getattr(timing, f"{name}_seconds") * _NANO)
                child = self._tracer.start_span(
                    name,
                    context=context,
                    attributes={"fulmen.answer.index": index},
                    start_time=begun,
                )
                child.end(max(begun, min(until, ended)))
                begun = min(until, ended)

    async def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        # A thread of ours, which the end of the program does not wait for.
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        until = time.monotonic() + _END_SECONDS
        while thread.is_alive() and time.monotonic() < until:
            await asyncio.sleep(0.02)


def _attributes_of(answers: "Answers") -> dict[str, Any]:
    """Return what a request asked for and came to, in the conventions' words."""
    ask, params = answers.ask, answers.ask.params
    done = [each for each in answers.completions if each is not None]
    # The answers to one prompt share it: it counts with the first.
    firsts = [each for each in answers.completions[:: ask.num_answers] if each is not None]
    num_prompt = sum(each.usage.num_prompt_tokens + len(each.prefix_ids) for each in firsts)
    values = {
        "gen_ai.provider.name": "fulmen",
        "gen_ai.request.model": shorten(ask.model, 200),
        "gen_ai.request.choice.count": ask.num_answers if ask.num_answers > 1 else None,
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.request.seed": params.seed,
        "gen_ai.response.id": answers.id,
        "gen_ai.response.finish_reasons": [each.finish_reason for each in done] or None,
        "gen_ai.response.time_to_first_chunk": answers.first_token_seconds,
        "gen_ai.usage.input_tokens": num_prompt if firsts else answers.num_prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": sum(
            each.usage.num_cached_tokens for each in firsts
        ),
        "gen_ai.usage.output_tokens": answers.num_new_tokens,
        "gen_ai.usage.reasoning.output_tokens": sum(
            each.usage.num_thinking_tokens for each in done
        ),
    }
    return {name: value for name, value in values.items() if value is not None}


def open_traces(config: ServerConfig) -> Traces | None:
    """Return the traces that a server's settings ask for; None for none.

    Raises ValueError where OpenTelemetry is not installed.
    """
    if not config.trace and config.trace_endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        name = "trace" if config.trace_endpoint is None else "trace_endpoint"
        raise ValueError(
            f"{name} needs OpenTelemetry, which is not installed: pip install 'fulmen[otel]'"
        ) from None
    # Without an address the exporter reads OTEL_EXPORTER_OTLP_ENDPOINT, as every program of
    # OpenTelemetry's does; headers and certificates come from the environment in either case.
    exporter = OTLPSpanExporter(endpoint=_address(config.trace_endpoint))
    return Traces(BatchSpanProcessor(exporter))


def _address(endpoint: str | None) -> str | None:
    """Return the address that traces are posted to, for a collector's own."""
    if endpoint is None or endpoint.endswith("/v1/traces"):
        return endpoint
    return f"{endpoint.rstrip('/')}/v1/traces"
