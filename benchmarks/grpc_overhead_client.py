"""The clients' processes of grpc_overhead."""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.grpc_overhead_server import Load, Stream, read


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one process. cpu_seconds: what it used meanwhile."""

    streams: list[Stream]
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Clients:
    """Processes that share the streams of a load."""

    address: str
    number: int
    pool: Executor

    def run(self, load: Load) -> list[Answer]:
        prompts = load.prompts()
        shares = [prompts[first :: self.number] for first in range(self.number)]
        asked = [(self.address, share, load.num_new_tokens) for share in shares if share]
        return list(self.pool.map(_run, asked))


@contextmanager
def clients(address: str, number: int) -> Iterator[Clients]:
    with ProcessPoolExecutor(number, multiprocessing.get_context("spawn")) as pool:
        yield Clients(address, number, pool)


def _run(asked: tuple[str, Sequence[Sequence[int]], int]) -> Answer:
    import uvloop

    started = time.process_time()
    streams = uvloop.run(_streams(*asked))
    return Answer(streams, time.process_time() - started)


async def _streams(address: str, prompts: Sequence[Sequence[int]], num_new_tokens: int) -> list[Stream]:
    from inflight.v1 import Client

    async with Client(address) as client:
        await client.connect()

        async def numbers(prompt: Sequence[int]) -> Any:
            events = client.generate(prompt, max_new_tokens=num_new_tokens, ignore_eos=True, token_ids=True)
            async for event in events:
                yield len(event.token_ids)

        return await read(prompts, numbers)
