"""Rates from one at a time to all at once, and what comes between."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.loadtest.arrivals import Arrivals
from benchmarks.loadtest.errors import OptionError, TargetError
from benchmarks.loadtest.run import Run, RunSettings, Server, run_load


@dataclasses.dataclass(frozen=True)
class SweepSettings:
    """rates: requests/s; none: num_points of them, evenly from the rate that one at a time achieved to the
    one that all at once did, each end left out and included. num_serial: requests one at a time."""

    rates: tuple[float, ...] = ()
    num_points: int = 8
    num_serial: int = 20

    def __post_init__(self) -> None:
        if any(rate <= 0 for rate in self.rates):
            raise OptionError("--rates", self.rates, "above 0")
        if self.num_points < 1:
            raise OptionError("--points", self.num_points, "at least 1")
        if self.num_serial < 1:
            raise OptionError("--serial-requests", self.num_serial, "at least 1")


def sweep(server: Server, settings: RunSettings, sweep: SweepSettings, folder: Path) -> Iterator[Run]:
    """Each run as it is done, in a folder of its own below. Raises LoadError. Ends early with a run that was
    stopped.

    All runs have the same seed, thus lengths, behaviours and pattern of arrivals, but each has other ids, so
    that nothing is found in a prefix cache that an earlier run left there. Warm-up comes before the first.
    """
    ends = []
    for number, (name, arrivals, count) in enumerate(_ends(settings, sweep)):
        run = _run(server, settings, folder, name, arrivals, count, number)
        yield run
        if run.was_stopped:
            return
        ends.append(achieved_rate(run))
    rates = sweep.rates or between(ends[0], ends[1], sweep.num_points)
    for number, rate in enumerate(rates, 2):
        arrivals = dataclasses.replace(
            settings.arrivals, rate=rate / settings.workload.num_turns, concurrency=1
        )
        run = _run(server, settings, folder, f"rate-{rate:07.3f}", arrivals, settings.num_requests, number)
        yield run
        if run.was_stopped:
            return


def between(low: float, high: float, num_points: int) -> Sequence[float]:
    """Rates above low, up to high, rounded to three places."""
    return [round(low + (high - low) * point / num_points, 3) for point in range(1, num_points + 1)]


def achieved_rate(run: Run) -> float:
    """Requests/s that succeeded, over the whole run. Raises TargetError if none did."""
    done = [record for record in run.records if record.outcome == "success"]
    if not done:
        errors = sorted({record.error or record.outcome for record in run.records})
        raise TargetError(f"{run.info.name}: no request succeeded: {'; '.join(errors[:3])}")
    return len(done) / (max(record.ended for record in done) - min(record.sent for record in done))


def _ends(settings: RunSettings, sweep: SweepSettings) -> Iterator[tuple[str, Arrivals, int]]:
    num_serial = min(settings.num_requests, sweep.num_serial * settings.workload.num_turns)
    yield "one-at-a-time", Arrivals("closed", concurrency=1), num_serial
    yield "all-at-once", Arrivals("at-once"), settings.num_requests


def _run(
    server: Server,
    settings: RunSettings,
    folder: Path,
    name: str,
    arrivals: Arrivals,
    num_requests: int,
    number: int,
) -> Run:
    workload = dataclasses.replace(settings.workload, content=settings.workload.content + number)
    own = dataclasses.replace(
        settings,
        name=name,
        workload=workload,
        arrivals=arrivals,
        num_requests=num_requests,
        num_warm_up=settings.num_warm_up if number == 0 else 0,
    )
    return run_load(server, own, folder / name)
