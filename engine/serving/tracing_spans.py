"""The spans of a request, made when it is over: then all its times are known.

`text_completion MODEL` is the request, from its arrival to the end of its last output; within it `queue`,
until it first ran, `prefill`, until its first token, and `decode`. One that did not get so far has fewer.
Attributes are named as in OpenTelemetry's conventions for generative AI where those have a name, else
`inflight.*`. None of them holds a client's text.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from engine.sampling.params import SamplingParams
from engine.serving.request_report import REFUSED, RequestReport
from engine.serving.types import Timings
from engine.serving.version import version
from scheduler.request import FinishReason

OPERATION = "text_completion"
PROVIDER = "inflight"

_NANOSECONDS = 1e9
# A client that leaves does what it wants. Everything else that is no answer is an error.
_FAILURES = (REFUSED, FinishReason.ERROR.value, FinishReason.DEADLINE.value)


class RequestTracer:
    """A RequestObserver. clock: the engine's."""

    def __init__(
        self, provider: TracerProvider, model: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tracer: Tracer = provider.get_tracer("inflight", version())
        self._model = model
        self._clock = clock
        self._propagator = TraceContextTextMapPropagator()

    def __call__(self, report: RequestReport) -> None:
        arrival = self._unix_nanoseconds(report.arrival_time)
        span = self._tracer.start_span(
            f"{OPERATION} {self._model}",
            self._propagator.extract(report.trace_headers()),
            SpanKind.SERVER,
            start_time=arrival,
        )
        if span.is_recording():
            span.set_attributes(_attributes(report, self._model))
            _set_status(span, report)
            self._write_phases(span, arrival, report.timings)
        span.end(_after(arrival, report.timings.total))

    def _write_phases(self, parent: Span, arrival: int, timings: Timings) -> None:
        context = set_span_in_context(parent)
        for name, begin, end in _phases(timings):
            span = self._tracer.start_span(name, context, start_time=_after(arrival, begin))
            span.end(_after(arrival, end))

    def _unix_nanoseconds(self, seconds: float) -> int:
        """Of a time on the engine's clock."""
        return time.time_ns() - int((self._clock() - seconds) * _NANOSECONDS)


def _after(nanoseconds: int, seconds: float) -> int:
    return nanoseconds + int(seconds * _NANOSECONDS)


def _phases(timings: Timings) -> Iterator[tuple[str, float, float]]:
    """(name, begin, end), in seconds since the arrival."""
    queued, first_token, total = timings.queued, timings.first_token, timings.total
    yield "queue", 0.0, total if queued is None else queued
    if queued is not None:
        yield "prefill", queued, total if first_token is None else first_token
    if first_token is not None:
        yield "decode", first_token, total


def _set_status(span: Span, report: RequestReport) -> None:
    if report.reason in _FAILURES:
        kind = report.refusal or report.reason
        span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR, report.error or kind))


def _attributes(report: RequestReport, model: str) -> dict[str, Any]:
    usage, timings = report.usage, report.timings
    found: dict[str, Any] = {
        "gen_ai.operation.name": OPERATION,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": report.request_id,
        "gen_ai.response.finish_reasons": [report.reason],
        "gen_ai.usage.input_tokens": usage.num_prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.num_cached_tokens,
        "gen_ai.usage.output_tokens": usage.num_generated_tokens,
        "inflight.preemptions": report.num_preemptions,
    }
    if timings.first_token is not None:
        found["gen_ai.response.time_to_first_chunk"] = timings.first_token
    if report.interruption is not None:
        found["inflight.interruption"] = report.interruption.value
    if report.asked is not None:
        found["inflight.priority"] = report.asked.priority
        found |= _params(report.asked.params)
    return found


def _params(params: SamplingParams) -> dict[str, Any]:
    found: dict[str, Any] = {
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.request.frequency_penalty": params.frequency_penalty,
        "gen_ai.request.presence_penalty": params.presence_penalty,
        "gen_ai.request.choice.count": params.num_outputs,
        "gen_ai.request.max_tokens": params.max_new_tokens,
        "gen_ai.request.seed": params.seed if (params.seed or 0) < 2**63 else None,  # attributes are signed
    }
    return {name: value for name, value in found.items() if value is not None}
