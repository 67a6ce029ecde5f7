"""How many requests were in flight, waiting for their first token, or running, at each moment."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.loadtest.distribution import Floats
from benchmarks.loadtest.records import RequestRecord


@dataclass(frozen=True, eq=False)
class Steps:
    """A step function: counts[i] from times[i] (s, ascending) until times[i + 1]; 0 before and after all."""

    times: Floats
    counts: Floats

    def means(self, edges: Floats) -> Floats:
        """[k + 1] edges (s, ascending) -> [k] time-weighted means between them."""
        if not self.times.size:
            return np.zeros(len(edges) - 1)
        areas = np.concatenate(([0.0], np.cumsum(self.counts[:-1] * np.diff(self.times))))
        means: Floats = np.diff(np.interp(edges, self.times, areas)) / np.diff(edges)
        return means

    def quantile(self, share: float, start: float, end: float) -> float:
        """The least count that is not exceeded during `share` of the time from start to end (s)."""
        edges = np.clip(np.append(self.times, np.inf), start, end)
        seconds = np.diff(edges)
        order = np.argsort(self.counts, kind="stable")
        passed = np.cumsum(seconds[order])
        if not passed.size or passed[-1] <= 0:
            return 0.0
        place = int(np.searchsorted(passed, share * passed[-1]))
        return float(self.counts[order][min(place, len(order) - 1)])


def count(intervals: Iterable[tuple[float, float]]) -> Steps:
    """How many of the intervals [from, until) (s) hold each moment."""
    array = np.array(list(intervals), np.float64).reshape(-1, 2)
    starts, ends = np.sort(array[:, 0]), np.sort(array[:, 1])
    times = np.unique(array)
    counts = np.searchsorted(starts, times, "right") - np.searchsorted(ends, times, "right")
    return Steps(times, counts.astype(np.float64))


def in_flight(records: Sequence[RequestRecord]) -> Steps:
    """Sent and not ended."""
    return count((record.sent, record.ended) for record in records)


def waiting(records: Sequence[RequestRecord]) -> Steps:
    """Sent, without a first token so far."""
    return count((record.sent, record.chunks[0][0] if record.chunks else record.ended) for record in records)


def running(records: Sequence[RequestRecord]) -> Steps:
    """Between their first token and their end."""
    return count((record.chunks[0][0], record.ended) for record in records if record.chunks)
