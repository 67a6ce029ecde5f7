"""Records made by hand, and by queues whose behaviour is known."""

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.loadtest.limits import Condition, parse_limit
from benchmarks.loadtest.records import RequestRecord, RunInfo

LIMIT = parse_limit("ttft_p99<=500ms")


def request(index: int, sent: float, first: float, gaps: Sequence[float] = (), **more: Any) -> RequestRecord:
    """first: s from sending to the first token; gaps: s before each of the others; a token a chunk."""
    times = np.cumsum([sent + first, *gaps])
    values: dict[str, Any] = {
        "scheduled": sent,
        "ended": float(times[-1]),
        "chunks": tuple((float(time), 1) for time in times),
        "num_output_tokens": len(times),
        "num_prompt_tokens": 10,
    }
    return RequestRecord(index=index, sent=sent, **(values | more))


def refused(index: int, sent: float, outcome: str = "rejected", after: float = 0.0) -> RequestRecord:
    more: dict[str, Any] = {"outcome": outcome}
    error = "RESOURCE_EXHAUSTED: full"
    return RequestRecord(index=index, scheduled=sent, sent=sent, ended=sent + after, error=error, **more)


def lasting(intervals: Sequence[tuple[float, float]]) -> list[RequestRecord]:
    """Requests from and until, with their first token after a tenth of their life."""
    return [
        request(index, start, (end - start) / 10, [(end - start) * 0.9])
        for index, (start, end) in enumerate(intervals)
    ]


def run_info(rate: float | None = None, **more: Any) -> RunInfo:
    values: dict[str, Any] = {
        "name": f"{rate} req/s",
        "target": "grpc://localhost:50051",
        "arrival": "Poisson",
        "workload": "512 + 64 tokens",
        "seed": 1,
        "started_at": "2026-01-01T00:00:00Z",
        "environment": {"python": "3.11"},
        "arguments": {"num_requests": 400},
    }
    return RunInfo(rate=rate, **(values | more))


def queue(
    arrivals: Sequence[float], services: Sequence[float], num_servers: int, first: float = 0.05
) -> list[RequestRecord]:
    """A first-come-first-served queue; the first token comes `first` s after a server turns to a request."""
    free = [0.0] * num_servers
    records = []
    for index, (arrival, service) in enumerate(zip(arrivals, services, strict=True)):
        begin = max(arrival, heapq.heappop(free))
        heapq.heappush(free, begin + service)
        records.append(request(index, arrival, begin + first - arrival, [service - first]))
    return records


def random_queue(load: float, num_servers: int, seed: int, num_requests: int = 400) -> list[RequestRecord]:
    """Poisson arrivals at `load` times what exponential servers of 1 s take."""
    random = np.random.default_rng(seed)
    arrivals = np.cumsum(random.exponential(1 / (load * num_servers), num_requests))
    return queue(arrivals.tolist(), (0.05 + random.exponential(0.95, num_requests)).tolist(), num_servers)


def even_queue(rate: float, num_requests: int = 400) -> list[RequestRecord]:
    """Even arrivals at 10 servers of 1 s each: takes 10 requests/s, TTFT 50 ms, and falls behind above."""
    arrivals = [index / rate for index in range(num_requests)]
    return queue(arrivals, [1.0] * num_requests, 10)


def limits(*texts: str) -> list[Condition]:
    return [parse_limit(text) for text in texts]
