"""The steady state of a run: the time during which concurrency was at its plateau.

What a request measures (TTFT, TPOT, E2E, goodput, its outcome) counts if it was *sent* inside, wherever it
ends: leaving out those that end later would leave out the slowest. What a token measures (ITL, tokens/s)
counts if its chunk *arrived* inside. Three methods:

closed loop  the longest interval in which concurrency is at least 90 % of its plateau, which is the count
             that is not exceeded during 90 % of the time. Dips no longer than a typical request (the median
             of E2E) or 1 % of the run do not end it: a moment lies between a request's end and the next.
open loop    between the first and the last arrival: from the first moment at which concurrency reaches its
             (time-weighted) median of that time, to the last at which it is at least half of that. Drops
             ramp-up and drain, and the quiet tail of conversations, but no random lull before the end.
burst        all arrivals within a tenth of the run: there is no plateau, so everything counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.loadtest.concurrency import Steps, in_flight
from benchmarks.loadtest.records import RequestRecord

PLATEAU_QUANTILE = 0.9
BAND = 0.9
LONGEST_DIP = 0.01  # of the run
BURST = 0.1  # of the run
TAIL = 0.5  # of the median


@dataclass(frozen=True, kw_only=True)
class Window:
    """From start until end (s since the start of the run), without end itself. method: how it was chosen."""

    start: float
    end: float
    method: str

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def holds(self, time: float) -> bool:
        return self.start <= time < self.end


def whole_run(records: Sequence[RequestRecord], method: str = "whole run") -> Window:
    """From the first to the last event, which is still inside. Without records: nothing, at 0."""
    if not records:
        return Window(start=0.0, end=0.0, method="nothing was sent")
    end = max(record.ended for record in records)
    start = min(min(record.scheduled, record.sent) for record in records)
    return Window(start=start, end=float(np.nextafter(end, np.inf)), method=method)


def steady_state(records: Sequence[RequestRecord], *, is_closed_loop: bool) -> Window:
    """The window of a run, by the method that fits it."""
    whole = whole_run(records)
    if not records:
        return whole
    arrivals = [record.scheduled for record in records]
    if is_closed_loop:
        return _plateau(records, whole)
    if max(arrivals) - min(arrivals) <= BURST * whole.seconds:
        return whole_run(records, "burst: no plateau, the whole run")
    return _around_median(in_flight(records), whole.start, max(record.sent for record in records))


def _plateau(records: Sequence[RequestRecord], whole: Window) -> Window:
    steps = in_flight(records)
    level = BAND * steps.quantile(PLATEAU_QUANTILE, whole.start, whole.end)
    if not level:
        return Window(start=whole.start, end=whole.end, method="no plateau, the whole run")
    typical = float(np.median([record.ended - record.sent for record in records]))
    intervals = _merged(_at_least(steps, level), max(typical, LONGEST_DIP * whole.seconds))
    start, end = max(intervals, key=lambda interval: interval[1] - interval[0])
    return Window(start=start, end=end, method=f"closed loop: at least {level:g} in flight")


def _around_median(steps: Steps, first: float, last: float) -> Window:
    median = steps.quantile(0.5, first, last)
    start, end = first, last
    if median:
        start = max(first, _at_least(steps, median)[0][0])
        end = min(last, _at_least(steps, TAIL * median)[-1][1])
    method = f"open loop: from {median:g} in flight (the median) to the last arrival with half of it"
    return Window(start=start, end=end, method=method)


def _at_least(steps: Steps, level: float) -> list[tuple[float, float]]:
    """The intervals (s) in which the count is `level` (above 0) or more."""
    above = np.concatenate(([False], steps.counts >= level, [False]))
    edges = np.flatnonzero(above[1:] != above[:-1])
    return [(float(steps.times[a]), float(steps.times[b])) for a, b in edges.reshape(-1, 2)]


def _merged(intervals: list[tuple[float, float]], longest_dip: float) -> list[tuple[float, float]]:
    merged = intervals[:1]
    for start, end in intervals[1:]:
        if start - merged[-1][1] <= longest_dip:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged
