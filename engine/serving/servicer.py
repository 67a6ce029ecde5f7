"""The service of generation.proto. Its methods raise typed errors: see interceptor.py."""

# ruff: noqa: N802  the methods' names are the service's

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from google.protobuf.message import DecodeError

from engine.errors import InvalidArgumentError, OverloadedError
from engine.serving import requests, responses
from engine.serving.async_engine import AsyncEngine
from engine.serving.interceptor import Context
from engine.serving.pacing import Pacer
from engine.serving.request_report import Unread
from engine.serving.types import OutputDelta
from engine.serving.version import version
from inflight import v1 as pb
from scheduler.request import FinishReason

# gRPC ends a call up to some milliseconds before the deadline that it reports.
_DEADLINE_SLACK = 0.05
_TRACE_HEADERS = ("traceparent", "tracestate")


class GenerationService(pb.GenerationServicer):
    """One engine's. stall_seconds: see ServerOptions."""

    def __init__(self, engine: AsyncEngine, pacer: Pacer, stall_seconds: float) -> None:
        self._engine = engine
        self._pacer = pacer
        self._stall_seconds = stall_seconds
        self._model_info = responses.model_message(engine.model_info, version())

    async def Generate(  # type: ignore[override]  # it writes to the context, which the stubs do not know
        self, request: pb.GenerateRequest, context: Context
    ) -> None:
        async with await self._start(request, context, self._pacer.interval) as deltas:
            await self._write(context, await anext(deltas))
            with self._pacer.stream(request.n or 1):  # not before: those that wait send nothing
                async for delta in deltas:
                    await self._write(context, delta)

    async def GenerateOnce(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateOnceResponse:
        async with await self._start(request, context, lambda: 1.0) as deltas:
            return await responses.once_message(deltas)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        text = requests.parse_text("text", request.text, self._engine.model_info)
        special = request.add_special_tokens if request.HasField("add_special_tokens") else True
        return pb.TokenizeResponse(token_ids=await self._engine.tokenize(text, add_special_tokens=special))

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:
        token_ids = requests.parse_token_ids("token_ids", request.token_ids, self._engine.model_info)
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        return pb.DetokenizeResponse(text=await self._engine.detokenize(token_ids, skip_special_tokens=skip))

    async def GetModelInfo(
        self, request: pb.GetModelInfoRequest, context: Context
    ) -> pb.GetModelInfoResponse:
        return self._model_info

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        await self._engine.abort(requests.parse_request_id(request.request_id))
        return pb.AbortResponse()

    async def GetLoad(self, request: pb.GetLoadRequest, context: Context) -> pb.GetLoadResponse:
        return responses.load_message(self._engine.load())

    def refuse_unreadable(self, method: str, context: Context, error: DecodeError) -> None:
        """A message that is no request, though it should be one."""
        if method in ("Generate", "GenerateOnce"):
            self._engine.refuse(Unread("", partial(_trace_headers, context)), error)

    async def _start(
        self, request: pb.GenerateRequest, context: Context, interval: Callable[[], float]
    ) -> aclosing[AsyncGenerator[OutputDelta, None]]:
        """The deltas of a request, which ends with the block that reads them, however that ends."""
        unread = Unread(request.request_id, partial(_trace_headers, context))
        try:
            arguments = requests.parse_generate(request, self._engine.model_info)
        except InvalidArgumentError as error:
            self._engine.refuse(unread, error)
            raise
        try:
            await context.send_initial_metadata((("request-id", arguments.request_id),))
        except BaseException:
            self._engine.leave(replace(unread, request_id=arguments.request_id), _why_left(context))
            raise
        return aclosing(
            self._engine.generate(
                arguments.request_id,
                arguments.prompt,
                arguments.params,
                priority=arguments.priority,
                output=replace(arguments.output, interval=interval),
                left_because=partial(_why_left, context),
                trace_headers=unread.trace_headers,
            )
        )

    async def _write(self, context: Context, delta: OutputDelta) -> None:
        """Waits while the client's window is full, which is what holds a slow reader back."""
        try:
            async with asyncio.timeout(self._stall_seconds):
                await context.write(responses.delta_message(delta))
        except TimeoutError:
            self._engine.metrics.requests.num_slow_readers += 1
            limit = f"{self._stall_seconds:g} s"
            raise OverloadedError(f"the client did not read the stream for {limit}: aborted") from None


def _why_left(context: Context) -> FinishReason:
    """A call that is over before its request has ended: was it late, or did the client leave?"""
    remaining = context.time_remaining()
    late = remaining is not None and remaining < _DEADLINE_SLACK
    return FinishReason.DEADLINE if late else FinishReason.ABORT


def _trace_headers(context: Context) -> dict[str, str]:
    """W3C trace context of a call. Several `tracestate` are one list."""
    found: dict[str, str] = {}
    for key, value in context.invocation_metadata() or ():
        if key in _TRACE_HEADERS and isinstance(value, str):
            found[key] = f"{found[key]},{value}" if key in found else value
    return found
