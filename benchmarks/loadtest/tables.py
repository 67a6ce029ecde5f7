"""Summaries as rows of text, for a terminal and for a page."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from benchmarks.loadtest.distribution import STATISTICS
from benchmarks.loadtest.limits import LATENCIES
from benchmarks.loadtest.measures import Measures
from benchmarks.loadtest.records import OUTCOMES
from benchmarks.loadtest.summary import Summary
from benchmarks.loadtest.units import show_rate, show_share, show_time

NAMES = {"ttft": "TTFT", "ttft_scheduled": "TTFT from due", "itl": "ITL", "tpot": "TPOT", "e2e": "E2E"}
_RATES = ("offered req/s", "achieved req/s", "output tokens/s", "total tokens/s", "in flight")
_TIMES = (("ttft", "p50"), ("ttft", "p99"), ("itl", "p50"), ("itl", "p99"), ("tpot", "p50"), ("e2e", "p50"))
_OVERVIEW = ("run", *_RATES, *(f"{NAMES[name]} {which}" for name, which in _TIMES), "goodput", "verdict")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A table of text: headings, and rows as long as they are. The first num_names columns are names."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_names: int = 1


def overview(summaries: Sequence[Summary]) -> Rows:
    """A run a row, of its steady state."""
    rows = tuple(_overview(summary) for summary in summaries)
    return Rows(title="Runs (steady state)", headings=_OVERVIEW, rows=rows)


def latencies(summaries: Sequence[Summary], *, is_whole: bool = False) -> Rows:
    """A latency of a run a row, of its steady state or of the whole run."""
    rows = []
    for summary in summaries:
        measures = summary.whole if is_whole else summary.steady
        rows += [(summary.info.name, NAMES[name], *_statistics(measures, name)) for name in LATENCIES]
        if is_whole:
            lag = summary.lag
            shown = [show_time(getattr(lag, statistic)) for statistic in STATISTICS] if lag else [""] * 6
            rows.append((summary.info.name, "the tool's own lag", str(lag.num if lag else 0), *shown))
    title = "Latencies (whole run)" if is_whole else "Latencies (steady state)"
    return Rows(
        title=title, headings=("run", "latency", "values", *STATISTICS), rows=tuple(rows), num_names=2
    )


def outcomes(summaries: Sequence[Summary]) -> Rows:
    """How the requests of whole runs ended; the window that counts."""
    rows = tuple(
        (
            summary.info.name,
            *(f"{summary.whole.counts[outcome]:,}" for outcome in OUTCOMES),
            f"{summary.steady.window.start:.4g} to {summary.steady.window.end:.4g} s",
            f"{sum(summary.steady.counts.values()):,}",
            summary.steady.window.method,
        )
        for summary in summaries
    )
    headings = ("run", *OUTCOMES, "window", "sent inside", "chosen by")
    return Rows(title="Outcomes (whole run) and window", headings=headings, rows=rows)


def to_rich(table: Rows) -> Table:
    """For a terminal."""
    shown = Table(title=table.title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for place, heading in enumerate(table.headings):
        shown.add_column(heading, justify="left" if place < table.num_names else "right")
    for row in table.rows:
        shown.add_row(*row)
    return shown


def _overview(summary: Summary) -> tuple[str, ...]:
    steady = summary.steady
    return (
        summary.info.name,
        show_rate(summary.info.rate if summary.info.rate is not None else steady.offered),
        show_rate(steady.achieved),
        show_rate(steady.output_throughput),
        show_rate(steady.total_throughput),
        show_rate(steady.concurrency),
        *(show_time(getattr(getattr(steady, name), statistic, None)) for name, statistic in _TIMES),
        f"{show_rate(steady.goodput.rate)} req/s, {show_share(steady.goodput.share)}",
        summary.verdict,
    )


def _statistics(measures: Measures, name: str) -> list[str]:
    found = getattr(measures, name)
    times = [show_time(getattr(found, statistic, None)) for statistic in STATISTICS]
    return [f"{found.num:,}" if found else "0", *times]
