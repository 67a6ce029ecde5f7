"""Whatever a client sends, it gets a status and a message, and the server goes on with all its blocks."""

import math
from typing import Any

import grpc
import grpc.aio
import pytest

from inflight import v1
from inflight.v1 import GenerateRequest, make_request
from tests.support.grpc_server import Served

MAX_MODEL_LEN = 128  # of the fake model
INVALID = grpc.StatusCode.INVALID_ARGUMENT
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
METHODS = ("Generate", "GenerateOnce")


def ask(prompt: Any = "1 2 3", /, **options: Any) -> bytes:
    return make_request(prompt, **options).SerializeToString()


def sampled(**options: Any) -> bytes:
    return ask(temperature=1.0, **options)


def raw(request: GenerateRequest, more: bytes) -> bytes:
    return request.SerializeToString() + more


def field(number: int, value: bytes) -> bytes:
    """A length-delimited field of protobuf's wire format."""
    return bytes([number << 3 | 2, len(value)]) + value


MINUS_ONE = b"\xff" * 9 + b"\x01"  # as varint
NOT_UTF8 = b"\xff\xfe"

# What is sent -> what the details must match.
TABLE: dict[str, tuple[bytes, str]] = {
    "no input": (b"", "input=None: set prompt or token_ids"),
    "empty prompt": (ask(""), "prompt='': must not be empty"),
    "empty ids": (ask([]), "token_ids='': must not be empty"),
    "id too large": (ask([1, 10**6]), r"token_ids=1000000: .*vocabulary"),
    "id of 32 bits": (ask([2**32 - 1]), r"token_ids=4294967295: .*vocabulary"),
    "negative id": (field(4, field(1, MINUS_ONE)), r"token_ids=4294967295: .*vocabulary"),
    "too long by one": (ask([5] * MAX_MODEL_LEN), r"token_ids='128 tokens': .*max_model_len=128"),
    "much too long": (ask([5] * 100_000), r"token_ids='100000 tokens': .*max_model_len=128"),
    "text too long": (ask("1 " * MAX_MODEL_LEN), r"prompt='\d+ tokens': .*max_model_len=128"),
    "10 MB of text": (ask("x" * 10_000_000), r"prompt='10000000 characters': at most \d+ characters"),
    "10 MB of ids": (ask([5] * 10_000_000), r"token_ids='10000000 tokens': .*max_model_len=128"),
    "no new tokens": (ask(max_new_tokens=0), r"stopping\.max_new_tokens=0: .*\[1, "),
    "no room": (ask([5] * 100, max_new_tokens=29), r"stopping\.max_new_tokens=29: at most 28\b"),
    "huge max": (ask(max_new_tokens=2**32 - 1), r"stopping\.max_new_tokens=4294967295: .*\[1, "),
    "min above max": (
        ask(min_new_tokens=6, max_new_tokens=5),
        r"stopping\.min_new_tokens=6: at most max_new_tokens=5",
    ),
    "no room for min": (ask([5] * 100, min_new_tokens=29), r"stopping\.min_new_tokens=29: at most 28\b"),
    "huge min": (ask(min_new_tokens=2**32 - 1), r"stopping\.min_new_tokens=4294967295: "),
    "n of 0": (sampled(n=0), r"n=0: must be an integer in \[1, 128\]"),
    "n of 129": (sampled(n=129), r"n=129: must be an integer in \[1, 128\]"),
    "n of 2^32 - 1": (sampled(n=2**32 - 1), r"n=4294967295: must be an integer in \[1, 128\]"),
    "n greedy": (ask(n=2), r"n=2: must be 1 when temperature is 0"),
    "n above the batch": (sampled(n=5), r"n=5: at most max_num_seqs=4"),
    "temperature NaN": (ask(temperature=math.nan), r"sampling\.temperature=nan: must be in \[0, 100\]"),
    "temperature inf": (ask(temperature=math.inf), r"sampling\.temperature=inf: must be in \[0, 100\]"),
    "temperature -inf": (ask(temperature=-math.inf), r"sampling\.temperature=-inf: must be in \[0, 100\]"),
    "temperature -0.1": (ask(temperature=-0.1), r"sampling\.temperature=-0\.1: must be in \[0, 100\]"),
    "temperature 101": (ask(temperature=101), r"sampling\.temperature=101\.0: must be in \[0, 100\]"),
    "top_p 0": (sampled(top_p=0), r"sampling\.top_p=0\.0: must be in \(0, 1\]"),
    "top_p 1.5": (sampled(top_p=1.5), r"sampling\.top_p=1\.5: must be in \(0, 1\]"),
    "top_p NaN": (sampled(top_p=math.nan), r"sampling\.top_p=nan: must be in \(0, 1\]"),
    "top_p negative": (sampled(top_p=-0.5), r"sampling\.top_p=-0\.5: must be in \(0, 1\]"),
    "top_p greedy": (ask(top_p=0.5), r"sampling\.top_p=0\.5: must be 1 here.*temperature"),
    "top_k of 2^31": (
        sampled(top_k=2**31),
        r"sampling\.top_k=2147483648: must be an integer in \[0, 2147483647\]",
    ),
    "top_k greedy": (ask(top_k=5), r"sampling\.top_k=5: must be 0 or 1 here.*temperature"),
    "min_p 1.1": (sampled(min_p=1.1), r"sampling\.min_p=1\.1: must be in \[0, 1\]"),
    "min_p NaN": (sampled(min_p=math.nan), r"sampling\.min_p=nan: must be in \[0, 1\]"),
    "min_p negative": (sampled(min_p=-0.1), r"sampling\.min_p=-0\.1: must be in \[0, 1\]"),
    "min_p greedy": (ask(min_p=0.5), r"sampling\.min_p=0\.5: must be 0 here.*temperature"),
    "empty stop": (ask(stop_strings=["a", ""]), r"stopping\.stop_strings='': each has 1 to 256 characters"),
    "long stop": (ask(stop_strings=["x" * 257]), r"stopping\.stop_strings=.*1 to 256 .*has 257"),
    "10 MB stop": (ask(stop_strings=["x" * 10_000_000]), r"stopping\.stop_strings=.*1 to 256 .*has 10000000"),
    "17 stops": (ask(stop_strings=["x"] * 17), r"stopping\.stop_strings=17: at most 16 strings"),
    "stop id too large": (ask(stop_token_ids=[10**6]), r"stopping\.stop_token_ids=1000000: .*vocabulary"),
    "65 stop ids": (ask(stop_token_ids=[3] * 65), r"stopping\.stop_token_ids=65: at most 64 ids"),
    "no stop to include": (
        ask(include_stop=True, ignore_eos=True),
        r"stopping\.include_stop=True: there is no stop",
    ),
    "nothing to send": (ask(text=False), r"output\.text=False: at least one of text and token_ids"),
    "priority without": (ask(priority=5), r"priority=5: must be 0: .*fcfs"),
    "long request id": (ask(request_id="r" * 129), r"request_id=.*1 to 128 characters, this one has 129"),
    "request id, newline": (ask(request_id="a\nb"), r"request_id='a\\nb': must be printable ASCII"),
    "request id, space": (ask(request_id="a b"), r"request_id='a b': must be printable ASCII"),
    "request id, not ASCII": (ask(request_id="ä"), r"request_id='ä': must be printable ASCII"),
    "request id, NUL": (ask(request_id="\0"), r"request_id='\\x00': must be printable ASCII"),
    "field of tomorrow": (raw(make_request("a"), b"\x98\x06\x01"), r"#99='set': this server does not know"),
    "sampling of tomorrow": (
        raw(make_request("a"), field(9, b"\x98\x06\x01")),
        r"sampling\.#99='set': this server does not know",
    ),
    "prompt not UTF-8": (field(3, NOT_UTF8), "Error parsing message"),
    "stop not UTF-8": (raw(make_request("a"), field(10, field(5, NOT_UTF8))), "Error parsing message"),
    "request id not UTF-8": (field(1, NOT_UTF8), "Error parsing message"),
    "cut short": (ask("1 2 3")[:-1], "Error parsing message"),
    "not protobuf": (b"GET / HTTP/1.1\r\n\r\n", "Error parsing message"),
}


