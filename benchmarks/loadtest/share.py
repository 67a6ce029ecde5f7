"""What one client process does: its share of the plan, on an event loop of its own."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.loadtest.client import Sender
from benchmarks.loadtest.looplag import watch_lag
from benchmarks.loadtest.schedule import Conversation
from benchmarks.loadtest.tally import Tally
from benchmarks.loadtest.targets import Target


@dataclass(frozen=True)
class Limits:
    """Seconds since the start. max_seconds: after which nothing more is sent; grace: after the last sending,
    or after max_seconds, for what runs then to end."""

    max_seconds: float | None = None
    grace: float = 600.0


@dataclass(frozen=True)
class Share:
    """conversations: all of the plan. A process of an open loop sends each num_processes-th of them from
    its own number on; one of a closed loop has num_slots places, and takes what `take` gives."""

    conversations: tuple[Conversation, ...]
    process: int = 0
    num_processes: int = 1
    num_slots: int = 0
    limits: Limits = Limits()


async def drive(
    target: Target,
    share: Share,
    tally: Tally,
    lags: list[float],
    *,
    zero: float,
    take: Callable[[], int],
    stop: asyncio.Event,
) -> None:
    """Sends everything at its time, and returns when all has ended or the limits have.

    zero: the start, on time.monotonic. take: the next conversation's number, for a closed loop. lags: gets
    the loop's. stop: set from outside, nothing more is sent, and what runs is incomplete.
    """
    max_seconds = share.limits.max_seconds

    def is_over() -> bool:
        return stop.is_set() or (max_seconds is not None and time.monotonic() - zero >= max_seconds)

    sender = Sender(target, tally, zero=zero, process=share.process, is_over=is_over)
    await sender.sleep_until(0.0)
    watcher = asyncio.create_task(watch_lag(lags))
    running: set[asyncio.Task[None]] = set()
    sending = asyncio.create_task(
        _closed_loop(sender, share, running, take, is_over)
        if share.num_slots
        else _open_loop(sender, share, running, is_over)
    )
    stopping = asyncio.create_task(stop.wait())
    try:
        left = None if max_seconds is None else max(0.0, max_seconds - sender.now())
        await _first(sending, stopping, within=left)
        if sending.done():
            sending.result()  # raises what it raised
        sending.cancel()
        ending = asyncio.gather(*running, return_exceptions=True)
        grace = 0.0 if stop.is_set() else share.limits.grace
        await _first(ending, stopping, within=grace)
    finally:
        for task in (*running, sending, stopping, watcher):
            task.cancel()
        await asyncio.gather(*running, sending, stopping, watcher, return_exceptions=True)


async def _open_loop(
    sender: Sender, share: Share, running: set[asyncio.Task[None]], is_over: Callable[[], bool]
) -> None:
    for conversation in share.conversations[share.process :: share.num_processes]:
        due = conversation.due or 0.0
        await sender.sleep_until(due)
        if is_over():
            return
        task = asyncio.create_task(sender.hold(conversation, due))
        running.add(task)
        task.add_done_callback(running.discard)


async def _closed_loop(
    sender: Sender,
    share: Share,
    running: set[asyncio.Task[None]],
    take: Callable[[], int],
    is_over: Callable[[], bool],
) -> None:
    async def slot() -> None:
        while not is_over() and (number := take()) < len(share.conversations):
            await sender.hold(share.conversations[number], sender.now())

    running.update(asyncio.create_task(slot()) for _ in range(share.num_slots))
    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)  # then nothing is left to take


async def _first(*futures: asyncio.Future[Any], within: float | None) -> None:
    await asyncio.wait(futures, timeout=within, return_when=asyncio.FIRST_COMPLETED)
