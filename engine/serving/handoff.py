"""From other threads to an event loop, with few wake-ups."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Handoff(Generic[T]):
    """Items put on any thread, handled in order on one event loop.

    While one wake-up of the loop is under way no other is sent, so a loop that falls behind takes everything
    that has queued up since in one turn. `put` never waits.
    """

    def __init__(self, handle: Callable[[T], None]) -> None:
        self._handle = handle
        self._items: deque[T] = deque()
        self._is_waking = False
        self._loop: asyncio.AbstractEventLoop

    def open(self) -> None:
        """From now on items can be put; they are handled on the running loop."""
        self._loop = asyncio.get_running_loop()

    def put(self, item: T) -> None:
        self._items.append(item)
        if self._is_waking:
            return
        self._is_waking = True
        try:
            self._loop.call_soon_threadsafe(self._drain)
        except RuntimeError:
            if not self._loop.is_closed():  # once it is, nobody is left to be told
                raise

    def _drain(self) -> None:
        self._is_waking = False  # before taking anything: what is put from here on wakes the loop again
        for _ in range(len(self._items)):  # and waits for its turn there, behind the loop's other work
            self._handle(self._items.popleft())
