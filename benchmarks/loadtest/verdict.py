"""Conditions held against a run."""

from collections.abc import Sequence

from benchmarks.loadtest.limits import LATENCIES, THROUGHPUTS, Condition
from benchmarks.loadtest.records import OUTCOMES
from benchmarks.loadtest.summary import Summary
from benchmarks.loadtest.units import NOTHING, show_rate, show_share, show_time


def value_of(condition: Condition, summary: Summary) -> float | None:
    """What the condition speaks of: of the steady state, outcomes of the whole run. None: not measured."""
    steady, metric = summary.steady, condition.metric
    if metric in LATENCIES:
        distribution = getattr(steady, metric)
        return float(getattr(distribution, condition.statistic)) if distribution else None
    if metric in OUTCOMES:
        number, total = summary.whole.counts[metric], sum(summary.whole.counts.values())
        if condition.unit == "%":
            return number / total if total else None
        return float(number)
    if metric == "goodput":
        return steady.goodput.share if condition.unit == "%" else steady.goodput.rate
    value: float | None = getattr(steady, metric)
    return value


def unmet(summary: Summary, limits: Sequence[Condition]) -> tuple[str, ...]:
    """The limits that do not hold, with what was measured; one that was not measured does not hold."""
    values = [(limit, value_of(limit, summary)) for limit in limits]
    return tuple(_said(limit, value) for limit, value in values if value is None or not limit.holds(value))


def failures(summary: Summary, conditions: Sequence[Condition]) -> tuple[str, ...]:
    """For --fail-if: the conditions that hold, or about which nothing was measured, and what was."""
    values = [(condition, value_of(condition, summary)) for condition in conditions]
    return tuple(_said(one, value) for one, value in values if value is None or one.holds(value))


def _said(condition: Condition, value: float | None) -> str:
    return f"{condition.text}: {_shown(condition, value) if value is not None else 'not measured'}"


def _shown(condition: Condition, value: float | None) -> str:
    if condition.metric in LATENCIES:
        return show_time(value)
    if condition.unit == "%":
        return show_share(value)
    unit = "tokens/s" if condition.metric in THROUGHPUTS else condition.unit
    return f"{show_rate(value)} {unit}".strip() if value is not None else NOTHING
