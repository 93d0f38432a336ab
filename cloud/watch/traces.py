"""OpenTelemetry traces (extra `otel`): a span for each call, continued from the caller's traceparent, and below it one
for each stage of an answer.

Sampling and resource follow OpenTelemetry's own variables (OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG,
OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS, ...).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cloud.engine.events import Observer
from cloud.errors import BadConfiguration
from thinwire import __version__

if TYPE_CHECKING:
    import grpc
    from opentelemetry.sdk.trace.export import SpanExporter

    from cloud.engine.events import AnsweredFrame


class Traces(Observer):
    """Add it to `engine.observers` and its interceptors to the server. Spans leave on a thread of OpenTelemetry's;
    what the collector does not take in time is dropped there."""

    def __init__(self, endpoint: str, exporter: SpanExporter | None = None) -> None:
        """`endpoint` as in `WatchOptions.traces`; `exporter` in place of it. Raises `BadConfiguration`."""
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import set_span_in_context
        except ModuleNotFoundError as error:
            raise BadConfiguration(f"--traces needs OpenTelemetry ({error}): pip install 'thinwire[otel]'") from None
        self._below = set_span_in_context
        resource = Resource.create({"service.name": "thinwire-cloud", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or _exporter(endpoint)))
        self._tracer = self._provider.get_tracer("thinwire")

    def interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """For unary calls. A stream has no span of its own (it may live for days); its frames have."""
        from opentelemetry.instrumentation.grpc import aio_server_interceptor, filters

        wanted = filters.all_of(
            filters.negate(filters.health_check()), filters.negate(filters.method_name("ClassifyStream"))
        )
        return [aio_server_interceptor(self._provider, wanted)]

    def answered(self, seen: AnsweredFrame) -> None:
        """Stages are laid end to end, ending now: their lengths are exact, the gaps between them are not known."""
        timing = seen.answer.timing
        end = time.time_ns()
        at = end - int(timing.total_ms * 1e6)
        attributes = {
            "thinwire.device_id": seen.device_id,
            "thinwire.bundle": seen.answer.bundle or "",
            "thinwire.layers": seen.answer.layers,
            "thinwire.input_bytes": seen.input_bytes,
            "thinwire.batch_size": timing.batch_size,
        }
        parent = self._tracer.start_span("answer", start_time=at, attributes=attributes)
        if parent.is_recording():
            context = self._below(parent)
            for name in ("decode", "queue", "synthesis", "clip", "head"):
                span = self._tracer.start_span(name, context=context, start_time=at)
                at += int(getattr(timing, f"{name}_ms") * 1e6)
                span.end(min(at, end))
        parent.end(end)

    def close(self) -> None:
        """Sends what waits, within OpenTelemetry's own time limit."""
        self._provider.shutdown()


def _exporter(endpoint: str) -> SpanExporter:
    if endpoint == "console":
        import sys

        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stderr)
    scheme = endpoint.partition("://")[0]
    if scheme not in ("http", "https") or "://" not in endpoint:
        raise BadConfiguration(
            f"--traces {endpoint!r} is not a collector's address: write http://HOST:4317, or console"
        )
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError as error:
        raise BadConfiguration(f"--traces needs an OTLP exporter ({error}): pip install 'thinwire[otel]'") from None
    return OTLPSpanExporter(endpoint=endpoint, insecure=scheme == "http")
