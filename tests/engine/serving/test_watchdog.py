"""An engine that hangs is noticed, and one that is idle or slow is not taken for it."""

import asyncio

import pytest

from engine.errors import UnavailableError
from engine.sampling.params import SamplingParams
from engine.serving.types import EngineState
from engine.serving.watchdog import Watchdog
from scheduler.loop import StepLoop
from tests.support.fake_engine import FakeEngineOptions, Gate, fake_engine
from tests.support.fake_model import FakeRunner

TIMEOUT = 8.0


class ManualTime:
    """A clock that stands, and a sleep that lasts until the test says so. Every sleep moves the clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ticks = asyncio.Semaphore(0)
        self.num_sleeping = 0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await self.ticks.acquire()
        self.now += seconds


@pytest.fixture
def time() -> ManualTime:
    return ManualTime()


@pytest.fixture
def step_loop(time: ManualTime) -> StepLoop:
    return StepLoop(fake_engine().scheduler, FakeRunner(), lambda outputs: None, clock=time.clock)


def make_watchdog(step_loop: StepLoop, time: ManualTime) -> Watchdog:
    return Watchdog(step_loop, timeout=TIMEOUT, clock=time.clock, sleep=time.sleep)


def test_an_idle_engine_never_hangs(step_loop: StepLoop, time: ManualTime) -> None:
    watchdog = make_watchdog(step_loop, time)
    time.now += 1000 * TIMEOUT
    assert watchdog.hung_for() is None


def test_time_counts_from_when_there_was_work(step_loop: StepLoop, time: ManualTime) -> None:
    watchdog = make_watchdog(step_loop, time)
    time.now += 1000 * TIMEOUT
    step_loop.busy_since = time.now
    time.now += TIMEOUT
    assert watchdog.hung_for() is None
    time.now += 1
    assert watchdog.hung_for() == TIMEOUT + 1


def test_every_step_starts_the_time_anew(step_loop: StepLoop, time: ManualTime) -> None:
    watchdog = make_watchdog(step_loop, time)
    step_loop.busy_since = time.now
    for _ in range(10):
        time.now += TIMEOUT
        assert watchdog.hung_for() is None
        step_loop.heartbeat = time.now
    time.now += TIMEOUT + 1
    assert watchdog.hung_for() == TIMEOUT + 1


async def test_it_looks_often_enough(step_loop: StepLoop, time: ManualTime) -> None:
    """It waits an eighth of the timeout at a time, so it is late by no more than that."""
    watching = asyncio.ensure_future(make_watchdog(step_loop, time).wait_until_hung())
    step_loop.busy_since = time.now
    for _ in range(8):
        time.ticks.release()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not watching.done()
    time.ticks.release()
    assert await watching == TIMEOUT * 9 / 8


async def test_a_hung_step_kills_the_engine_and_tells_every_reader(time: ManualTime) -> None:
    gate = Gate()
    options = FakeEngineOptions(runner=FakeRunner(before_step=gate))
    fake = fake_engine(options, step_timeout=TIMEOUT, clock=time.clock, sleep=time.sleep)
    async with fake.engine as engine:
        deltas = engine.generate("hangs", "a", SamplingParams(max_new_tokens=3))
        reader = asyncio.ensure_future(anext(deltas))
        await gate.arrival()
        for _ in range(9):
            time.ticks.release()
        assert await engine.wait_dead() == "no step has ended for 9 s"
        assert engine.state is EngineState.DEAD
        with pytest.raises(UnavailableError, match="no step has ended"):
            await reader
        with pytest.raises(UnavailableError, match="no step has ended"):
            await anext(engine.generate("late", "a", SamplingParams()))
        gate.open()  # the step ends after all; what it sampled must disturb nobody
