"""Running and waiting requests over the time of each run."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.loadtest.plot_style import COLOURS, GREY, dress, new_figure
from benchmarks.loadtest.summary import Summary

NUM_COLUMNS = 2


def timelines(summaries: Sequence[Summary]) -> Figure:
    """A panel a run, in the order of load; dotted lines are the steady-state window."""
    ordered = sorted(summaries, key=lambda summary: summary.load)
    num_columns = min(NUM_COLUMNS, max(1, len(ordered)))
    num_rows = max(1, -(-len(ordered) // num_columns))
    figure = new_figure("Requests in flight", width=7.2, height=1.2 + 2.2 * num_rows)
    for place, summary in enumerate(ordered):
        axes = figure.add_subplot(num_rows, num_columns, place + 1)
        _panel(axes, summary)
        if not place:
            handles, labels = axes.get_legend_handles_labels()
            figure.legend(handles, labels, frameon=False, fontsize=8, loc="upper right", ncols=2)
    return figure


def _panel(axes: Axes, summary: Summary) -> None:
    line, window = summary.timeline, summary.steady.window
    axes.stackplot(
        line.times,
        line.running,
        line.waiting,
        labels=("running", "waiting for the first token"),
        colors=(COLOURS[0], COLOURS[4]),
        linewidth=0,
    )
    for edge in (window.start, window.end):
        axes.axvline(edge, linestyle=":", color=GREY, linewidth=1)
    axes.set_title(f"{summary.info.name} ({summary.verdict})", fontsize=9, loc="left")
    axes.set_ylim(bottom=0)
    dress(axes, "time, s", "requests")
