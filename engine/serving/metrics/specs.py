"""What a metric is, in words and as a value. Free of any library: `exposition` speaks Prometheus."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Label:
    """values: all that there can be; none if they are not known beforehand."""

    name: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric. name: as scraped; of a histogram without _bucket, _sum and _count.

    unit: of its values. meaning: in one sentence, also its HELP line. when_bad: what to look at, or to do.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    when_bad: str
    labels: tuple[Label, ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)


class Distribution(NamedTuple):
    """bounds: upper ones, rising, the last is infinite. counts: of each bucket alone. total: the sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True, slots=True)
class Family:
    """A metric as it stands. samples: values of its labels, and what it is for these."""

    spec: Spec
    samples: tuple[tuple[tuple[str, ...], float | Distribution], ...] = field(default=())


Source = Callable[[], Iterable[Family]]
"""Called by the thread that scrapes, at any time."""


def counter(name: str, unit: str, meaning: str, when_bad: str, labels: tuple[Label, ...] = ()) -> Spec:
    return Spec(f"inflight_{name}_total", Kind.COUNTER, unit, meaning, when_bad, labels)


def gauge(name: str, unit: str, meaning: str, when_bad: str, labels: tuple[Label, ...] = ()) -> Spec:
    return Spec(f"inflight_{name}", Kind.GAUGE, unit, meaning, when_bad, labels)


def histogram(name: str, unit: str, meaning: str, when_bad: str, labels: tuple[Label, ...] = ()) -> Spec:
    return Spec(f"inflight_{name}", Kind.HISTOGRAM, unit, meaning, when_bad, labels)


def single(spec: Spec, value: float | Distribution) -> Family:
    """A metric without labels."""
    return Family(spec, (((), value),))
