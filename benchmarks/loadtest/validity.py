"""Whether the tool kept up with its own schedule."""

from collections.abc import Sequence

from benchmarks.loadtest.records import RequestRecord

LAG_LIMIT = 0.05  # seconds
SHARE_OF_TTFT = 0.1


def why_invalid(
    records: Sequence[RequestRecord], loop_lags: Sequence[float], lag_limit: float = LAG_LIMIT
) -> str | None:
    """None if the p99 of the lags, of sending and of the event loops, are within the limit.

    The limit is lag_limit seconds, or SHARE_OF_TTFT of the median time to first token if that is more.
    """
    sending = _p99([record.lag for record in records])
    looping = _p99(loop_lags)
    ttfts = sorted(ttft for record in records if (ttft := record.ttft) is not None)
    limit = max(lag_limit, SHARE_OF_TTFT * ttfts[len(ttfts) // 2] if ttfts else 0.0)
    if max(sending, looping) <= limit:
        return None
    return (
        f"the tool itself was late: p99 {sending * 1e3:.1f} ms at sending, {looping * 1e3:.1f} ms of its "
        f"event loops; the limit is {limit * 1e3:.1f} ms. Use more --processes, or a machine with less to do"
    )


def _p99(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[int(0.99 * (len(ordered) - 1))] if ordered else 0.0
