"""Runs that belong together: a sweep."""

from dataclasses import dataclass

from benchmarks.loadtest.summary import Summary


@dataclass(frozen=True)
class Series:
    """Runs that one line connects. label: "" if the plot has a single series."""

    label: str
    summaries: tuple[Summary, ...]

    @property
    def by_load(self) -> list[Summary]:
        """Those that measured something, ascending."""
        found = (summary for summary in self.summaries if summary.whole.counts["success"])
        return sorted(found, key=lambda summary: summary.load)
