"""What a sweep shows, as PNGs."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.loadtest.limits import parse_condition
from benchmarks.loadtest.plot_style import GREY, Look, dress, legend, line, new_figure, save
from benchmarks.loadtest.plot_timeline import timelines
from benchmarks.loadtest.series import Series
from benchmarks.loadtest.summary import Summary

LOAD = "load, requests/s"
_WIDE = 20.0  # a range of values beyond which an axis is logarithmic
Value = Callable[[Summary], float | None]


def write_plots(folder: Path, summaries: Sequence[Summary]) -> list[Path]:
    """Writes the plots of one sweep, or of one run, and gives their paths."""
    series = [Series("", tuple(summaries))]
    figures = {**load_figures(series), "timeline": timelines(summaries)}
    return [save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def write_comparison(folder: Path, series: Sequence[Series]) -> list[Path]:
    """Writes a PNG a curve, a line a series, and gives their paths."""
    return [save(figure, folder / f"{name}.png") for name, figure in load_figures(series).items()]


def load_figures(series: Sequence[Series]) -> dict[str, Figure]:
    """Name -> figure: all curves over the load, and the Pareto curve."""
    return {
        "throughput": achieved(series),
        "ttft": latency(series, "ttft", "Time to first token", ("p50", "p99")),
        "itl": latency(series, "itl", "Time between tokens", ("p99",)),
        "goodput": goodput(series),
        "pareto": pareto(series),
    }


def achieved(series: Sequence[Series]) -> Figure:
    """Requests/s answered over requests/s offered; a server that keeps up stays on the diagonal."""
    figure = new_figure("Offered and achieved load")
    axes = figure.add_subplot()
    _curves(axes, series, lambda summary: summary.steady.achieved, "")
    top = max((summary.load for one in series for summary in one.by_load), default=1.0)
    axes.plot([0, top], [0, top], ":", color=GREY, label="as offered")
    dress(axes, LOAD, "answered requests/s")
    legend(axes, series)
    return figure


def latency(series: Sequence[Series], metric: str, title: str, statistics: Sequence[str]) -> Figure:
    """Milliseconds over the load; limits that name the metric are drawn."""
    figure = new_figure(title)
    axes = figure.add_subplot()
    for statistic, style in zip(statistics, ("--", "-") if len(statistics) > 1 else ("-",), strict=True):
        _curves(axes, series, _milliseconds(metric, statistic), statistic, style)
    _limits(axes, series, metric)
    _logarithmic_if_wide(axes)
    dress(axes, LOAD, f"{metric.upper()}, ms")
    legend(axes, series)
    return figure


def goodput(series: Sequence[Series]) -> Figure:
    """Requests/s that met every limit, over the load."""
    limits = sorted({limit for one in series for summary in one.summaries for limit in summary.limits})
    figure = new_figure(f"Goodput: {', '.join(limits) or 'answered requests, no limits'}")
    axes = figure.add_subplot()
    _curves(axes, series, lambda summary: summary.steady.goodput.rate, "")
    axes.set_ylim(bottom=0)
    dress(axes, LOAD, "good requests/s")
    legend(axes, series)
    return figure


def pareto(series: Sequence[Series]) -> Figure:
    """What one reader sees over what all get: up and right is better."""
    figure = new_figure("What one reader gets, and what all get")
    axes = figure.add_subplot()
    for place, one in enumerate(series):
        found = ((s.steady.output_throughput, s.steady.user_throughput, s) for s in one.by_load)
        points = [(x, y, summary) for x, y, summary in found if x is not None and y is not None]
        line(axes, points, Look.of(place), one.label)
        _name_loads(axes, points)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    dress(axes, "output tokens/s, all", "tokens/s of one reader (1 / mean ITL)")
    legend(axes, series)
    return figure


def _name_loads(axes: Axes, points: Sequence[tuple[float, float, Summary]]) -> None:
    """Not of over-saturated runs, which lie on top of each other."""
    for x, y, summary in points:
        if summary.verdict == "valid":
            text = f"{summary.load:.3g}/s"
            axes.annotate(text, (x, y), (5, 4), textcoords="offset points", fontsize=7, color=GREY)


def _curves(axes: Axes, series: Sequence[Series], value: Value, what: str, style: str = "-") -> None:
    for place, one in enumerate(series):
        found = [(summary.load, value(summary), summary) for summary in one.by_load]
        points = [(x, y, summary) for x, y, summary in found if y is not None]
        if points:
            line(axes, points, Look.of(place, style), f"{one.label} {what}".strip())


def _milliseconds(metric: str, statistic: str) -> Value:
    def value(summary: Summary) -> float | None:
        distribution = getattr(summary.steady, metric)
        return float(getattr(distribution, statistic)) * 1e3 if distribution else None

    return value


def _limits(axes: Axes, series: Sequence[Series], metric: str) -> None:
    texts = sorted({limit for one in series for summary in one.summaries for limit in summary.limits})
    for limit in map(parse_condition, texts):
        if limit.metric == metric:
            axes.axhline(limit.value * 1e3, linestyle=":", color=GREY, label=f"limit {limit.text}")


def _logarithmic_if_wide(axes: Axes) -> None:
    heights = [float(y) for drawn in axes.get_lines() for y in drawn.get_ydata() if float(y) > 0]  # type: ignore[arg-type, union-attr]
    if heights and max(heights) > _WIDE * min(heights):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda height, _: f"{height:,g}"))
    else:
        axes.set_ylim(bottom=0)
