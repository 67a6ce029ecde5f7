"""What the scheduler and its loop tell about themselves: why things happened, and where the time went."""

import asyncio
from dataclasses import dataclass, replace

import pytest

from scheduler import FailureReason, Finish, PreemptionReason, Request, SequenceOutput, StepLoop, StepStats
from scheduler.step import StepInput, StepOutput
from tests.scheduler.conftest import Harness, MakeHarness
from tests.scheduler.fake_device import FakeSampling, PendingFake
from tests.scheduler.test_answers import answer, launch, new_scheduler


def preemptions(harness: Harness) -> dict[PreemptionReason, int]:
    stats = harness.scheduler.stats()
    assert stats.num_preemptions == sum(stats.preemptions.values())
    assert stats.num_preempted_tokens == sum(stats.preempted_tokens.values())
    for reason, count in stats.preemptions.items():
        assert (stats.preempted_tokens[reason] > 0) == (count > 0)
    return {reason: count for reason, count in stats.preemptions.items() if count}


def test_a_sequence_that_grows_preempts(make_harness: MakeHarness) -> None:
    harness = make_harness(num_blocks=4)
    harness.add("b", 8, 5)
    harness.add("a", 4, 5)
    harness.drain()
    assert preemptions(harness) == {PreemptionReason.GROWTH: 1}
    assert harness.scheduler.stats().num_preempted_tokens == 4, "a's prompt"


@pytest.mark.parametrize(
    ("num_blocks", "max_num_seqs", "why"),
    [(5, 4, PreemptionReason.ADMISSION), (16, 1, PreemptionReason.ROWS)],
)
def test_a_better_ranked_one_preempts(
    make_harness: MakeHarness, num_blocks: int, max_num_seqs: int, why: PreemptionReason
) -> None:
    harness = make_harness(num_blocks=num_blocks, max_num_seqs=max_num_seqs, policy="priority")
    harness.add("low", 12, 4)
    harness.step()
    harness.add("high", 12, 4, priority=1)
    harness.drain()
    assert preemptions(harness) == {why: 1}


def test_failures_have_reasons() -> None:
    scheduler = new_scheduler(budget=16)
    for name in "abcd":
        scheduler.add(Request(name, [1, 2], max_new_tokens=5))
    step = launch(scheduler)
    finishes: list[int] = [Finish.ERROR, Finish.ERROR, Finish.NONE, Finish.NONE]
    scheduler.update(replace(answer(step), finishes=finishes, errors={0: "its processor raised"}), now=0.0)
    scheduler.fail(launch(scheduler).step_id, "no more memory", now=0.0)
    expected = {FailureReason.CUSTOM: 1, FailureReason.LOGITS: 1, FailureReason.STEP: 2}
    assert scheduler.stats().failures == expected


@dataclass
class TimedDevice:
    """A harness' device that takes time: 1 second to be told a step, then 4 to compute it, one by one."""

    harness: Harness
    now: float = 0.0
    free_at: float = 0.0

    @property
    def max_steps_in_flight(self) -> int:
        return self.harness.device.max_steps_in_flight

    def launch(self, step: StepInput) -> "TimedPending":
        self.now += 1
        self.free_at = max(self.free_at, self.now) + 4
        return TimedPending(self, self.harness.device.launch(step), self.free_at)


@dataclass
class TimedPending:
    device: TimedDevice
    pending: PendingFake
    done_at: float

    def result(self) -> StepOutput:
        self.device.now = max(self.device.now, self.done_at)
        return self.pending.result()


async def time_steps(harness: Harness, *names: str) -> list[list[StepStats]]:
    """Requests of three tokens each, one a long time after the other. Telling outputs takes 2 seconds."""
    device = TimedDevice(harness)
    steps: list[StepStats] = []

    ended = asyncio.Event()

    def tell(outputs: list[SequenceOutput]) -> None:
        device.now += 2
        if any(output.summary is not None for output in outputs):
            ended.set()

    loop = StepLoop(harness.scheduler, device, tell, on_step=steps.append, clock=lambda: device.now)
    task = asyncio.create_task(loop.run())
    told = []
    for name in names:
        device.now += 100
        loop.submit(Request(name, [1, 2, 3], 3, FakeSampling()))
        await ended.wait()
        await asyncio.sleep(0)  # the loop falls asleep
        assert loop.busy_since is None
        ended.clear()
        told.append(steps.copy())
        steps.clear()
    loop.stop()
    await task
    return told


async def test_a_device_without_a_queue_is_idle_while_outputs_are_told(make_harness: MakeHarness) -> None:
    for steps in await time_steps(make_harness(in_flight=1), "a", "b"):
        assert [(step.launch_seconds, step.wait_seconds) for step in steps] == [(1, 4)] * 3
        assert [step.interval_seconds for step in steps] == [5, 2 + 5, 2 + 5]
        assert [step.idle_seconds for step in steps] == [0, 2, 2]


async def test_a_device_with_a_queue_is_never_idle(make_harness: MakeHarness) -> None:
    for steps in await time_steps(make_harness(in_flight=2), "a", "b"):
        # The second step is launched while the first one runs, the third while the second one does.
        assert [step.wait_seconds for step in steps] == [4 - 1, 4 - 2 - 1, 4 - 2]
        assert [step.interval_seconds for step in steps] == [5, 4, 4]
        assert [step.idle_seconds for step in steps] == [0, 0, 0]
