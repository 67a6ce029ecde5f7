"""Worker processes that write training rows ahead of the training loop."""

import multiprocessing
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.queues import Queue
from queue import Empty
from random import Random
from types import TracebackType
from typing import Self

from tokenizers import Tokenizer

from engine.demo.data import Codes, Encoder, training_rows
from engine.demo.tasks import MIXTURES

_SHARD_TOKENS = 2**16

Shard = tuple[int, Codes]
"""Row length, and rows of that length."""


def _work(queue: "Queue[Shard]", tokenizer: str, seed: str) -> None:
    encoder, rng = Encoder(Tokenizer.from_str(tokenizer)), Random(seed)
    while True:
        for length in MIXTURES:
            queue.put((length, training_rows(encoder, rng, length, _SHARD_TOKENS // length)))


class Feed:
    """Runs `num_workers` processes inside a `with` block; each draws its own documents for ever."""

    def __init__(self, tokenizer: Tokenizer, num_workers: int, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._queue: Queue[Shard] = context.Queue(maxsize=4 * num_workers)
        self._workers = [
            context.Process(target=_work, args=(self._queue, tokenizer.to_str(), f"{seed}/{i}"), daemon=True)
            for i in range(num_workers)
        ]

    def __enter__(self) -> Self:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.join()

    def wait(self, timeout: float = 120) -> Shard:
        """The next shard. queue.Empty after `timeout` seconds: the workers have died."""
        return self._queue.get(timeout=timeout)

    def ready(self, limit: int) -> Iterator[Shard]:
        """The shards that are there already, `limit` at most."""
        with suppress(Empty):
            for _ in range(limit):
                yield self._queue.get_nowait()
