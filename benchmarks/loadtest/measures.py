"""What was measured in a window of a run; records.py defines what a request measures."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.loadtest.concurrency import in_flight
from benchmarks.loadtest.distribution import Distribution, Floats, describe
from benchmarks.loadtest.goodput import Goodput, goodput
from benchmarks.loadtest.limits import LATENCIES, Condition
from benchmarks.loadtest.records import OUTCOMES, RequestRecord
from benchmarks.loadtest.window import Window


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Latencies in s, rates in requests/s, throughputs in tokens/s; None where nothing can be said.

    ttft, tpot, e2e: of requests sent in the window (tpot, e2e: answered ones), against `sent`;
    ttft_scheduled: against `scheduled`, what a client waiting behind a tool that lags would see. itl: of
    chunks that arrived in the window, a chunk of n tokens as n values of a nth of its gap. Slow readers are
    left out of all of these. offered: requests that fell due; achieved: requests answered. output_throughput:
    tokens that arrived; total_throughput: and the prompts whose first token arrived. user_throughput: what
    one reader sees, 1 / mean itl. concurrency: mean number in flight. counts: outcomes of requests sent.
    """

    window: Window
    ttft: Distribution | None
    ttft_scheduled: Distribution | None
    itl: Distribution | None
    tpot: Distribution | None
    e2e: Distribution | None
    offered: float | None
    achieved: float | None
    output_throughput: float | None
    total_throughput: float | None
    user_throughput: float | None
    concurrency: float | None
    goodput: Goodput
    counts: dict[str, int]

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "Measures":
        """What dataclasses.asdict made of one."""
        read = dict(values)
        read["window"] = Window(**values["window"])
        read["goodput"] = Goodput(**values["goodput"])
        for name in LATENCIES:
            read[name] = Distribution(**values[name]) if values[name] else None
        return cls(**read)


def measure(records: Sequence[RequestRecord], window: Window, limits: Sequence[Condition]) -> Measures:
    """What the window holds of the records."""
    sent = [record for record in records if window.holds(record.sent)]
    timed = [record for record in sent if record.behaviour != "slow"]
    first_tokens = [(record.ttft, record.lag) for record in timed if record.ttft is not None]
    answered = [record for record in timed if record.outcome == "success"]
    itl = describe(_itls(records, window))
    num_output, num_prompt = _num_tokens(records, window)
    return Measures(
        window=window,
        ttft=describe([ttft for ttft, _ in first_tokens]),
        ttft_scheduled=describe([ttft + lag for ttft, lag in first_tokens]),
        itl=itl,
        tpot=describe([record.tpot for record in answered if record.tpot is not None]),
        e2e=describe([record.e2e for record in answered]),
        offered=_rate(sum(window.holds(record.scheduled) for record in records), window),
        achieved=_rate(
            sum(record.outcome == "success" and window.holds(record.ended) for record in records), window
        ),
        output_throughput=_rate(num_output, window),
        total_throughput=_rate(num_output + num_prompt, window),
        user_throughput=1 / itl.mean if itl and itl.mean > 0 else None,
        concurrency=_concurrency(records, window),
        goodput=goodput(records, window, limits),
        counts={outcome: sum(record.outcome == outcome for record in sent) for outcome in OUTCOMES},
    )


def _rate(number: int, window: Window) -> float | None:
    return number / window.seconds if window.seconds > 0 else None


def _concurrency(records: Sequence[RequestRecord], window: Window) -> float | None:
    if window.seconds <= 0:
        return None
    return float(in_flight(records).means(np.array([window.start, window.end]))[0])


def _itls(records: Sequence[RequestRecord], window: Window) -> Floats:
    """[tokens] seconds before each token that arrived in the window, first chunks apart."""
    parts = [np.zeros(0)]
    for times, sizes in _chunks(record for record in records if record.behaviour != "slow"):
        gaps, inside = np.diff(times) / sizes[1:], _inside(times[1:], window)
        parts.append(np.repeat(gaps[inside], sizes[1:][inside].astype(np.int64)))
    return np.concatenate(parts)


def _num_tokens(records: Sequence[RequestRecord], window: Window) -> tuple[int, int]:
    """(output tokens that arrived in the window, prompt tokens of requests whose first token did)."""
    num_output = sum(int(sizes[_inside(times, window)].sum()) for times, sizes in _chunks(records))
    began = (record for record in records if record.chunks and window.holds(record.chunks[0][0]))
    return num_output, sum(record.num_prompt_tokens for record in began)


def _chunks(records: Iterable[RequestRecord]) -> Iterator[tuple[Floats, Floats]]:
    """[chunks] when they arrived (s), and their tokens, of each record that has any."""
    for record in records:
        if record.chunks:
            times, sizes = np.array(record.chunks, np.float64).T
            yield times, sizes


def _inside(times: Floats, window: Window) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return (times >= window.start) & (times < window.end)