async def call(client: v1.Client, method: str, request: bytes) -> None:
    """Send these bytes, and read until the end."""
    path = f"/inflight.v1.Generation/{method}"
    if method == "Generate":
        stream: Any = client.channel.unary_stream(path)
        async for _ in stream(request):
            pass
    else:
        unary: Any = client.channel.unary_unary(path)
        await unary(request)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TABLE)
async def test_generate(name: str, method: str, served: Served) -> None:
    request, details = TABLE[name]
    with pytest.raises(grpc.aio.AioRpcError, match=details) as caught:
        await call(served.client, method, request)
    assert caught.value.code() == INVALID, caught.value
    assert len(caught.value.details() or "") <= 500
    await served.check_is_well()


@pytest.mark.parametrize("method", METHODS)
async def test_message_over_the_limit(method: str, served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="larger than max") as caught:
        await call(served.client, method, ask("x" * (17 << 20)))
    assert caught.value.code() == EXHAUSTED
    await served.check_is_well()


OTHERS: dict[str, tuple[str, bytes, grpc.StatusCode, str]] = {
    "text to tokenize too long": (
        "Tokenize",
        v1.TokenizeRequest(text="x" * 10_000_000).SerializeToString(),
        INVALID,
        r"text='10000000 characters': at most \d+ characters",
    ),
    "text to tokenize not UTF-8": ("Tokenize", field(1, NOT_UTF8), INVALID, "Error parsing message"),
    "id to detokenize too large": (
        "Detokenize",
        v1.DetokenizeRequest(token_ids=[10**6]).SerializeToString(),
        INVALID,
        r"token_ids=1000000: .*vocabulary",
    ),
    "too many ids to detokenize": (
        "Detokenize",
        v1.DetokenizeRequest(token_ids=[5] * (2**20 + 1)).SerializeToString(),
        INVALID,
        r"token_ids='1048577 ids': at most 1048576",
    ),
    "no request to abort": ("Abort", b"", INVALID, r"request_id='': must have 1 to 128 characters"),
    "unknown request to abort": (
        "Abort",
        v1.AbortRequest(request_id="nobody").SerializeToString(),
        grpc.StatusCode.NOT_FOUND,
        "nobody",
    ),
    "method that is not there": ("Genearte", b"", grpc.StatusCode.UNIMPLEMENTED, "Method not found"),
}


@pytest.mark.parametrize("name", OTHERS)
async def test_others(name: str, served: Served) -> None:
    method, request, code, details = OTHERS[name]
    with pytest.raises(grpc.aio.AioRpcError, match=details) as caught:
        await call(served.client, method, request)
    assert caught.value.code() == code
    await served.check_is_well()
