"""Requests running and waiting over the time of a run, few enough points to plot and to keep."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.loadtest.concurrency import running, waiting
from benchmarks.loadtest.distribution import Floats
from benchmarks.loadtest.records import RequestRecord
from benchmarks.loadtest.window import whole_run

NUM_POINTS = 240


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """times: middles of equal intervals (s). running, waiting: mean number in each: with a first token, and
    sent without one so far (the client cannot see more of the server's queue)."""

    times: tuple[float, ...] = ()
    running: tuple[float, ...] = ()
    waiting: tuple[float, ...] = ()


def timeline(records: Sequence[RequestRecord]) -> Timeline:
    """From the first to the last event; empty if that is no time."""
    whole = whole_run(records)
    if whole.seconds < 1e-9:
        return Timeline()
    edges = np.linspace(whole.start, whole.end, NUM_POINTS + 1)
    return Timeline(
        times=_rounded((edges[1:] + edges[:-1]) / 2),
        running=_rounded(running(records).means(edges)),
        waiting=_rounded(waiting(records).means(edges)),
    )


def _rounded(values: Floats) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)
