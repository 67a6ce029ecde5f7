"""Drives a scheduler and a device: plan a step, launch it, read the oldest one in flight, tell its tokens."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from scheduler.errors import FatalStepError
from scheduler.request import FinishReason, Request, SequenceOutput
from scheduler.scheduler import Scheduler
from scheduler.stats import StepStats
from scheduler.step import PendingStep, Runner, StepInput

OnOutputs = Callable[[list[SequenceOutput]], None]
OnStep = Callable[[StepStats], None]


@dataclass(frozen=True, slots=True)
class _Launched:
    step: StepInput
    pending: PendingStep
    schedule_seconds: float
    launch_seconds: float
    idle_seconds: float


class StepLoop:
    """Runs steps as long as there is work, and sleeps otherwise.

    A device may block the event loop for the length of a step, so it needs one of its own, on a thread of its
    own. All methods are called on that thread (others use `call_soon_threadsafe`); what they ask for gets in
    between two steps. The attributes can be read from any thread.

    on_step: called after each step that went well, before its outputs are told: whoever knows of an end finds
    the step counted. on_outputs: called at most once a step, with the new tokens and ends of all sequences.
    Whatever they raise ends the loop.

    heartbeat: the clock, in seconds, when the last turn ended that got something done. busy_since: when there
    last was no work; None while there is none. The engine hangs if it is busy and its heart does not beat.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        on_outputs: OnOutputs,
        *,
        on_step: OnStep | None = None,
        clock: Callable[[], float] = time.monotonic,
        max_consecutive_failures: int = 8,
    ) -> None:
        self.scheduler = scheduler
        self.heartbeat = clock()
        self.busy_since: float | None = None
        self._runner = runner
        self._on_outputs = on_outputs
        self._on_step = on_step
        self._clock = clock
        self._max_consecutive_failures = max_consecutive_failures
        self._num_consecutive_failures = 0
        self._in_flight: deque[_Launched] = deque()
        self._last_read = self._last_taken = 0.0  # when, of the last step
        self._wake = asyncio.Event()
        self._stopping = False

    def submit(self, request: Request) -> None:
        """Queue a request. ValueError as of Scheduler.add(); RuntimeError once the loop is to end."""
        if self._stopping:
            raise RuntimeError("the step loop takes no more requests")
        self.scheduler.add(request)
        self._wake.set()

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> bool:
        """End a request before the next step. False: it has ended already."""
        return self.scheduler.abort(request_id, reason)

    def finish(self, request_id: str, output_index: int, reason: FinishReason = FinishReason.STOP) -> bool:
        """End one output before the next step. False: it has ended already."""
        return self.scheduler.finish(request_id, output_index, reason)

    def stop(self) -> None:
        """Launch no more steps; read those in flight, end every request with ABORT, and let run() return."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Until stop(). Every accepted request has got its last output then, whatever happened.

        FatalStepError: the device is lost, too many steps failed in a row, or the scheduler has a bug.
        """
        reason, message = FinishReason.ABORT, None
        try:
            while not self._stopping:
                await self._wait_for_work()
                self._turn()
                await asyncio.sleep(0)
            while self._in_flight:
                self._read_oldest()
        except Exception as error:
            reason, message = FinishReason.ERROR, describe(error)
            if isinstance(error, FatalStepError):
                raise
            raise FatalStepError(message) from error
        finally:
            self._end(reason, message)

    async def _wait_for_work(self) -> None:
        while not (self.scheduler.has_work or self._in_flight or self._stopping):
            self.busy_since = None
            self._wake.clear()
            await self._wake.wait()
        if self.busy_since is None:
            self.busy_since = self.heartbeat = self._clock()

    def _turn(self) -> None:
        """Fill the device's queue, then read its oldest step."""
        while len(self._in_flight) < self._runner.max_steps_in_flight and self._launch_next():
            pass
        if self._in_flight:
            self._read_oldest()
        else:
            self._tell(self.scheduler.take_outputs())
        self.heartbeat = self._clock()

    def _launch_next(self) -> bool:
        """False: there is nothing to launch, or it failed."""
        started = self._clock()
        step = self.scheduler.schedule(started)
        if step is None:
            return False
        scheduled = self._clock()
        try:
            pending = self._runner.launch(step)
        except Exception as error:
            self._fail(step, error)
            return False
        launched = self._clock()
        is_alone = not self._in_flight
        idle = scheduled - self._since(self._last_read) if is_alone else 0.0
        self._in_flight.append(_Launched(step, pending, scheduled - started, launched - scheduled, idle))
        return True

    def _read_oldest(self) -> None:
        launched = self._in_flight.popleft()
        started = self._clock()
        try:
            output = launched.pending.result()
        except Exception as error:
            self._last_read = self._clock()
            self._fail(launched.step, error)
            return
        self._num_consecutive_failures = 0
        read = self._clock()
        outputs = self.scheduler.update(output, read)
        taken = self._clock()
        interval = taken - self._since(self._last_taken)
        self._last_read, self._last_taken = read, taken
        try:
            if self._on_step is not None:
                self._on_step(_stats(launched, read - started, taken - read, interval))
        finally:
            self._tell(outputs)

    def _since(self, time: float) -> float:
        """That time, or when there was work again after it."""
        return time if self.busy_since is None else max(time, self.busy_since)

    def _fail(self, step: StepInput, error: Exception) -> None:
        """The requests of the step end; the others go on, unless the device cannot, or never seems to."""
        self._num_consecutive_failures += 1
        self._tell(self.scheduler.fail(step.step_id, describe(error), self._clock()))
        if isinstance(error, FatalStepError):
            raise error
        if self._num_consecutive_failures >= self._max_consecutive_failures:
            message = f"{self._num_consecutive_failures} steps failed in a row, at last: {describe(error)}"
            raise FatalStepError(message) from error

    def _tell(self, outputs: list[SequenceOutput]) -> None:
        if outputs:
            self._on_outputs(outputs)

    def _end(self, reason: FinishReason, message: str | None) -> None:
        self._stopping = True
        self.busy_since = None
        try:
            outputs = self.scheduler.abort_all(reason, self._clock(), message)
        except Exception as bug:
            self._tell(self.scheduler.take_outputs())
            raise FatalStepError(describe(bug)) from bug
        self._tell(outputs)


def describe(error: BaseException) -> str:
    """One line: the type, and the message if there is one."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _stats(
    launched: _Launched, wait_seconds: float, update_seconds: float, interval_seconds: float
) -> StepStats:
    step = launched.step
    return StepStats(
        step_id=step.step_id,
        num_decode_rows=len(step.decode_rows),
        num_chunk_tokens=step.num_tokens - len(step.decode_rows),
        schedule_seconds=launched.schedule_seconds,
        launch_seconds=launched.launch_seconds,
        wait_seconds=wait_seconds,
        update_seconds=update_seconds,
        interval_seconds=interval_seconds,
        idle_seconds=launched.idle_seconds,
    )
