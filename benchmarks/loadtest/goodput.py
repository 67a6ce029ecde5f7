"""Goodput: requests that were answered and met every limit.

Of limits on latencies only: TTFT, TPOT and E2E are the request's own value, ITL the named percentile of its
own tokens. Limits on a mean or a median are about runs (half of the requests may miss a median) and are left
out. Judged are clients that read to the end at their own pace; refused, failed, late and incomplete
requests count against, those meant to be cancelled, to pass a deadline or to read slowly do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.loadtest.distribution import describe
from benchmarks.loadtest.limits import LATENCIES, Condition
from benchmarks.loadtest.records import RequestRecord
from benchmarks.loadtest.window import Window


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """num_judged requests, of which num_answered ended well, of which num_good met every limit. rate: good
    ones, requests/s; share: good ones of those judged, 0..1. None where nothing can be said."""

    num_judged: int
    num_answered: int
    num_good: int
    rate: float | None
    share: float | None


def goodput(records: Sequence[RequestRecord], window: Window, limits: Sequence[Condition]) -> Goodput:
    """Of the requests sent in the window."""
    judged = [record for record in records if not record.behaviour and window.holds(record.sent)]
    answered = [record for record in judged if record.outcome == "success"]
    num_good = sum(meets(record, limits) for record in answered)
    return Goodput(
        num_judged=len(judged),
        num_answered=len(answered),
        num_good=num_good,
        rate=num_good / window.seconds if window.seconds > 0 else None,
        share=num_good / len(judged) if judged else None,
    )


def meets(record: RequestRecord, limits: Sequence[Condition]) -> bool:
    """Whether the request met every limit that speaks of requests; one without a value meets it."""
    ours = (limit for limit in limits if limit.metric in LATENCIES and limit.statistic not in ("mean", "p50"))
    values = ((limit, _value(record, limit)) for limit in ours)
    return all(value is None or limit.holds(value) for limit, value in values)


def _value(record: RequestRecord, limit: Condition) -> float | None:
    if limit.metric == "itl":
        gaps = describe(record.itls)
        return float(getattr(gaps, limit.statistic)) if gaps else None
    if limit.metric == "ttft_scheduled":
        return None if record.ttft is None else record.ttft + record.lag
    value: float | None = getattr(record, limit.metric)
    return value
