"""Counting values by size: Prometheus' histogram, where one call observes any number of equal values."""

import math
from bisect import bisect_left
from collections.abc import Sequence

from engine.serving.metrics.specs import Distribution, Family, Spec

# Seconds. vLLM's, which TensorRT-LLM shares, and more of them below: 10 ms are long for a small model.
TTFT_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
ITL_BUCKETS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3),
    *(0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
LATENCY_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30),
    *(40, 50, 60, 120, 240, 480, 960, 1920, 7680),
)
PHASE_BUCKETS = (  # of a step: much shorter
    *(1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 7.5e-3),
    *(0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
# Counts.
NUM_OUTPUTS_BUCKETS = (1, 2, 5, 10, 20)
NUM_PREEMPTIONS_BUCKETS = (0, 1, 2, 5, 10, 20, 50)
STEP_TOKENS_BUCKETS = (1, *(2**power for power in range(3, 15)))


def token_buckets(most: int) -> tuple[int, ...]:
    """1, 2, 5, 10, … up to `most`."""
    digits = (digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5))
    return tuple(number for number in digits if number <= most)


class Histogram:
    """One thread writes, any may read."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = (*bounds, math.inf)
        self._counts = [0] * len(self._bounds)
        self._total = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += count
        self._total += value * count

    def snapshot(self) -> Distribution:
        return Distribution(self._bounds, tuple(self._counts), self._total)


class Histograms:
    """One for each value of a metric's label. All of them are there from the start."""

    def __init__(self, spec: Spec, bounds: Sequence[float]) -> None:
        (label,) = spec.labels
        self._spec = spec
        self._of = {value: Histogram(bounds) for value in label.values}

    def __getitem__(self, value: str) -> Histogram:
        return self._of[value]

    def family(self) -> Family:
        samples = (((value,), histogram.snapshot()) for value, histogram in self._of.items())
        return Family(self._spec, tuple(samples))
