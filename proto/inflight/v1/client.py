"""A small asyncio client. It imports grpc and the stubs, nothing else of the server.

async with Client("127.0.0.1:50051") as client:
    async for event in client.generate("7 8 9 10", max_new_tokens=20):
        print(event.text, end="", flush=True)
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack
from weakref import WeakSet

import grpc
import grpc.aio
from google.protobuf.message import Message

from inflight.v1 import generation_pb2 as pb
from inflight.v1.generation_pb2_grpc import GenerationStub

# A processor or criterion: its name, or its name and parameters.
Named = str | tuple[str, Mapping[str, object]]
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
    best_of: int
    priority: int
    # Guided: at most one
    json_schema: str | Mapping[str, object]  # as JSON text, or what json.dumps makes that of
    regex: str
    grammar: str
    choice: Sequence[str]
    # Sampling
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    typical_p: float
    top_p_decay: float
    top_p_min: float
    top_p_reset_id: int
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalize_prompt: bool
    no_repeat_ngram_size: int
    logit_bias: Mapping[int, float]
    bad_words: Sequence[str]
    bad_word_ids: Sequence[Sequence[int]]
    allowed_token_ids: Sequence[int]
    logits_processors: Sequence[Named]
    beam: pb.Beam
    # Stopping
    max_new_tokens: int
    min_new_tokens: int
    max_time_seconds: float
    stop_strings: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    include_stop: bool
    stop_regex: Sequence[str]
    stopping_criteria: Sequence[Named]
    # Output
    text: bool
    token_ids: bool
    echo: bool
    logprobs: int
    prompt_logprobs: int


_GROUPS = (
    ("guided", pb.Guided.DESCRIPTOR),
    ("sampling", pb.Sampling.DESCRIPTOR),
    ("stopping", pb.Stopping.DESCRIPTOR),
    ("output", pb.Output.DESCRIPTOR),
)
_GROUP_OF = {"request_id": "", "n": "", "best_of": "", "priority": ""} | {
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
    guides = sorted(options.keys() & pb.Guided.DESCRIPTOR.fields_by_name.keys())
    if len(guides) > 1:
        raise TypeError(f"only one of {', '.join(guides)}")
    for name, value in options.items():
        group = _GROUP_OF.get(name)
        if group is None:
            raise TypeError(f"no option {name!r}; there are {', '.join(_GROUP_OF)}")
        if name == "json_schema" and not isinstance(value, str):
            value = json.dumps(value)
        _set(getattr(request, group) if group else request, name, value)
    return request


def _set(message: Message, name: str, value: object) -> None:
    setter = _SETTERS.get(name)
    if setter is None:
        setattr(message, name, value)
        return
    try:
        setter(getattr(message, name), value)
    except (AttributeError, TypeError) as error:
        raise TypeError(f"{name} takes {_EXPECTED.get(setter, 'a list')}, not {value!r}: {error}") from error


def _extend(field: Any, values: object) -> None:
    field.extend(_items(values))


def _add_words(field: Any, words: object) -> None:
    for word in _items(words):
        field.add().ids.extend(_items(word))


def _add_named(field: Any, specs: object) -> None:
    for spec in _items(specs):
        name, parameters = (spec, {}) if isinstance(spec, str) else spec
        field.add(name=name).parameters.update(parameters)


def _set_choice(field: Any, texts: object) -> None:
    field.SetInParent()  # no choices are a choice too: the server refuses it
    field.texts.extend(_items(texts))


def _items(values: object) -> Iterable[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError("not a list")
    return values


_SETTERS: dict[str, Callable[[Any, object], None]] = {
    "stop_strings": _extend,
    "stop_regex": _extend,
    "stop_token_ids": _extend,
    "bad_words": _extend,
    "allowed_token_ids": _extend,
    "bad_word_ids": _add_words,
    "logits_processors": _add_named,
    "stopping_criteria": _add_named,
    "choice": _set_choice,
    "logit_bias": lambda field, biases: field.update(biases),
    "beam": lambda field, beam: field.CopyFrom(beam),
}
_EXPECTED = {
    _add_words: "a list of lists",
    _add_named: "a list of names, or of (name, parameters)",
    _SETTERS["logit_bias"]: "a mapping of ids to numbers",
    _SETTERS["beam"]: "a Beam",
}


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
