"""From token ids to deltas, on a thread of its own: neither steps nor the event loop wait for it."""

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from engine.serving.metrics import Metrics
from engine.serving.request_outputs import RequestEnd, RequestOutputs, Taken
from engine.serving.types import OutputDelta
from scheduler.loop import describe
from scheduler.request import FinishReason, SequenceOutput

logger = logging.getLogger("inflight")


class Delivery(NamedTuple):
    """For one reader. end: there will be no more."""

    request_id: str
    delta: OutputDelta | None
    end: RequestEnd | None


@dataclass(frozen=True, slots=True)
class EngineEnd:
    """The step loop has ended, and all it sent is delivered. error: what ended it; None after a stop."""

    error: BaseException | None


class _Batch(NamedTuple):
    """What a step sent, and when, in the engine's seconds."""

    time: float
    outputs: list[SequenceOutput]


class OutputProcessor:
    """Owns the RequestOutputs of all requests that the engine has.

    deliver: takes all that became of one step's outputs, or the EngineEnd, which is the last; never waits.
    finish: asks the engine to end one output (STOP), or all of a request (ERROR, with output index None).
    clock: the engine's.
    """

    def __init__(
        self,
        deliver: Callable[[list[Delivery] | EngineEnd], None],
        finish: Callable[[str, int | None, FinishReason], None],
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._deliver = deliver
        self._finish = finish
        self._metrics = metrics
        self._clock = clock
        self._requests: dict[str, RequestOutputs] = {}
        self._queue: queue.SimpleQueue[_Batch | EngineEnd] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="outputs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, request: RequestOutputs) -> None:
        """Before the engine gets the request. Any thread."""
        self._requests[request.request.request_id] = request

    def put(self, outputs: list[SequenceOutput]) -> None:
        """Called by the engine thread after a step."""
        self._queue.put(_Batch(self._clock(), outputs))

    def end(self, error: BaseException | None) -> None:
        """Nothing more comes. Any thread; the first call counts."""
        self._queue.put(EngineEnd(error))

    def _run(self) -> None:
        try:
            while isinstance(item := self._queue.get(), _Batch):
                self._process(item)
        except BaseException as error:  # a bug; an engine whose output nobody reads must not seem alive
            logger.exception("the output thread failed")
            item = EngineEnd(error)
        self._deliver(item)

    def _process(self, batch: _Batch) -> None:
        started = self._clock()
        self._metrics.tokens.observe(batch.outputs, self._requests, batch.time)
        deliveries: list[Delivery] = []
        for sent in batch.outputs:
            taken = _take(self._requests[sent.request_id], sent)
            if taken.wanted is not None:
                self._ask(sent, taken.wanted)
            if taken.end is not None:
                del self._requests[sent.request_id]
            deliveries += [Delivery(sent.request_id, delta, None) for delta in taken.before]
            if taken.delta is not None or taken.end is not None:
                deliveries.append(Delivery(sent.request_id, taken.delta, taken.end))
        self._metrics.steps.observe_outputs(started - batch.time, self._clock() - started)
        if deliveries:
            self._deliver(deliveries)

    def _ask(self, sent: SequenceOutput, wanted: FinishReason) -> None:
        index = sent.output_index if wanted is FinishReason.STOP else None
        self._finish(sent.request_id, index, wanted)


def _take(request: RequestOutputs, sent: SequenceOutput) -> Taken:
    try:
        return request.take(sent)
    except Exception as error:  # a bug, of ours or of a library: one request's failure fails no other
        logger.exception("request %s: no text for its tokens", sent.request_id)
        return request.fail(describe(error), sent)
