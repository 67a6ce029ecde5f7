"""A client process.

It connects, says Ready, gets the time to start, tells Figures while it runs, and ends with Done or Failed. A
"stop" from the parent ends it early.
"""

import asyncio
import gc
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from benchmarks.loadtest.errors import LoadError
from benchmarks.loadtest.looplag import thinned
from benchmarks.loadtest.records import write_records
from benchmarks.loadtest.share import Share, drive
from benchmarks.loadtest.tally import Tally
from benchmarks.loadtest.targets import TargetSpec, open_target

SECONDS_TO_CONNECT = 30.0
FIGURES_INTERVAL = 0.25


@dataclass(frozen=True)
class Job:
    """path: where the records go."""

    target: TargetSpec
    share: Share
    path: Path


@dataclass(frozen=True)
class Ready:
    """Connected."""


@dataclass(frozen=True)
class Done:
    """The records are written. loop_lags: seconds, ascending."""

    loop_lags: list[float]


@dataclass(frozen=True)
class Failed:
    """The process could not do its share."""

    message: str


def work(job: Job, link: Connection, counter: "Synchronized[int]") -> None:
    """The whole life of a client process. counter: the closed loop's next conversation."""
    import uvloop

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells when to stop
    # Collections would be pauses of up to 100 ms with thousands of streams, and find nothing: no request,
    # whatever its outcome, leaves a cycle behind.
    gc.disable()
    try:
        link.send(Done(uvloop.run(_work(job, link, counter))))
    except LoadError as error:
        link.send(Failed(str(error)))
    except Exception as error:
        link.send(Failed(f"{type(error).__name__}: {error}"))


async def _work(job: Job, link: Connection, counter: "Synchronized[int]") -> list[float]:
    tally, lags, stop = Tally(), list[float](), asyncio.Event()
    target = open_target(job.target)
    try:
        await asyncio.wait_for(target.__aenter__(), SECONDS_TO_CONNECT)
    except TimeoutError:
        raise LoadError(f"no connection to {job.target.url} within {SECONDS_TO_CONNECT:g} s") from None
    try:
        link.send(Ready())
        zero = await _start_time(link)
        asyncio.get_running_loop().add_reader(link.fileno(), stop.set)  # whatever comes, or the parent's end
        reporter = asyncio.create_task(_report(tally, link))
        await drive(target, job.share, tally, lags, zero=zero, take=_taker(counter), stop=stop)
        reporter.cancel()
        asyncio.get_running_loop().remove_reader(link.fileno())
        with suppress(BrokenPipeError):
            link.send(tally.figures())
    finally:
        await target.__aexit__(None, None, None)
    write_records(job.path, tally.records)
    return thinned(lags)


async def _start_time(link: Connection) -> float:
    zero = await asyncio.get_running_loop().run_in_executor(None, link.recv)
    assert isinstance(zero, float)
    return zero


async def _report(tally: Tally, link: Connection) -> None:
    while True:
        await asyncio.sleep(FIGURES_INTERVAL)
        link.send(tally.figures())


def _taker(counter: "Synchronized[int]") -> Callable[[], int]:
    def take() -> int:
        with counter.get_lock():
            number = counter.value
            counter.value += 1
        return number

    return take
