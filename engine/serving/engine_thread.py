"""The thread in which steps run, with an event loop of its own, which a step may block."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from scheduler.loop import StepLoop, describe
from scheduler.request import FinishReason, Request, SequenceOutput, SequenceSummary


class EngineThread:
    """Runs a step loop, and passes it what other threads ask for. No call here waits for a step.

    on_outputs: takes the one end of a request that the scheduler refused. on_end: called when the loop has
    ended, with what it raised, or None after `stop`. Both are called in this thread. clock: the step loop's.
    """

    def __init__(
        self,
        step_loop: StepLoop,
        on_outputs: Callable[[list[SequenceOutput]], None],
        on_end: Callable[[BaseException | None], None],
        clock: Callable[[], float],
    ) -> None:
        self._step_loop = step_loop
        self._on_outputs = on_outputs
        self._on_end = on_end
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop
        self._started = threading.Event()
        self._has_ended = False
        # A daemon: a step that hangs for ever must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Returns once the thread takes calls."""
        self._thread.start()
        self._started.wait()

    def submit(self, request: Request) -> None:
        self._call(self._submit, request)

    def abort(self, request_id: str, reason: FinishReason) -> None:
        self._call(self._step_loop.abort, request_id, reason)

    def finish(self, request_id: str, output_index: int, reason: FinishReason) -> None:
        self._call(self._step_loop.finish, request_id, output_index, reason)

    def stop(self) -> None:
        """End the loop after the running step."""
        self._call(self._step_loop.stop)

    def _call(self, function: Callable[..., object], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            # A closed loop means that all requests have ended, and their readers are being told.
            if not self._loop.is_closed():
                raise

    def _submit(self, request: Request) -> None:
        if self._has_ended:  # on_end is about to tell
            return
        try:
            self._step_loop.submit(request)
        except Exception as error:
            # All limits were checked, so this is a bug. But it is the end of this request alone.
            self._on_outputs(_failed(request, describe(error), self._clock()))

    def _run(self) -> None:
        failure: BaseException | None = None
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._started.set()
            try:
                runner.run(self._run_steps())
            except BaseException as error:
                failure = error
        self._on_end(failure)

    async def _run_steps(self) -> None:
        try:
            await self._step_loop.run()
        finally:
            self._has_ended = True


def _failed(request: Request, error: str, now: float) -> list[SequenceOutput]:
    summary = SequenceSummary(
        finish_reason=FinishReason.ERROR,
        num_prompt_tokens=len(request.prompt_token_ids),
        num_cached_tokens=0,
        num_generated_tokens=0,
        num_preemptions=0,
        arrival_time=request.arrival_time,
        first_scheduled_time=now,  # by a scheduler that failed at it
        first_token_time=None,
        finished_time=now,
        error=error,
    )
    return [SequenceOutput(request.request_id, index, (), summary) for index in range(request.num_outputs)]
