"""The requests that somebody reads, or that still run: admission, and the one end of each."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    OverloadedError,
    StepFailedError,
    UnavailableError,
)
from engine.serving.intake import Asked
from engine.serving.logs_requests import RequestLog
from engine.serving.mailbox import Mailbox
from engine.serving.metrics import Interruption, Metrics
from engine.serving.request_outputs import RequestEnd
from engine.serving.request_report import RequestObserver, RequestReport, Unread, ended, refused
from engine.serving.types import (
    MAX_PROMPT_LOGPROBS_TOGETHER,
    OutputDelta,
    OutputFinish,
    Timings,
    Usage,
)
from scheduler.request import FinishReason

logger = logging.getLogger("inflight")

_REFUSALS: dict[type[Exception], str] = {
    InvalidArgumentError: "invalid",
    AlreadyExistsError: "duplicate",
    OverloadedError: "overloaded",
    UnavailableError: "unavailable",
}


@dataclass(slots=True, eq=False)
class Stream:
    """One request and its reader.

    ended: how it went, once it has ended; cancelled if it was refused after all. preparing: its tokenizing.
    is_submitted: the engine has it, so only the engine can tell how it ends. has_left: nobody reads it any
    more. num_prompt_logprobs: that may wait for the reader. interruption: who first asked for its end.
    """

    asked: Asked
    mailbox: Mailbox
    ended: asyncio.Future[RequestEnd]
    preparing: asyncio.Future[Any] | None = None
    is_submitted: bool = False
    has_left: bool = False
    num_prompt_logprobs: int = 0
    interruption: Interruption | None = None


class Streams:
    """A request keeps its id and its slots until it has ended and its reader has left.

    A sequence takes a slot. There are as many as may run at once and wait together. clock: the engine's.
    observers: are told how each request went, refused ones included.
    """

    def __init__(self, num_slots: int, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self.idle = asyncio.Event()  # set while there is no request
        self.idle.set()
        self._streams: dict[str, Stream] = {}
        self._num_free_slots = num_slots
        self._num_free_prompt_logprobs = MAX_PROMPT_LOGPROBS_TOGETHER
        self._metrics = metrics
        self._clock = clock
        self.observers: Sequence[RequestObserver] = (RequestLog(),)

    def open(self) -> list[Stream]:
        """Those that have not ended, as of now."""
        return [stream for stream in self._streams.values() if not stream.ended.done()]

    def find(self, request_id: str) -> Stream | None:
        """The request of that id, if it has not ended."""
        stream = self._streams.get(request_id)
        return None if stream is None or stream.ended.done() else stream

    def admit(self, asked: Asked) -> Stream:
        """Raises AlreadyExistsError, OverloadedError."""
        if asked.request_id in self._streams:
            raise AlreadyExistsError(f"a request with id {asked.request_id!r} is running")
        if asked.params.num_sequences > self._num_free_slots:
            raise OverloadedError(
                f"the queue is full ({len(self._streams)} requests run or wait); retry later"
            )
        ended = asyncio.get_running_loop().create_future()
        stream = Stream(asked, Mailbox(asked.output.interval), ended)
        self._streams[asked.request_id] = stream
        self._num_free_slots -= asked.params.num_sequences
        self.idle.clear()
        return stream

    def charge(self, stream: Stream, num_prompt_tokens: int) -> None:
        """For what it may have to hold of the prompt's log-probabilities. Raises OverloadedError."""
        number = stream.asked.num_prompt_logprobs(num_prompt_tokens)
        if number > self._num_free_prompt_logprobs:
            most = f"{MAX_PROMPT_LOGPROBS_TOGETHER} log-probabilities of prompts"
            raise OverloadedError(f"all requests together may ask for {most}; retry later")
        self._num_free_prompt_logprobs -= number
        stream.num_prompt_logprobs = number

    def refuse(self, stream: Stream, error: Exception) -> None:
        """It had been admitted, but its prompt is wrong, or its grammar."""
        self.count_refusal(stream.asked, error)
        stream.ended.cancel()
        self.leave(stream)

    def count_refusal(self, asked: Asked, error: Exception) -> None:
        refusal = _refusal(error)
        self._metrics.num_rejected[refusal] += 1
        self._tell(refused(asked, refusal, error, self._clock()))

    def refuse_unread(self, request: Unread, error: Exception) -> None:
        """What it says cannot be read."""
        refusal = _refusal(error)
        self._metrics.num_rejected[refusal] += 1
        self._tell(request.refused(refusal, error, self._clock()))

    def leave_unread(self, request: Unread, reason: FinishReason) -> None:
        """Its client was gone before it was admitted."""
        self._metrics.requests.observe_left(reason)
        self._tell(request.left(reason, self._clock()))

    def _tell(self, report: RequestReport) -> None:
        for observe in self.observers:
            try:
                observe(report)
            except Exception:  # a request that went well stays one
                logger.exception("request %s: its end could not be told", report.request_id)

    def end(self, stream: Stream, end: RequestEnd) -> None:
        """The one end of an accepted request. Its last delta is in the mailbox, or the end has an error."""
        if end.error is not None:
            has_run = end.timings.queued is not None  # else another server can do all of it
            stream.mailbox.fail(StepFailedError(end.error) if has_run else UnavailableError(end.error))
        assert stream.mailbox.ended, "the reader is told first"
        stream.ended.set_result(end)
        if stream.preparing is not None:
            stream.preparing.cancel()
        self._metrics.requests.observe_end(
            stream.asked.params, end, stream.interruption, is_submitted=stream.is_submitted
        )
        self._tell(ended(stream.asked, end, stream.interruption))
        self._release_if_over(stream)

    def end_early(self, stream: Stream, reason: FinishReason, now: float) -> None:
        """The same for a request that the engine does not have: nothing was generated."""
        usage, timings = Usage(0, 0, 0), Timings(None, None, now - stream.asked.arrival_time)
        finish, last = OutputFinish(reason), stream.asked.params.num_outputs - 1
        for index in range(last):
            stream.mailbox.put(OutputDelta(index, finish=finish))
        stream.mailbox.put(OutputDelta(last, finish=finish, usage=usage, timings=timings))
        self.end(stream, RequestEnd(reason, usage, timings))

    def fail(self, stream: Stream, error: Exception, now: float) -> None:
        """The same where the reader gets an error instead."""
        stream.mailbox.fail(error)
        timings = Timings(None, None, now - stream.asked.arrival_time)
        self.end(stream, RequestEnd(FinishReason.ERROR, Usage(0, 0, 0), timings, error=str(error)))

    def leave(self, stream: Stream) -> None:
        """Its reader has gone, or has read its end."""
        stream.has_left = True
        self._release_if_over(stream)

    def _release_if_over(self, stream: Stream) -> None:
        request_id = stream.asked.request_id
        is_over = stream.has_left and stream.ended.done()
        if is_over and self._streams.get(request_id) is stream:  # else it is done already
            del self._streams[request_id]
            self._num_free_slots += stream.asked.params.num_sequences
            self._num_free_prompt_logprobs += stream.num_prompt_logprobs
            if not self._streams:
                self.idle.set()


def _refusal(error: Exception) -> str:
    """As metrics and logs name it."""
    return _REFUSALS.get(type(error), "invalid")
