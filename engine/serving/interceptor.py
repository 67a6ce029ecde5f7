"""Around every call of the service: its deadline, and typed errors turned into statuses."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from engine.serving.status import status_of

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
OnUnreadable = Callable[[str, Context, DecodeError], None]

# A client that does not read does not take its status either. It lies behind what is on its way already.
_SECONDS_TO_SEND_STATUS = 1.0


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Lets the methods of one service raise typed errors, and parses their requests.

    Left to itself, gRPC answers a request that it cannot parse with UNKNOWN, as if the server had failed.
    on_unreadable: is told of it before it is refused, with the method's name.
    """

    def __init__(self, service: str, on_unreadable: OnUnreadable) -> None:
        self._prefix = f"/{service}/"
        self._on_unreadable = on_unreadable
        self._handlers: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        method = handler_call_details.method
        if method in self._handlers:
            return self._handlers[method]
        handler = await continuation(handler_call_details)
        if handler is not None and method.startswith(self._prefix):
            handler = self._handlers[method] = _with_status(
                handler, partial(self._on_unreadable, method.removeprefix(self._prefix))
            )
        return handler


def _with_status(handler: Any, on_unreadable: Callable[[Context, DecodeError], None]) -> Handler:
    def parse(request: bytes, context: Context) -> Any:
        try:
            return handler.request_deserializer(request)
        except DecodeError as error:
            on_unreadable(context, error)
            raise

    async def unary_stream(request: bytes, context: Context) -> None:
        async with _status(context):
            await handler.unary_stream(parse(request, context), context)

    async def unary_unary(request: bytes, context: Context) -> Any:
        async with _status(context):
            return await handler.unary_unary(parse(request, context), context)

    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(unary_stream, None, handler.response_serializer)
    return grpc.unary_unary_rpc_method_handler(unary_unary, None, handler.response_serializer)


@asynccontextmanager
async def _status(context: Context) -> AsyncIterator[None]:
    deadline = asyncio.timeout(context.time_remaining())
    try:
        async with deadline:
            yield
    except grpc.aio.AbortError:
        raise
    except grpc.aio.InternalError:
        # The call ended while something was being sent, and gRPC is about to cancel this task.
        raise asyncio.CancelledError from None
    except Exception as error:
        if deadline.expired():
            await _abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, "the call's deadline passed")
        else:
            await _abort(context, *status_of(error))


async def _abort(context: Context, code: grpc.StatusCode, details: str) -> None:
    with suppress(TimeoutError, grpc.aio.InternalError):
        async with asyncio.timeout(_SECONDS_TO_SEND_STATUS):
            await context.abort(code, details)
