"""Items cross from threads to the event loop in order, without a wake-up for each."""

import asyncio
import threading
from typing import Any

import pytest

from engine.serving.handoff import Handoff


async def test_all_items_arrive_in_the_order_of_each_thread() -> None:
    received: list[tuple[int, int]] = []
    done = asyncio.Event()

    def handle(item: tuple[int, int]) -> None:
        received.append(item)
        if len(received) == 4000:
            done.set()

    handoff: Handoff[tuple[int, int]] = Handoff(handle)
    handoff.open()

    def send(who: int) -> None:
        for i in range(1000):
            handoff.put((who, i))

    threads = [threading.Thread(target=send, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    await done.wait()
    for who in range(4):
        assert [i for sender, i in received if sender == who] == list(range(1000))
    for thread in threads:
        thread.join()


async def test_a_loop_that_falls_behind_is_woken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, wakes = asyncio.get_running_loop(), 0
    received: list[int] = []
    wake = loop.call_soon_threadsafe

    def count(*args: Any) -> asyncio.Handle:
        nonlocal wakes
        wakes += 1
        return wake(*args)

    monkeypatch.setattr(loop, "call_soon_threadsafe", count)
    handoff: Handoff[int] = Handoff(received.append)
    handoff.open()
    for i in range(100):
        handoff.put(i)
    await asyncio.sleep(0)
    assert (received, wakes) == (list(range(100)), 1)
    handoff.put(100)
    await asyncio.sleep(0)
    assert (received[-1], wakes) == (100, 2)


def test_a_closed_loop_is_told_nothing() -> None:
    handoff: Handoff[int] = Handoff(lambda item: None)

    async def open_it() -> None:
        handoff.open()

    asyncio.run(open_it())
    handoff.put(1)
