"""Runs and sweeps side by side."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from benchmarks.loadtest.errors import OptionError
from benchmarks.loadtest.series import Series
from benchmarks.loadtest.summary import FILE_NAME, Summary
from benchmarks.loadtest.tables import Rows, overview, to_rich


def compare(paths: Sequence[Path], plots: Path | None = None) -> Table:
    """A row a run, in the order of load, so that rates measured of each stand next to each other.

    paths: of summary.json files, or of folders that hold such files at any depth (a sweep); each becomes a
    series. plots: the folder to write PNGs to. Raises OptionError for what holds no summary.
    """
    series = [read_series(path, label) for path, label in zip(paths, _labels(paths), strict=True)]
    if plots is not None:
        from benchmarks.loadtest.plots import write_comparison  # the table needs no matplotlib

        write_comparison(plots, series)
    return to_rich(side_by_side(series))


def read_series(path: Path, label: str) -> Series:
    """All runs at a path."""
    files = sorted(path.rglob(FILE_NAME)) if path.is_dir() else [path]
    if not files:
        raise OptionError("compare", path, f"holds no {FILE_NAME}")
    return Series(label, tuple(map(_read, files)))


def side_by_side(series: Sequence[Series]) -> Rows:
    """The overview of all runs, with the series they belong to."""
    labelled = [(summary.load, one.label, summary) for one in series for summary in one.summaries]
    labelled.sort(key=lambda item: item[:2])
    table = overview([summary for _, _, summary in labelled])
    rows = tuple((label, *row) for (_, label, _), row in zip(labelled, table.rows, strict=True))
    return Rows(
        title="Runs side by side (steady state)", headings=("of", *table.headings), rows=rows, num_names=2
    )


def _read(path: Path) -> Summary:
    try:
        return Summary.from_json(path.read_text())
    except OSError as error:
        raise OptionError("compare", path, error.strerror or "cannot be read") from error
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError("compare", path, "must be a summary.json that this tool wrote") from error


def _labels(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ: what tells them apart."""
    parts = [path.resolve().parts for path in paths]
    parts = [one[:-1] if one[-1] == FILE_NAME else one for one in parts]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        labels = ["/".join(one[-depth:]) for one in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{'/'.join(one[-2:])} ({place})" for place, one in enumerate(parts, 1)]
