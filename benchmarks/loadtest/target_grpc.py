"""A server of inflight.v1, through its own client."""

from collections.abc import AsyncGenerator
from typing import Any, Self

import grpc
import grpc.aio

from benchmarks.loadtest.errors import TargetError
from benchmarks.loadtest.targets import Delta, End, RequestFailedError, ServedModel, TargetSpec, WireRequest
from inflight import v1
from inflight.v1 import generation_pb2 as pb
from inflight.v1.generation_pb2_grpc import GenerationStub

_BUSY = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
_REASONS = {number: name.removeprefix("FINISH_REASON_").lower() for name, number in pb.FinishReason.items()}


class GrpcTarget:
    """One channel."""

    sends_deadlines = True

    def __init__(self, spec: TargetSpec) -> None:
        self._spec = spec

    async def __aenter__(self) -> Self:
        self._client = v1.Client(f"{self._spec.host}:{self._spec.port}")
        await self._client.connect()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    async def stream(self, request: WireRequest) -> AsyncGenerator[Delta, None]:
        is_text = isinstance(request.prompt, str)
        options: Any = {
            "max_new_tokens": request.num_output_tokens,
            "ignore_eos": request.ignore_eos,
            "token_ids": True,
            "text": self._spec.text,
            **dict(request.sampling),
        }
        call = self._client.generate(request.prompt, timeout=request.deadline, **options)
        try:
            async for message in call:
                end = _end(message) if message.HasField("finish") else None
                answer = message.text if is_text else tuple(message.token_ids) if request.wants_answer else ()
                yield Delta(len(message.token_ids), answer, end)
        except grpc.aio.AioRpcError as error:
            raise _failed(error) from error
        finally:
            call.cancel()


def _end(message: pb.GenerateResponse) -> End:
    usage = message.usage
    reason = _REASONS[message.finish.reason]
    return End(reason, usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens)


def _failed(error: grpc.aio.AioRpcError) -> RequestFailedError:
    code = error.code()
    message = f"{code.name}: {error.details()}"
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return RequestFailedError("deadline", message)
    return RequestFailedError("busy" if code in _BUSY else "failed", message)


def ask_grpc(spec: TargetSpec, timeout: float) -> ServedModel:
    """GetModelInfo. Blocks. timeout: seconds, the server's start included. Raises TargetError."""
    with grpc.insecure_channel(f"{spec.host}:{spec.port}") as channel:
        try:
            info = GenerationStub(channel).GetModelInfo(
                pb.GetModelInfoRequest(), timeout=timeout, wait_for_ready=True
            )
        except grpc.RpcError as error:
            raise TargetError(f"--target {spec.url}: {error}") from error
    return ServedModel(info.name, info.vocab_size, info.max_model_len, info.server_version)
