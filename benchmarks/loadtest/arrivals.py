"""When requests are due: computed up front, from a seed.

Random arrivals are scaled so that the last of n requests is due at n / rate: a run offers exactly its rate.
(A Poisson process whose count is known has uniform order statistics; that is what remains.) The same seed
gives the same pattern at every rate, stretched.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

from benchmarks.loadtest.errors import OptionError

ArrivalKind = Literal["poisson", "gamma", "constant", "ramp", "trace", "closed", "at-once"]
ARRIVAL_KINDS: tuple[ArrivalKind, ...] = get_args(ArrivalKind)
_WITH_RATE = ("poisson", "gamma", "constant", "ramp")


@dataclass(frozen=True)
class Arrivals:
    """How requests arrive. In multi-turn workloads these are the conversations; later turns follow.

    rate: requests a second (ramp: at the start). rate_end: at a ramp's end. burstiness: shape of the gamma
    distribution of the gaps; 1 is Poisson, less comes in bursts, more is even. concurrency: of a closed loop.
    timestamps: of a trace, in seconds, ascending.
    """

    kind: ArrivalKind = "poisson"
    rate: float = 1.0
    rate_end: float = 1.0
    burstiness: float = 1.0
    concurrency: int = 1
    timestamps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind in _WITH_RATE and not 0 < self.rate < math.inf:
            raise OptionError("--rate", self.rate, "above 0, and finite")
        if self.kind == "ramp" and not 0 < self.rate_end < math.inf:
            raise OptionError("--rate-end", self.rate_end, "above 0, and finite")
        if self.kind == "gamma" and not 0 < self.burstiness < math.inf:
            raise OptionError("--burstiness", self.burstiness, "above 0, and finite")
        if self.kind == "closed" and self.concurrency < 1:
            raise OptionError("--concurrency", self.concurrency, "at least 1")
        if self.kind == "trace" and not self.timestamps:
            raise OptionError("--arrival", "trace", "needs --dataset with a timestamp in every line")

    def describe(self) -> str:
        """In words."""
        return {
            "poisson": f"Poisson, {self.rate:g} requests/s",
            "gamma": f"gamma, {self.rate:g} requests/s, burstiness {self.burstiness:g}",
            "constant": f"constant, {self.rate:g} requests/s",
            "ramp": f"ramp, {self.rate:g} to {self.rate_end:g} requests/s",
            "trace": f"trace of {len(self.timestamps)} requests",
            "closed": f"closed loop, {self.concurrency} at a time",
            "at-once": "all at once",
        }[self.kind]

    @property
    def offered_rate(self) -> float | None:
        """Requests a second; None where there is no rate."""
        if self.kind == "ramp":
            return (self.rate + self.rate_end) / 2
        return self.rate if self.kind in _WITH_RATE else None


def due_times(arrivals: Arrivals, num_requests: int, seed: int) -> Sequence[float | None]:
    """Seconds from the start, ascending; None in a closed loop: whenever a place is free.

    Raises OptionError if a trace has fewer timestamps than there are requests.
    """
    if arrivals.kind == "closed":
        return [None] * num_requests
    if arrivals.kind == "at-once":
        return [0.0] * num_requests
    if arrivals.kind == "trace":
        if len(arrivals.timestamps) < num_requests:
            raise OptionError(
                "--requests", num_requests, f"the trace has {len(arrivals.timestamps)} timestamps"
            )
        first = arrivals.timestamps[0]
        return [time - first for time in arrivals.timestamps[:num_requests]]
    counts = _counts(arrivals, num_requests, random.Random(f"arrivals {seed}"))
    if arrivals.kind != "ramp":
        return [count / arrivals.rate for count in counts]
    return [_ramp_time(count, arrivals.rate, arrivals.rate_end, num_requests) for count in counts]


def _counts(arrivals: Arrivals, num_requests: int, rng: random.Random) -> list[float]:
    """The times of a process of rate 1, the last one at num_requests."""
    if arrivals.kind == "constant":
        return [float(index) for index in range(num_requests)]
    shape = arrivals.burstiness if arrivals.kind == "gamma" else 1.0
    times = list(accumulate(rng.gammavariate(shape, 1 / shape) for _ in range(num_requests)))
    return [time * num_requests / times[-1] for time in times]


def _ramp_time(count: float, start: float, end: float, total: float) -> float:
    """When `count` requests have come, if the rate goes linearly from start to end while `total` come.

    Solves start * t + (end - start) * t^2 / (2 * duration) = count, in the form that also holds for start =
    end.
    """
    growth = (end - start) * (start + end) / (2 * total)
    return 2 * count / (start + math.sqrt(max(0.0, start * start + 2 * growth * count)))
