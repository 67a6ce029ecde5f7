"""A small asyncio client. It imports grpc and the stubs, nothing else of the server.

async with Client("127.0.0.1:50051") as client:
    async for event in client.generate("7 8 9 10", max_new_tokens=20):
        print(event.text, end="", flush=True)
"""

from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack
from weakref import WeakSet

import grpc
import grpc.aio
from google.protobuf.message import Message

from inflight.v1 import generation_pb2 as pb
from inflight.v1.generation_pb2_grpc import GenerationStub

GenerateOnceCall = grpc.aio.UnaryUnaryCall[pb.GenerateRequest, pb.GenerateOnceResponse]

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A server that vanished without a word is noticed within a minute and a half, even while nothing is sent.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 30_000),
)


class GenerateOptions(TypedDict, total=False):
    """Fields of GenerateRequest, flat. What is left out is not sent: the server's default applies.

    Meaning, default and limit of each are in generation.proto.
    """

    request_id: str
    n: int
    priority: int
    # Sampling
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    # Stopping
    max_new_tokens: int
    min_new_tokens: int
    stop_strings: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    include_stop: bool
    # Output
    text: bool
    token_ids: bool
    echo: bool


_GROUPS = (
    ("sampling", pb.Sampling.DESCRIPTOR),
    ("stopping", pb.Stopping.DESCRIPTOR),
    ("output", pb.Output.DESCRIPTOR),
)
_GROUP_OF = {"request_id": "", "n": "", "priority": ""} | {
    name: group for group, message in _GROUPS for name in message.fields_by_name
}


def make_request(prompt: str | Sequence[int], **options: Unpack[GenerateOptions]) -> pb.GenerateRequest:
    """The message for a prompt (text, or token ids) and flat options.

    Raises TypeError for options that do not exist or have another type, and ValueError for numbers that the
    message cannot hold (a negative count). Everything else is for the server to judge.
    """
    request = pb.GenerateRequest()
    if isinstance(prompt, str):
        request.prompt = prompt
    else:
        request.token_ids.ids.extend(prompt)
        request.token_ids.SetInParent()
    for name, value in options.items():
        group = _GROUP_OF.get(name)
        if group is None:
            raise TypeError(f"no option {name!r}; there are {', '.join(_GROUP_OF)}")
        _set(getattr(request, group) if group else request, name, value)
    return request


def _set(message: Message, name: str, value: object) -> None:
    if name not in ("stop_strings", "stop_token_ids"):
        setattr(message, name, value)
    elif isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name} takes a list, not {value!r}")
    else:
        getattr(message, name).extend(value)


class GenerateCall(AsyncIterator[pb.GenerateResponse]):
    """The events of one request. Cancelling this, or dropping it before its end, aborts the request.

    call: gRPC's own, which knows metadata and status.
    """

    def __init__(self, call: grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse]) -> None:
        self.call = call
        self._events = call.__aiter__()

    def __anext__(self) -> Awaitable[pb.GenerateResponse]:
        return self._events.__anext__()

    def __del__(self) -> None:
        self.call.cancel()  # gRPC itself keeps a call that nobody refers to any more; no effect after its end

    def cancel(self) -> None:
        self.call.cancel()

    async def request_id(self) -> str:
        """The request's id, once the server has got it; empty if it refused the message."""
        metadata: Any = await self.call.initial_metadata()  # iterates over pairs
        return next((str(value) for key, value in metadata if key == "request-id"), "")


class Client:
    """A connection to one server. Create it inside a running event loop; use it as an async context manager.

    target: "host:port", or any gRPC name ("unix:/path", "dns:///service:50051").
    credentials: None is plaintext. options: gRPC channel options, after CHANNEL_OPTIONS.

    Calls that fail raise grpc.aio.AioRpcError: `code()` is a status as listed in generation.proto,
    `details()` the message. `timeout`, in seconds, becomes the call's deadline: when it passes, wherever the
    request is, the server aborts it and the call raises DEADLINE_EXCEEDED. None waits for ever.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        credentials: grpc.ChannelCredentials | None = None,
        options: Sequence[tuple[str, int | str]] = (),
    ) -> None:
        arguments = [*CHANNEL_OPTIONS, *options]
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(target, arguments)
        else:
            self.channel = grpc.aio.secure_channel(target, credentials, arguments)
        self._stub = GenerationStub(self.channel)
        self._calls: WeakSet[GenerateCall | GenerateOnceCall] = WeakSet()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what runs and close the connection."""
        for call in self._calls:
            call.cancel()  # some versions of grpc forget calls that nobody is reading from
        await self.channel.close()

    async def connect(self) -> None:
        """Wait until the server accepts connections: for ever, unless inside `asyncio.timeout`."""
        await self.channel.channel_ready()

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerateCall:
        """Stream what is generated."""
        call = GenerateCall(self._stub.Generate(make_request(prompt, **options), timeout=timeout))
        self._calls.add(call)
        return call

    def generate_once(
        self,
        prompt: str | Sequence[int],
        *,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerateOnceCall:
        """Generate everything: await what this returns. `cancel()` on it aborts the request."""
        call = self._stub.GenerateOnce(make_request(prompt, **options), timeout=timeout)
        self._calls.add(call)
        return call

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, as Generate makes them of a prompt."""
        request = pb.TokenizeRequest(text=text, add_special_tokens=add_special_tokens)
        return list((await self._stub.Tokenize(request)).token_ids)

    async def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        request = pb.DetokenizeRequest(token_ids=token_ids, skip_special_tokens=skip_special_tokens)
        return (await self._stub.Detokenize(request)).text

    async def model_info(self) -> pb.GetModelInfoResponse:
        """What is served, and the limits that requests meet."""
        return await self._stub.GetModelInfo(pb.GetModelInfoRequest())

    async def load(self) -> pb.GetLoadResponse:
        """How busy the server is, now."""
        return await self._stub.GetLoad(pb.GetLoadRequest())

    async def abort(self, request_id: str) -> None:
        """End a running request: its outputs end with FINISH_REASON_ABORT. NOT_FOUND if it does not run."""
        await self._stub.Abort(pb.AbortRequest(request_id=request_id))
