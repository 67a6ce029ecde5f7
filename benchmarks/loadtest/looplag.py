"""How late an event loop is: what its readers' times may be wrong by."""

import asyncio
import time

INTERVAL = 0.02  # seconds
NUM_KEPT = 1000


async def watch_lag(lags: list[float]) -> None:
    """Appends seconds of lateness, one value each INTERVAL, until cancelled."""
    while True:
        due = time.monotonic() + INTERVAL
        await asyncio.sleep(INTERVAL)
        lags.append(max(0.0, time.monotonic() - due))


def thinned(lags: list[float]) -> list[float]:
    """At most NUM_KEPT of them, ascending, with the same quantiles and the same largest one."""
    ordered = sorted(lags)
    if len(ordered) <= NUM_KEPT:
        return ordered
    last = len(ordered) - 1
    return [ordered[round(index * last / (NUM_KEPT - 1))] for index in range(NUM_KEPT)]
