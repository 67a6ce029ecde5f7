"""When tokens come. Observed by the output thread, once a step: a few tens of nanoseconds a token."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from engine.serving.metrics.histogram import ITL_BUCKETS, TTFT_BUCKETS, Histogram
from engine.serving.metrics.specs import Family, Spec, histogram, single
from scheduler.request import SequenceOutput

FIRST_TOKEN = histogram(
    "time_to_first_token_seconds",
    "seconds",
    "From a request's arrival to the first token of each of its outputs, queueing and tokenizing included",
    "High: see request_queue_time_seconds (too much load) and request_prefill_time_seconds (long prompts).",
)
NEXT_TOKEN = histogram(
    "inter_token_latency_seconds",
    "seconds",
    "Between a token and the next one of the same output, once for each token but the first",
    "High tail: prompts of others share the steps; lower --max-num-batched-tokens. All high: see "
    "step_phase_seconds.",
)
SPECS: tuple[Spec, ...] = (FIRST_TOKEN, NEXT_TOKEN)

_NEVER = float("nan")


class Timed(Protocol):
    """A request. last_times: when tokens of each output last came, None before the first ones."""

    @property
    def arrival_time(self) -> float: ...

    @property
    def last_times(self) -> list[float | None]: ...


class TokenMetrics:
    """Times are in the engine's seconds."""

    def __init__(self) -> None:
        self._first, self._next = Histogram(TTFT_BUCKETS), Histogram(ITL_BUCKETS)
        self._previous = _NEVER

    def observe(self, outputs: Sequence[SequenceOutput], requests: Mapping[str, Timed], now: float) -> None:
        """What a step sent, and when.

        Most sequences had their last token in the step before: these share one gap, told by the very object
        that holds the time, and are merely counted.
        """
        previous, num_common = self._previous, 0
        for sent in outputs:
            if token_ids := sent.token_ids:
                request = requests[sent.request_id]
                times, index = request.last_times, sent.output_index
                last, times[index] = times[index], now
                if last is previous and len(token_ids) == 1:
                    num_common += 1
                elif last is None:
                    self._first.observe(now - request.arrival_time)
                else:
                    self._next.observe((now - last) / len(token_ids), len(token_ids))
        if num_common:
            self._next.observe(now - previous, num_common)
        self._previous = now

    def families(self) -> Iterator[Family]:
        yield single(FIRST_TOKEN, self._first.snapshot())
        yield single(NEXT_TOKEN, self._next.snapshot())
