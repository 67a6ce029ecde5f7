"""Mean and percentiles of measured values."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """num values and what describes them, in the values' own unit.

    Percentiles interpolate linearly between the two nearest values (NumPy's default, type 7 of Hyndman and
    Fan, "Sample Quantiles in Statistical Packages", 1996).
    """

    num: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


def describe(values: Sequence[float] | Floats) -> Distribution | None:
    """None if there are no values."""
    array = np.asarray(values, np.float64)
    if not array.size:
        return None
    p50, p90, p95, p99 = (float(value) for value in np.percentile(array, (50, 90, 95, 99)))
    return Distribution(
        num=array.size, mean=float(array.mean()), p50=p50, p90=p90, p95=p95, p99=p99, max=float(array.max())
    )
