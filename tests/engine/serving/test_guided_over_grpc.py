"""Guided decoding of the demo model over gRPC: what comes out matches, and hostile grammars fail alone."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from decimal import Decimal
from random import Random
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from engine.config import EngineOptions
from engine.demo import MODEL_DIR
from engine.serving.build import build_engine
from engine.serving.grpc_server import GrpcServer
from engine.serving.options import ServerOptions
from inflight import v1
from inflight.v1 import FinishReason
from tests.engine.sampling.guided.schemas import is_valid, random_schema

SECONDS_UNTIL_STUCK = 120.0  # never used up, unless something hangs
NUM_SCHEMAS = 200
NUM_STREAMS = 16

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[v1.Client]:
    built = build_engine(EngineOptions(MODEL_DIR, device="cpu", dtype="float32", max_num_seqs=64))
    async with built.engine:
        server = GrpcServer(built.engine, ServerOptions(port=0))
        async with v1.Client(await server.start()) as client:
            yield client
        await server.stop(grace=1.0)


async def text_of(client: v1.Client, prompt: str, **options: Any) -> str:
    """Of an output that ended by itself."""
    asked = {"max_new_tokens": 1500, "temperature": 1.0, "timeout": SECONDS_UNTIL_STUCK} | options
    answer = await client.generate_once(prompt, **asked)
    (output,) = answer.outputs
    assert output.finish.reason == FinishReason.FINISH_REASON_STOP, (output.text, options)
    return output.text


async def test_json_parses_and_validates(client: v1.Client) -> None:
    """Biased towards an end: a model that never saw JSON may go on inside of a string for ever."""
    info = await client.model_info()
    closing = [(await client.tokenize(part, add_special_tokens=False))[-1] for part in '"}],n']
    closing += info.eos_token_ids

    async def check(seed: int) -> None:
        schema = random_schema(Random(1000 + seed))
        bias = dict.fromkeys(closing, 8.0)
        text = await text_of(
            client,
            f"{seed} ",
            seed=seed,
            json_schema=json.dumps(schema),
            logit_bias=bias,
            frequency_penalty=0.3,
        )
        value = json.loads(text, parse_float=Decimal)
        assert is_valid(value, schema, schema["$defs"]), (seed, text, schema)

    await asyncio.gather(*map(check, range(NUM_SCHEMAS)))


@pytest.mark.parametrize(
    "pattern", [r"\d{3}-\d{4}", "(red|green|blue){2,4}", "[A-Z][a-z]{1,8}( [a-z]{1,8}){1,5}"]
)
async def test_a_regular_expression_matches(client: v1.Client, pattern: str) -> None:
    texts = await asyncio.gather(*(text_of(client, "7 8 ", regex=pattern, seed=seed) for seed in range(8)))
    assert all(re.fullmatch(pattern, text) for text in texts)
    assert len(set(texts)) > 1


async def test_a_choice_is_one_of_them(client: v1.Client) -> None:
    choices = ["yes", "no", "not at all", "no comment"]
    asked = (text_of(client, "Is it?", choice=choices, seed=seed) for seed in range(16))
    texts = await asyncio.gather(*asked)
    assert set(texts) <= set(choices)
    assert len(set(texts)) > 1


HOSTILE: dict[str, dict[str, Any]] = {
    "endless": {"grammar": 'start: "a" start'},
    "exponential": {"regex": "(a|b)*a(a|b){100}"},
    "nested counts": {"regex": "((((a{1,1000}){1,1000}){1,1000}){1,1000})"},
    "deeply nested": {"json_schema": '{"type":"array","items":' * 50_000 + "{}" + "}" * 50_000},
    "slow": {"json_schema": '{"type":"integer","multipleOf":99999989}'},
    "10 MB": {"grammar": 'start: "' + "a" * 10_000_000 + '"'},
    "no grammar": {"regex": "("},
}


async def test_hostile_grammars_fail_alone(client: v1.Client) -> None:
    """While other requests stream on, and get what they get when nobody disturbs them."""

    async def stream(index: int) -> str:
        events = client.generate(f"{index} {index + 1} ", max_new_tokens=160, ignore_eos=True)
        return "".join([event.text async for event in events])

    async def ask(options: dict[str, Any]) -> grpc.StatusCode | None:
        try:
            await client.generate_once("7 8 9", max_new_tokens=50, timeout=SECONDS_UNTIL_STUCK, **options)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return None

    alone = await asyncio.gather(*map(stream, range(NUM_STREAMS)))
    streams = [asyncio.create_task(stream(index)) for index in range(NUM_STREAMS)]
    codes = dict(zip(HOSTILE, await asyncio.gather(*map(ask, HOSTILE.values())), strict=True))
    assert await asyncio.gather(*streams) == alone
    refused = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert set(codes.values()) <= refused | {None}, codes
    for name in ("10 MB", "no grammar", "slow", "deeply nested", "nested counts"):
        assert codes[name] is not None, f"{name} was taken"
    assert await text_of(client, "7 8", choice=["still here"]) == "still here"
