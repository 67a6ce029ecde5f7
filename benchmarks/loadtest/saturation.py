"""Whether a rate was more than the server can take: both concurrency and TTFT grew with time.

A trend is the slope of a least-squares line through batch means: the window is cut into 20 equal batches, so
that most of the correlation between neighbouring requests stays within one (batch means: Law, "Simulation
Modeling and Analysis", ch. 9). What noise there is around it is not known beforehand, so two tests, each
one-sided at 95 %, and either may find growth:

level  noise around a line, as of a server that keeps up. The slope's standard error and degrees of freedom
       take the effective number of batches, n (1 - r) / (1 + r), r being the lag-1 autocorrelation of the
       residuals (Santer et al., "Statistical significance of trends and trend differences in layer-average
       atmospheric temperature time series", J. Geophys. Res. 105, 2000).
drift  noise that adds up, as of a queue that only grows: a random walk, whose steps must have a mean above 0
       (Hamilton, "Time Series Analysis", ch. 15). Finds nothing where noise dies away.

On top, the line must rise by a tenth of the mean: in a long run the slightest drift is significant.
Of Poisson arrivals at exponential servers (1 and 64), 400 requests: at most 5 % of the runs at half load are
called over-saturated, 7 to 10 % at 0.9, 63 % at 1.2, 99 % from 1.5 times the capacity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.loadtest.concurrency import in_flight
from benchmarks.loadtest.distribution import Floats
from benchmarks.loadtest.records import RequestRecord
from benchmarks.loadtest.window import Window

NUM_BATCHES = 20
MIN_REQUESTS = 40  # two a batch
MIN_GROWTH = 0.1
_Z95 = 1.6448536269514722
_ROUNDING, _CERTAIN = 1e-18, 1e9


@dataclass(frozen=True, kw_only=True)
class Trend:
    """slope: per second, in the unit of what grows. growth: of the line from the window's start to its end,
    over the mean. t, critical: the statistic and the value that it must exceed."""

    slope: float
    growth: float
    t: float
    critical: float

    @property
    def grows(self) -> bool:
        return self.t > self.critical and self.growth >= MIN_GROWTH


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """None as a trend: too few requests to tell."""

    concurrency: Trend | None
    ttft: Trend | None

    @property
    def is_over(self) -> bool:
        return bool(self.concurrency and self.concurrency.grows and self.ttft and self.ttft.grows)


def saturation(records: Sequence[RequestRecord], window: Window) -> Saturation:
    """The trends within the window, TTFT by the time of sending."""
    points = [(record.sent, record.ttft) for record in records if window.holds(record.sent)]
    first_tokens = [(sent, ttft) for sent, ttft in points if ttft is not None]
    if len(first_tokens) < MIN_REQUESTS or window.seconds <= 0:
        return Saturation(concurrency=None, ttft=None)
    edges = np.linspace(window.start, window.end, NUM_BATCHES + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    sent, ttft = np.array(first_tokens).T
    batch = np.clip(np.searchsorted(edges, sent, "right") - 1, 0, NUM_BATCHES - 1)
    sizes = np.bincount(batch, minlength=NUM_BATCHES)
    filled = sizes > 0
    means = np.bincount(batch, ttft, NUM_BATCHES)[filled] / sizes[filled]
    return Saturation(
        concurrency=trend(middles, in_flight(records).means(edges), window.seconds),
        ttft=trend(middles[filled], means, window.seconds),
    )


def trend(times: Floats, values: Floats, seconds: float) -> Trend | None:
    """[n] batch means at times (s), of a window of so many seconds; None below four batches."""
    if len(times) < 4:
        return None
    centred = times - times.mean()
    slope = float(centred @ values) / float(centred @ centred)
    mean = float(values.mean())
    growth = slope * seconds / mean if mean else 0.0
    tests = (_level(centred, values, slope), _drift(values))
    t, critical = max(tests, key=lambda test: test[0] - test[1])
    return Trend(slope=slope, growth=growth, t=t, critical=critical)


def _level(centred: Floats, values: Floats, slope: float) -> tuple[float, float]:
    """(t, what it must exceed) of the slope."""
    residuals = values - values.mean() - slope * centred
    squares = float(residuals @ residuals)
    if squares <= _ROUNDING * float(values @ values):  # a straight line
        return _CERTAIN * float(np.sign(slope)), _critical(len(values) - 2)
    r = max(0.0, float(residuals[1:] @ residuals[:-1]) / squares)
    effective = max(3.0, len(values) * (1 - r) / (1 + r))
    error = (squares / (effective - 2) / float(centred @ centred)) ** 0.5
    return slope / error, _critical(effective - 2)


def _drift(values: Floats) -> tuple[float, float]:
    """(t, what it must exceed) of the mean step from batch to batch."""
    steps = np.diff(values)
    mean, variance = float(steps.mean()), float(steps.var(ddof=1))
    if variance <= _ROUNDING * float(values @ values):
        return _CERTAIN * float(np.sign(mean)), _critical(len(steps) - 1)
    return float(mean / (variance / len(steps)) ** 0.5), _critical(len(steps) - 1)


def _critical(freedom: float) -> float:
    """The 95 % quantile of Student's t (Abramowitz and Stegun, 26.7.5; within 3 % from 2 degrees on)."""
    z, v = _Z95, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
