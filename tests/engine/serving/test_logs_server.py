"""`inflight serve` in a process of its own: what it logs as JSON, and what it sends to a collector."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from inflight import v1

SECONDS_UNTIL_STUCK = 120.0
PROMPT = "7 8 9 10"
Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Server:
    """serving: the line that told its address. lines: all of them, at the end."""

    process: Process
    serving: Line
    lines: list[Line]


@asynccontextmanager
async def inflight_serve(*options: str) -> AsyncIterator[Server]:
    """Ended by SIGTERM. Nothing but objects, one a line, may be printed."""
    command = (sys.executable, "-m", "engine.serving.cli", "serve", "--port=0", "--metrics-port=0")
    process = await asyncio.create_subprocess_exec(
        *(*command, "--log-format=json", *options),
        env={"PYTHONPATH": ":".join(sys.path)},
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
    )
    assert process.stderr is not None
    lines: list[Line] = []
    async with asyncio.timeout(SECONDS_UNTIL_STUCK):
        while not lines or lines[-1]["event"] != "serving":
            lines.append(json.loads(await process.stderr.readline()))
        yield Server(process, lines[-1], lines)
        process.send_signal(signal.SIGTERM)
        printed, rest = await process.communicate()
        lines += map(json.loads, rest.splitlines())
        assert (process.returncode, printed) == (0, b"")


@dataclass(frozen=True, slots=True)
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    requests: list[Any] = field(default_factory=list)

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802  the method's own name
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, Collector]]:
    server, servicer = grpc.aio.server(), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"http://127.0.0.1:{port}", servicer
    await server.stop(None)


async def ask(server: Server) -> None:
    """One request that goes well, and one that is refused."""
    async with v1.Client(server.serving["grpc_address"]) as client:
        await client.generate_once(PROMPT, request_id="good", max_new_tokens=4)
        with pytest.raises(grpc.aio.AioRpcError):
            await client.generate_once(PROMPT, request_id="bad", max_new_tokens=10**6)


async def test_json_lines_without_prompts() -> None:
    async with inflight_serve() as server:
        await ask(server)
    good, bad = (line for line in server.lines if line["event"] == "request")
    assert (good["request_id"], good["reason"], good["num_generated_tokens"]) == ("good", "length", 4)
    assert (bad["request_id"], bad["reason"], bad["refusal"]) == ("bad", "refused", "invalid")
    assert PROMPT not in json.dumps(server.lines)
    assert server.serving["model"] == "demo"
    assert all({"time", "level", "logger", "event"} <= line.keys() for line in server.lines)


async def test_json_lines_with_prompts_and_spans_at_a_collector() -> None:
    async with (
        collector() as (url, received),
        inflight_serve("--log-prompts", "--otlp-endpoint", url) as server,
    ):
        await ask(server)
    good, bad = (line for line in server.lines if line["event"] == "request")
    assert (good["prompt"], bad["prompt"]) == (PROMPT, PROMPT)
    resources = [resource for request in received.requests for resource in request.resource_spans]
    names = {each.key: each.value.string_value for each in resources[0].resource.attributes}
    assert names["service.name"] == "inflight"
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    assert sorted(span.name for span in spans) == [
        *("decode", "prefill", "queue", "queue"),
        *("text_completion demo", "text_completion demo"),
    ]
    assert PROMPT.encode() not in b"".join(request.SerializeToString() for request in received.requests)
