"""Spans of requests over real gRPC, with the context that came with the call."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from engine.errors import ConfigError
from engine.serving.options import TracingOptions
from engine.serving.tracing import check_tracing
from engine.serving.tracing_spans import RequestTracer
from inflight import v1
from scheduler.step import StepInput
from tests.support.fake_engine import FakeEngineOptions, Gate
from tests.support.fake_model import FakeRunner
from tests.support.grpc_server import SECONDS_UNTIL_STUCK, Served, served_engine

TRACE_ID, SPAN_ID = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
PARENT = f"00-{TRACE_ID:032x}-{SPAN_ID:016x}-01"
NOT_SAMPLED = PARENT[:-2] + "00"
REQUEST = "text_completion fake"
LONG = 50_000  # tokens: seconds
PHASES = ["queue", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Traced:
    """A server whose steps wait at a gate."""

    served: Served
    gate: Gate
    exporter: InMemorySpanExporter

    def once(self, prompt: str = "a", *, headers: tuple[tuple[str, str], ...] = (), **options: Any) -> Any:
        timeout = options.pop("timeout", None)
        stub: Any = v1.GenerationStub(self.served.client.channel)
        return stub.GenerateOnce(v1.make_request(prompt, **options), metadata=headers, timeout=timeout)

    def spans(self) -> dict[str, ReadableSpan]:
        """Of the only request, by name."""
        spans = {span.name: span for span in self.exporter.get_finished_spans()}
        assert len(spans) == len(self.exporter.get_finished_spans())
        return spans


@asynccontextmanager
async def traced() -> AsyncIterator[Traced]:
    """Everything has ended when the block has."""
    gate, exporter, provider = Gate(), InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def before_step(step: StepInput) -> None:
        gate(step)
        if any(chunk.token_ids[-1] == ord("!") for chunk in step.chunks):
            raise RuntimeError("out of luck")

    options = FakeEngineOptions(
        max_num_seqs=1,
        num_blocks=16_384,
        max_model_len=60_000,
        runner=FakeRunner(before_step=before_step),
    )
    async with asyncio.timeout(SECONDS_UNTIL_STUCK), served_engine(options) as served:
        served.fake.engine.set_observers(RequestTracer(provider, "fake"))
        yield Traced(served, gate, exporter)
        gate.open()


async def failure(call: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await call


async def test_a_request_is_a_span_with_its_phases_within_the_callers_trace() -> None:
    begin = time.time_ns()
    async with traced() as where:
        where.gate.open()
        headers = (("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2"), ("other", "x"))
        answer = await where.once(
            *("abcdefgh",),
            headers=headers,
            request_id="mine",
            max_new_tokens=5,
            temperature=0.5,
            top_k=7,
            seed=3,
        )
    end = time.time_ns()
    spans = where.spans()
    assert list(spans) == [*PHASES, REQUEST]
    root = spans[REQUEST]
    assert root.context is not None
    assert root.parent is not None
    assert (root.context.trace_id, root.parent.span_id, root.parent.is_remote) == (TRACE_ID, SPAN_ID, True)
    assert dict(root.context.trace_state) == {"a": "1", "b": "2"}
    assert root.kind is SpanKind.SERVER
    assert root.status.status_code is StatusCode.UNSET
    assert dict(root.attributes or {}) == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "inflight",
        "gen_ai.request.model": "fake",
        "gen_ai.response.model": "fake",
        "gen_ai.response.id": "mine",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.response.time_to_first_chunk": pytest.approx(answer.timings.first_token_seconds),
        "gen_ai.usage.input_tokens": 8,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.top_k": 7,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.seed": 3,
        "inflight.priority": 0,
        "inflight.preemptions": 0,
    }
    phases = [spans[name] for name in PHASES]
    for phase in phases:
        assert phase.context is not None
        assert phase.parent is not None
        assert (phase.context.trace_id, phase.parent.span_id) == (TRACE_ID, root.context.span_id)
    times = [begin, root.start_time, *(phase.end_time for phase in phases), end]
    assert times == sorted(times)  # type: ignore[type-var]  # all of them have ended
    assert [phase.start_time for phase in phases] == times[1:4]
    assert phases[-1].end_time == root.end_time


async def test_without_a_context_each_request_is_a_trace_of_its_own() -> None:
    async with traced() as where:
        where.gate.open()
        await where.once(max_new_tokens=3)
        await where.once(max_new_tokens=3, headers=(("traceparent", "nonsense"),))
    roots = [span for span in where.exporter.get_finished_spans() if span.name == REQUEST]
    assert [root.parent for root in roots] == [None, None]
    assert len({root.context.trace_id for root in roots if root.context is not None}) == 2


async def test_a_caller_that_is_not_sampled_is_not_traced() -> None:
    async with traced() as where:
        where.gate.open()
        await where.once(max_new_tokens=3, headers=(("traceparent", NOT_SAMPLED),))
    assert where.exporter.get_finished_spans() == ()


async def test_a_refused_request_is_an_error_without_phases_that_never_were() -> None:
    async with traced() as where:
        await failure(where.once(temperature=-1.0, request_id="mine", headers=(("traceparent", PARENT),)))
    spans = where.spans()
    root = spans.pop(REQUEST)
    assert list(spans) == ["queue"]
    assert root.parent is not None
    assert root.parent.span_id == SPAN_ID
    assert root.status.status_code is StatusCode.ERROR
    assert (root.status.description or "").startswith("temperature=-1.0: must be")
    attributes = dict(root.attributes or {})
    assert (attributes["error.type"], attributes["gen_ai.response.id"]) == ("invalid", "mine")


async def test_a_step_that_fails_and_a_deadline_are_errors() -> None:
    async with traced() as where:
        late = where.once(ignore_eos=True, max_new_tokens=LONG, timeout=0.2)
        await where.gate.arrival()
        await failure(late)
        where.gate.open()
        await failure(where.once("a!"))
    roots = [span for span in where.exporter.get_finished_spans() if span.name == REQUEST]
    assert [root.status.status_code for root in roots] == [StatusCode.ERROR] * 2
    assert [(root.attributes or {})["error.type"] for root in roots] == ["deadline", "error"]
    assert roots[1].status.description == "RuntimeError: out of luck"


async def test_a_client_that_leaves_makes_no_error() -> None:
    async with traced() as where:
        call = where.once(ignore_eos=True, max_new_tokens=LONG)
        await where.gate.arrival()
        call.cancel()
    root = where.spans()[REQUEST]
    assert root.status.status_code is StatusCode.UNSET
    assert (root.attributes or {})["inflight.interruption"] == "client_left"
    assert (root.attributes or {})["gen_ai.response.finish_reasons"] == ("abort",)


def test_nothing_of_opentelemetry_is_imported_where_it_is_off() -> None:
    code = (
        "import sys, engine.serving.build, engine.serving.lifecycle, engine.serving.commands.serve\n"
        "from engine.serving.tracing import TracingOptions, open_tracing\n"
        "with open_tracing(TracingOptions(), 'x') as tracers: assert tracers == ()\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    modules = done.stdout.split()
    assert "engine.serving.tracing" in modules, done.stderr
    assert [module for module in modules if module.startswith("opentelemetry")] == []


@pytest.mark.parametrize("url", ["localhost:4317", "ftp://host:1", "http://", "http://host:x", "http://[::1"])
def test_an_endpoint_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"otlp_endpoint .*must be http://HOST:PORT"):
        TracingOptions(url)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    check_tracing(TracingOptions())
    with pytest.raises(ConfigError, match=r"otlp_endpoint .*pip install 'inflight-engine\[tracing\]'"):
        check_tracing(TracingOptions("http://localhost:4317"))
