"""What clients do, over real gRPC: connect, drop their calls, die, and a hundred of them at random."""

import asyncio
import logging
import random
import re
import sys
from collections import Counter
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import pytest

from engine.serving.options import ServerOptions
from inflight import v1
from scheduler.request import FinishReason
from scheduler.step import StepInput
from tests.support.fake_engine import FakeEngineOptions
from tests.support.fake_model import FakeRunner
from tests.support.grpc_server import SECONDS_UNTIL_STUCK, Served, served_engine

NUM_CLIENTS = 100
ENDLESS = FakeEngineOptions(num_blocks=32_768, max_model_len=120_000)
# What may come instead of an answer, whatever a well-formed request asks for.
EXPECTED = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
}


async def until_aborted(served: Served) -> None:
    async with asyncio.timeout(SECONDS_UNTIL_STUCK):
        while not served.fake.engine.metrics.num_ended[FinishReason.ABORT]:
            await served.client.load()


async def test_connect_waits_for_a_server(served: Served) -> None:
    async with v1.Client(served.address) as client, asyncio.timeout(SECONDS_UNTIL_STUCK):
        await client.connect()
    async with v1.Client("127.0.0.1:1") as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.connect()


async def test_a_call_that_is_dropped_is_aborted() -> None:
    async with served_engine(ENDLESS) as served:
        async for _ in served.client.generate("a", ignore_eos=True):
            break
        await until_aborted(served)


async def test_generate_once_that_is_cancelled_is_aborted() -> None:
    async with served_engine(ENDLESS) as served:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await served.client.generate_once("a", ignore_eos=True)
        await until_aborted(served)


async def test_a_client_that_is_killed_is_aborted() -> None:
    async with served_engine(ENDLESS) as served:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "engine.serving.cli", "generate", "a", "--ignore-eos", "--json"),
            *("--address", served.address),
            env={"PYTHONPATH": ":".join(sys.path)},
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert b"text" in await process.stdout.readline()
        process.kill()
        await process.communicate()
        await until_aborted(served)


class RandomClient:
    """One request, and what becomes of it. Every choice comes from rng."""

    def __init__(self, served: Served, rng: random.Random, name: str) -> None:
        self.served = served
        self.rng = rng
        self.name = name

    async def run(self) -> None:
        behaviour = self.rng.choice([self.read, self.leave, self.abort, self.be_late, self.send_rubbish])
        async with v1.Client(self.served.address) as client:
            try:
                await behaviour(client)
            except grpc.aio.AioRpcError as error:
                if error.code() not in EXPECTED:
                    raise

    def generate(self, client: v1.Client, timeout: float | None = None) -> v1.GenerateCall:
        return client.generate(
            "a" * self.rng.randrange(1, 60),
            timeout=timeout,
            request_id=self.name,
            n=self.rng.choice([1, 1, 1, 4]),
            temperature=1.0,
            max_new_tokens=self.rng.choice([1, 10, 60]),
            ignore_eos=True,
        )

    async def read(self, client: v1.Client) -> None:
        """To the end, at times slowly. Every output ends once, and usage comes last."""
        is_slow = self.rng.random() < 0.5
        ends: Counter[int] = Counter()
        seen: set[int] = set()
        is_over = False
        async for event in self.generate(client):
            assert not is_over
            seen.add(event.output_index)
            ends[event.output_index] += event.HasField("finish")
            is_over = event.HasField("usage")
            if is_slow:
                await client.load()
        assert is_over
        assert ends == Counter(seen)

    async def leave(self, client: v1.Client) -> None:
        """At once or after some events, by cancelling or by closing the connection."""
        call = self.generate(client)
        for _ in range(self.rng.randrange(4)):
            await anext(call, None)
        if self.rng.random() < 0.5:
            call.cancel()
        else:
            await client.close()

    async def abort(self, client: v1.Client) -> None:
        call = self.generate(client)
        await call.request_id()
        with suppress(grpc.aio.AioRpcError):  # it may have ended by now
            await client.abort(self.name)
        async for _ in call:
            pass

    async def be_late(self, client: v1.Client) -> None:
        async for _ in self.generate(client, timeout=self.rng.uniform(0.001, 0.1)):
            pass

    async def send_rubbish(self, client: v1.Client) -> None:
        method: Any = client.channel.unary_stream("/inflight.v1.Generation/Generate")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(b"\x1a\xff" + self.rng.randbytes(50)).read()
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("seed", range(3))
async def test_a_hundred_clients_at_random(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """A pool that is too small for its batch, a queue that overflows, and steps that fail at times."""
    rng = random.Random(seed)
    failures = random.Random(seed)

    def fail_at_times(step: StepInput) -> None:
        if failures.random() < 0.01:
            raise RuntimeError("a step failed")

    caplog.set_level(logging.INFO, "inflight")
    runner = FakeRunner(before_step=fail_at_times)
    options = FakeEngineOptions(num_blocks=40, max_num_queued=40, runner=runner)
    async with asyncio.timeout(SECONDS_UNTIL_STUCK), served_engine(options) as served:
        clients = [RandomClient(served, rng, f"client-{index}") for index in range(NUM_CLIENTS)]
        await asyncio.gather(*(client.run() for client in clients))
        await served.until_load(lambda load: load.num_running + load.num_waiting == 0)
        runner.before_step = lambda step: None
        await served.check_is_well()
        num_ended = served.fake.engine.metrics.num_ended.total()
    ends = Counter(re.findall(r"request (\S+): \w+; tokens", caplog.text))
    assert ends.total() == num_ended
    assert set(ends.values()) == {1}
    assert len(ends) > NUM_CLIENTS / 4


async def test_a_slow_reader_gets_fewer_messages_not_fewer_tokens() -> None:
    """Nothing is lost when its window is full for a while."""
    window = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    options = FakeEngineOptions(num_blocks=8192, max_model_len=30_000)
    async with served_engine(options, ServerOptions(port=0, stream_interval=0.0)) as served:
        async with v1.Client(served.address, options=window) as slow:
            call = slow.generate("a", max_new_tokens=20_000, ignore_eos=True, text=False, token_ids=True)
            await call.request_id()
            for _ in range(20):
                await served.client.generate_once("a", max_new_tokens=20)
            events = [event async for event in call]
        token_ids = [token_id for event in events for token_id in event.token_ids]
        assert token_ids == [(ord("b") + i) % 256 for i in range(20_000)]
        assert len(events) < 20_000
