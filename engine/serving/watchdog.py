"""Never healthy but hung: notices an engine that has work and makes no progress."""

import asyncio
from collections.abc import Awaitable, Callable

from scheduler.loop import StepLoop


class Watchdog:
    """Compares the heartbeat of a step loop with the clock that it beats by.

    timeout: seconds without a finished step, with work to do, after which the engine counts as hung. Longer
    than the longest step, or healthy engines are taken for hung ones.
    sleep: waits so many seconds between two looks.
    """

    def __init__(
        self,
        step_loop: StepLoop,
        *,
        timeout: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._step_loop = step_loop
        self._timeout = timeout
        self._clock = clock
        self._sleep = sleep

    def hung_for(self) -> float | None:
        """Seconds without progress once they exceed the timeout, else None."""
        busy_since = self._step_loop.busy_since
        if busy_since is None:
            return None
        seconds = self._clock() - max(busy_since, self._step_loop.heartbeat)
        return seconds if seconds > self._timeout else None

    async def wait_until_hung(self) -> float:
        """Returns how long the engine has been hanging. Never, as long as it is healthy."""
        while (seconds := self.hung_for()) is None:
            await self._sleep(self._timeout / 8)
        return seconds
