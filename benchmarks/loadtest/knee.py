"""The knee of a sweep: the highest of the measured rates that the server takes within the limits."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.loadtest.limits import Condition
from benchmarks.loadtest.summary import Summary
from benchmarks.loadtest.units import show_rate, show_share
from benchmarks.loadtest.verdict import unmet

MAX_UNANSWERED = 0.01  # percentiles of those answered say nothing of those refused


@dataclass(frozen=True, kw_only=True)
class RateVerdict:
    """rate: offered, requests/s. reasons: why the server does not take it; none if it does."""

    rate: float
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Knee:
    """rate: requests/s, as measured, never interpolated; None if no rate was taken. rates: all that were
    measured, ascending."""

    rate: float | None
    limits: tuple[str, ...]
    rates: tuple[RateVerdict, ...]

    @property
    def text(self) -> str:
        """One sentence, and what ended the search."""
        limits = " and ".join(self.limits) or "no limits"
        if not self.rates:
            return "No knee: no rate was measured."
        if self.rate is None:
            lowest = self.rates[0]
            return f"No knee ({limits}): {show_rate(lowest.rate)} req/s, {'; '.join(lowest.reasons)}."
        above = [verdict for verdict in self.rates if verdict.rate > self.rate]
        below = [verdict for verdict in self.rates if verdict.rate < self.rate and verdict.reasons]
        text = f"Knee ({limits}): {show_rate(self.rate)} req/s."
        if above:
            text += f" At {show_rate(above[0].rate)} req/s: {'; '.join(above[0].reasons)}."
        else:
            text += " It is the highest rate that was measured; the server may take more."
        for verdict in below:
            text += f" (Yet at {show_rate(verdict.rate)} req/s: {'; '.join(verdict.reasons)}.)"
        return text


def find_knee(summaries: Sequence[Summary], limits: Sequence[Condition]) -> Knee:
    """Of the runs that offered a rate: the highest that is valid, not over-saturated, meets every limit, and
    left at most 1 % of the requests unanswered. Of a rate measured twice, both must be."""
    reasons: dict[float, tuple[str, ...]] = {}
    for summary in summaries:
        if (rate := summary.info.rate) is not None:
            reasons[rate] = reasons.get(rate, ()) + why_not(summary, limits)
    rates = tuple(RateVerdict(rate=rate, reasons=reasons[rate]) for rate in sorted(reasons))
    taken = [verdict.rate for verdict in rates if not verdict.reasons]
    return Knee(rate=max(taken, default=None), limits=tuple(limit.text for limit in limits), rates=rates)


def why_not(summary: Summary, limits: Sequence[Condition]) -> tuple[str, ...]:
    """Why a run does not show that the server takes its rate; nothing if it does."""
    if summary.verdict != "valid":
        return (summary.verdict, *unmet(summary, limits))
    goodput = summary.steady.goodput
    share = 1 - goodput.num_answered / goodput.num_judged if goodput.num_judged else 0.0
    unanswered = (f"{show_share(share)} unanswered",) if share > MAX_UNANSWERED else ()
    return (*unanswered, *unmet(summary, limits))
