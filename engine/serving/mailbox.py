"""What waits for the reader of one request.

A reader that keeps up takes every delta as it comes. For one that does not, the deltas of an output are
merged: text is concatenated, ids are extended. So whoever puts never waits, and what a slow reader costs is
bounded by the length of its own outputs, not by the number of steps that it slept through.

Not thread-safe: put and taken on one event loop (`Handoff` brings the deltas there).
"""

import asyncio
from collections.abc import Callable

from engine.serving.merging import MergedDelta
from engine.serving.types import OutputDelta


class Mailbox:
    """An async iterator over the deltas of one request.

    Outputs take turns in the order in which their deltas began to wait. The stream has exactly one end: the
    delta that carries usage, or the error that `fail` was given; what was put before comes before, what is
    put after is dropped. Taking is cancellable and loses nothing.

    interval: seconds between two deltas of an output, or a function that tells them each time that one is
    taken. The first, the last and those before an error do not wait for it.
    """

    def __init__(self, interval: float | Callable[[], float] = 0.0) -> None:
        self._interval = interval if callable(interval) else lambda: interval
        self._waiting: dict[int, MergedDelta] = {}
        self._not_before: dict[int, float] = {}  # output index -> time of the event loop
        self._complete = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether the stream has got its end, taken or not."""
        return self._complete or self._error is not None

    @property
    def num_waiting(self) -> int:
        """Deltas to take: at most one for each output."""
        return len(self._waiting)

    def put(self, delta: OutputDelta) -> None:
        if self.ended:
            return
        merged = self._waiting.get(delta.output_index)
        if merged is not None and delta.finish is None:
            merged.merge(delta)  # the reader knows already that this output waits
            return
        # The end of an output goes behind what waits, so that the end of the stream comes last.
        merged = self._waiting.pop(delta.output_index, None) or MergedDelta(delta.output_index)
        merged.merge(delta)
        self._waiting[delta.output_index] = merged
        self._complete = delta.usage is not None
        self._wake()

    def fail(self, error: Exception) -> None:
        if not self.ended:
            self._error = error
            self._wake()

    def __aiter__(self) -> "Mailbox":
        return self

    async def __anext__(self) -> OutputDelta:
        while (merged := self._take()) is None:
            if self.ended:
                raise self._error or StopAsyncIteration
            await self._wait()
        return merged.to_delta()

    def _take(self) -> MergedDelta | None:
        now = asyncio.get_running_loop().time()
        for index, merged in self._waiting.items():
            if self.ended or merged.finish or self._not_before.get(index, now) <= now:
                self._not_before[index] = now + self._interval()
                return self._waiting.pop(index)
        return None

    async def _wait(self) -> None:
        """Until something is put, or the interval of something that waits is over."""
        loop = asyncio.get_running_loop()
        self._reader = loop.create_future()
        if not self._waiting:
            await self._reader
            return
        timer = loop.call_at(min(self._not_before[index] for index in self._waiting), self._wake)
        try:
            await self._reader
        finally:
            timer.cancel()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
