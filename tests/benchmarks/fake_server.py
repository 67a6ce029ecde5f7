"""A real gRPC server with scripted answers: delays, rejections, errors, and a limit of what runs at once.

What it saw it keeps, with times on time.monotonic, which its clients read too.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from inflight.v1 import generation_pb2 as pb
from inflight.v1.generation_pb2_grpc import GenerationServicer, add_GenerationServicer_to_server

VOCAB_SIZE = 1000
MAX_MODEL_LEN = 4096


@dataclass(frozen=True)
class Script:
    """first: seconds from the request's turn to its first message; interval: between messages, of
    num_together tokens each. status: ends the call with it after num_before tokens. num_tokens: in all, else
    what the request wants."""

    first: float = 0.0
    interval: float = 0.0
    num_together: int = 1
    status: grpc.StatusCode | None = None
    num_before: int = 0
    num_tokens: int | None = None


@dataclass
class Seen:
    """A request: when it came, when its messages were written, and how it ended."""

    request: pb.GenerateRequest
    arrived: float
    written: list[float] = field(default_factory=list)
    ended: str = ""


class FakeServer(GenerationServicer):
    """script: what happens to a request that was the n-th to come. max_running: others wait, first come first
    served; 0 is no limit."""

    def __init__(self, script: Callable[[pb.GenerateRequest, int], Script], max_running: int = 0) -> None:
        self._script = script
        self._places = asyncio.Semaphore(max_running or 1 << 30)
        self.seen: list[Seen] = []

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:  # noqa: N802
        script = self._script(request, len(self.seen))
        seen = Seen(request, time.monotonic())
        self.seen.append(seen)
        try:
            async with self._places:
                async for message in self._answer(request, script, context):
                    seen.written.append(time.monotonic())
                    yield message
            seen.ended = "done"
        finally:
            seen.ended = seen.ended or "aborted"

    async def _answer(
        self, request: pb.GenerateRequest, script: Script, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        total = script.num_tokens or request.stopping.max_new_tokens
        due = time.monotonic() + script.first
        sent = 0
        while True:
            await sleep_until(due)
            if script.status is not None and sent >= script.num_before:
                await context.abort(script.status, "as scripted")
            count = min(script.num_together, total - sent)
            message = pb.GenerateResponse(token_ids=[next_id(sent + index) for index in range(count)])
            sent += count
            if sent == total:
                message.finish.reason = pb.FINISH_REASON_LENGTH
                message.usage.prompt_tokens = len(request.token_ids.ids) or len(request.prompt.split())
                message.usage.generated_tokens = total
            yield message
            if sent == total:
                return
            due += script.interval

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Any) -> pb.GetModelInfoResponse:  # noqa: N802
        return pb.GetModelInfoResponse(name="fake", vocab_size=VOCAB_SIZE, max_model_len=MAX_MODEL_LEN)


def next_id(index: int) -> int:
    """What it answers, token by token."""
    return 100 + index % 800


async def sleep_until(due: float) -> None:
    """Never shorter. due: on time.monotonic."""
    while (rest := due - time.monotonic()) > 0:  # noqa: ASYNC110 (time is no event)
        await asyncio.sleep(rest)


@asynccontextmanager
async def fake_server(
    script: Script | Callable[[pb.GenerateRequest, int], Script], max_running: int = 0
) -> AsyncIterator[tuple[FakeServer, int]]:
    """The server, and its port on 127.0.0.1."""
    scripts = (lambda request, number: script) if isinstance(script, Script) else script
    servicer = FakeServer(scripts, max_running)  # type: ignore[abstract]  # the other calls are UNIMPLEMENTED
    server = grpc.aio.server()
    add_GenerationServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield servicer, port
    finally:
        await server.stop(None)
