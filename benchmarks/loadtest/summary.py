"""What a run showed: all of it in one frozen value, as summary.json keeps it."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.loadtest.distribution import Distribution, describe
from benchmarks.loadtest.limits import Condition
from benchmarks.loadtest.measures import Measures, measure
from benchmarks.loadtest.records import RequestRecord, RunInfo, read_run
from benchmarks.loadtest.saturation import Saturation, Trend, saturation
from benchmarks.loadtest.timeline import Timeline, timeline
from benchmarks.loadtest.window import steady_state, whole_run

FILE_NAME = "summary.json"
FEW = 100  # below this, a p99 is little else than the maximum
NUM_ERRORS = 5  # kept, the most frequent


@dataclass(frozen=True, kw_only=True)
class Summary:
    """info: what was run. limits: of goodput, as written. steady: within the steady-state window; whole: from
    the first to the last event. lag: seconds that requests were sent late. errors: the most frequent
    messages and how often each came. notes: what a reader of the figures should know."""

    info: RunInfo
    limits: tuple[str, ...]
    steady: Measures
    whole: Measures
    lag: Distribution | None
    saturation: Saturation
    timeline: Timeline
    errors: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]

    @property
    def load(self) -> float:
        """Requests/s: the rate that was offered; where there was none, the one that was achieved."""
        return self.info.rate if self.info.rate is not None else self.steady.achieved or 0.0

    @property
    def verdict(self) -> str:
        """invalid and why, nothing succeeded, over-saturated, or valid."""
        if self.info.invalid:
            return f"invalid: {self.info.invalid}"
        if not self.whole.counts["success"]:
            return "nothing succeeded"
        return "over-saturated" if self.saturation.is_over else "valid"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Summary":
        """Raises ValueError, KeyError or TypeError for what is not a summary."""
        values = json.loads(text)
        trends = values["saturation"]
        return cls(
            info=RunInfo.from_json(json.dumps(values["info"])),
            limits=tuple(values["limits"]),
            steady=Measures.from_values(values["steady"]),
            whole=Measures.from_values(values["whole"]),
            lag=Distribution(**values["lag"]) if values["lag"] else None,
            saturation=Saturation(**{name: trend and Trend(**trend) for name, trend in trends.items()}),
            timeline=Timeline(**{name: tuple(points) for name, points in values["timeline"].items()}),
            errors=tuple((message, number) for message, number in values["errors"]),
            notes=tuple(values["notes"]),
        )


def analyse(records: Sequence[RequestRecord], info: RunInfo, limits: Sequence[Condition] = ()) -> Summary:
    """The same records give the same summary, in whatever order they come."""
    records = sorted(records, key=lambda record: record.index)
    window = steady_state(records, is_closed_loop=info.concurrency is not None)
    steady = measure(records, window, limits)
    whole = measure(records, whole_run(records), limits)
    return Summary(
        info=info,
        limits=tuple(limit.text for limit in limits),
        steady=steady,
        whole=whole,
        lag=describe([record.lag for record in records]),
        saturation=saturation(records, window),
        timeline=timeline(records),
        errors=_errors(records),
        notes=tuple(_notes(info, steady, whole)),
    )


def summarize(folder: Path, limits: Sequence[Condition] = ()) -> Summary:
    """Reads records.jsonl and info.json of a run's folder, writes summary.json there."""
    records, info = read_run(folder)
    summary = analyse(records, info, limits)
    (folder / FILE_NAME).write_text(summary.to_json())
    return summary


def _errors(records: Sequence[RequestRecord]) -> tuple[tuple[str, int], ...]:
    counts = Counter(record.error for record in records if record.error)
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:NUM_ERRORS])


def _notes(info: RunInfo, steady: Measures, whole: Measures) -> list[str]:
    num_sent, num_inside = sum(whole.counts.values()), sum(steady.counts.values())
    notes = []
    if not num_sent:
        notes.append("nothing was sent")
    elif not whole.counts["success"]:
        notes.append(f"none of {num_sent} requests succeeded")
    elif num_inside < FEW:
        notes.append(f"{num_inside} requests in the window: too few for a p99 of what a request measures")
    if info.num_planned > num_sent:
        notes.append(f"{info.num_planned - num_sent} of {info.num_planned} planned requests were never sent")
    return notes
