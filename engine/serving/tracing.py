"""Traces for an OpenTelemetry collector: whether there are any, and where they go.

OpenTelemetry is imported when tracing is asked for, not before. Sampling, headers, the name of the service
and the like are set as everywhere, by the variables of OpenTelemetry (OTEL_TRACES_SAMPLER, ...).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engine.errors import ConfigError
from engine.serving.options import TracingOptions
from engine.serving.version import version

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from engine.serving.request_report import RequestObserver

# For a batch of spans, retries included: how long a collector that is gone can hold up the server's end.
_SECONDS_TO_EXPORT = 5


@contextmanager
def open_tracing(options: TracingOptions, model: str) -> Iterator["tuple[RequestObserver, ...]"]:
    """Whoever writes the traces, if anybody does. Sends the last ones at the end.

    Raises ConfigError if OpenTelemetry is not installed.
    """
    if options.otlp_endpoint is None:
        yield ()
        return
    provider = _provider(options.otlp_endpoint)
    from engine.serving.tracing_spans import RequestTracer

    try:
        yield (RequestTracer(provider, model),)
    finally:
        provider.shutdown()


def check_tracing(options: TracingOptions) -> None:
    """Whether it can be opened. Raises ConfigError."""
    if options.otlp_endpoint is None:
        return
    try:
        import opentelemetry.exporter.otlp.proto.grpc.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401  is it there?
    except ImportError as error:
        advice = "pip install 'inflight-engine[tracing]'"
        raise ConfigError(f"otlp_endpoint {options.otlp_endpoint!r}: {error}: {advice}") from None


def _provider(endpoint: str) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "inflight", "service.version": version()})
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_SECONDS_TO_EXPORT)
    # What the operator says counts more.
    provider = TracerProvider(resource=resource.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
