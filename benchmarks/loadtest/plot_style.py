"""How plots look: colours that those who see few still tell apart, and what every plot has.

Colours are Okabe and Ito's ("Color Universal Design", 2008); series also differ by marker.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.loadtest.series import Series
from benchmarks.loadtest.summary import Summary

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
GREY = "#767676"
DPI = 120


@dataclass(frozen=True)
class Look:
    """Of one line."""

    colour: str
    marker: str
    style: str = "-"

    @classmethod
    def of(cls, place: int, style: str = "-") -> "Look":
        return cls(COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)], style)


def new_figure(title: str, width: float = 7.2, height: float = 4.4) -> Figure:
    """Inches; without pyplot, which would keep figures in a global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, fontweight="bold")
    return figure


def dress(axes: Axes, across: str, upward: str) -> None:
    """Labels with their units, light lines, nothing that is not needed."""
    axes.set_xlabel(across)
    axes.set_ylabel(upward)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: Axes, series: Sequence[Series]) -> None:
    """If there is anything to explain."""
    if any(summary.verdict != "valid" for one in series for summary in one.by_load):
        hollow = {"color": GREY, "markerfacecolor": "white", "markersize": 5.0}
        axes.plot([], [], "o", label="hollow: over-saturated or invalid", **hollow)  # type: ignore[arg-type]
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(handles, labels, frameon=False, fontsize=8)


def line(axes: Axes, points: list[tuple[float, float, Summary]], look: Look, label: str) -> None:
    """A marker a run: filled if valid, hollow if over-saturated or invalid."""
    across, upward = [point[0] for point in points], [point[1] for point in points]
    axes.plot(across, upward, look.style, color=look.colour, linewidth=1.6, label=label or None)
    for x, y, summary in points:
        face = look.colour if summary.verdict == "valid" else "white"
        axes.plot([x], [y], look.marker, markersize=5, color=look.colour, markerfacecolor=face)


def save(figure: Figure, path: Path) -> Path:
    """As a PNG whose bytes depend on nothing but the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})
    return path
