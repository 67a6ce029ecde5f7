"""Grammars of guided requests. Observed on the event loop."""

from collections.abc import Iterator
from enum import Enum

from engine.serving.metrics.histogram import LATENCY_BUCKETS, Histograms
from engine.serving.metrics.specs import Family, Label, Spec, histogram


class Compilation(Enum):
    """How it went."""

    COMPILED = "compiled"  # or found in the cache
    REFUSED = "refused"  # wrong, or too large
    UNAVAILABLE = "unavailable"  # no worker could be had, or it failed
    ABANDONED = "abandoned"  # the request ended meanwhile


GRAMMARS = histogram(
    "grammar_compilation_time_seconds",
    "seconds",
    "Time that guided requests waited for their grammar, by how that went; cached ones take next to none",
    "High: new, large grammars; send the same text for the same grammar. `refused`: the log says why. "
    "`unavailable`: the workers die; see the log and the machine's memory.",
    (Label("result", tuple(each.value for each in Compilation)),),
)
SPECS: tuple[Spec, ...] = (GRAMMARS,)


class GuidedMetrics:
    def __init__(self) -> None:
        self._times = Histograms(GRAMMARS, LATENCY_BUCKETS)

    def observe(self, how: Compilation, seconds: float) -> None:
        self._times[how.value].observe(seconds)

    def families(self) -> Iterator[Family]:
        yield self._times.family()
