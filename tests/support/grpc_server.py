"""A real gRPC server around an engine that is real but for its device, and a real client of it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from engine.serving.grpc_server import GrpcServer
from engine.serving.options import ServerOptions
from inflight import v1
from tests.support.fake_engine import FakeEngine, FakeEngineOptions, running_engine

SECONDS_UNTIL_STUCK = 30.0  # never used up, unless something hangs


@dataclass(frozen=True, slots=True)
class Served:
    """All on one event loop."""

    fake: FakeEngine
    server: GrpcServer
    address: str
    client: v1.Client

    async def until_load(self, predicate: Callable[[v1.GetLoadResponse], bool]) -> v1.GetLoadResponse:
        async with asyncio.timeout(SECONDS_UNTIL_STUCK):
            load = await self.client.load()
            while not predicate(load):
                load = await self.client.load()
        return load

    async def check_is_well(self) -> None:
        """It answers, nothing is left of the requests that were there before, and every block is free."""
        async with asyncio.timeout(SECONDS_UNTIL_STUCK):
            answer = await self.client.generate_once("a", max_new_tokens=3)
        assert answer.outputs[0].text == "bcd"
        load = await self.until_load(lambda load: load.num_running + load.num_waiting == 0)
        assert load.num_free_blocks == load.num_blocks


@asynccontextmanager
async def served_engine(
    options: FakeEngineOptions | None = None,
    server_options: ServerOptions | None = None,
    **engine_options: Any,
) -> AsyncIterator[Served]:
    """At the end of the block the engine is drained, and must be empty."""
    async with running_engine(options, **engine_options) as fake:
        server = GrpcServer(fake.engine, server_options or ServerOptions(port=0))
        address = await server.start()
        try:
            async with v1.Client(address) as client:
                yield Served(fake, server, address, client)
        finally:
            await server.stop(grace=1.0)
