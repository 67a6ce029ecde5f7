"""Whether server and client counted the same. A difference is a bug of one of the two.

Where every request ran to its end, the counts agree to the digit. A request that the client ended, or its
deadline, may have got further on the server than the client saw: those widen the range, by what they can.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.loadtest.records import RequestRecord, Samples

_PREFIXES = ("inflight_", "vllm:")
_ENDED = "request_success_total"


@dataclass(frozen=True)
class _Range:
    """What a counter may have grown by."""

    what: str
    actual: float | None
    low: int
    high: int

    def difference(self) -> str | None:
        if self.actual is None or self.low <= self.actual <= self.high:
            return None
        expected = str(self.low) if self.low == self.high else f"{self.low} to {self.high}"
        return f"{self.what}: the server counted {self.actual:g}, the client {expected}"


def check_counts(records: Sequence[RequestRecord], before: Samples, after: Samples) -> list[str]:
    """What differs, in words. records: all that were sent between the two scrapes, by anyone.

    Counters that the server does not have are not checked.
    """
    growth = _Growth(before, after)
    ranges = [*_requests(records, growth), *_tokens(records, growth), *_latencies(records, growth)]
    return [text for each in ranges if (text := each.difference()) is not None]


class _Growth:
    """Of counters, between two scrapes."""

    def __init__(self, before: Samples, after: Samples) -> None:
        self._before, self._after = before, after
        names = {key.partition("{")[0] for key in after}
        self._prefix = next((p for p in _PREFIXES if f"{p}generation_tokens_total" in names), _PREFIXES[0])
        self._has = names

    def of(self, name: str, **labels: str) -> float | None:
        """Summed over all labels but those given; None if there is no such counter."""
        name = self._prefix + name
        if name not in self._has:
            return None
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        keys = [
            key
            for key in self._after
            if key.partition("{")[0] == name and wanted <= set(re.findall(r'\w+="[^"]*"', key))
        ]
        return sum(self._after[key] - self._before.get(key, 0.0) for key in keys)


def _is_open(record: RequestRecord) -> bool:
    """Nobody knows how far it got on the server."""
    return record.outcome in ("cancelled", "deadline", "incomplete", "failed")


def _requests(records: Sequence[RequestRecord], growth: _Growth) -> Iterator[_Range]:
    done = [record for record in records if record.outcome == "success"]
    opened = [record for record in records if _is_open(record)]
    for reason in ("stop", "length", "time"):
        count = sum(record.finish_reason == reason for record in done)
        actual = growth.of(_ENDED, finished_reason=reason)
        yield _Range(f"requests that ended with {reason}", actual, count, count + len(opened))
    num_late = sum(record.outcome in ("deadline", "failed") for record in opened)
    yield _Range("deadlines passed", growth.of(_ENDED, finished_reason="deadline"), 0, num_late)
    aborted = growth.of(_ENDED, finished_reason="abort")
    num_aborted = sum(record.finish_reason == "abort" for record in done)
    yield _Range("requests aborted", aborted, num_aborted, num_aborted + len(opened))
    low = len(done) + sum(bool(record.chunks) for record in opened)
    yield _Range("requests that ended", growth.of(_ENDED), low, len(done) + len(opened))
    rejected = [record for record in records if record.outcome == "rejected"]
    said_busy = sum((record.error or "").startswith("RESOURCE_EXHAUSTED") for record in rejected)
    num_failed = sum(record.outcome == "failed" and not record.chunks for record in records)
    actual = growth.of("admission_rejections_total")
    yield _Range("requests rejected", actual, said_busy, len(rejected) + num_failed)


def _tokens(records: Sequence[RequestRecord], growth: _Growth) -> Iterator[_Range]:
    done = [record for record in records if record.outcome == "success"]
    opened = [record for record in records if _is_open(record)]
    ended = sum(record.num_prompt_tokens for record in done)
    begun = ended + sum(record.num_prompt_tokens for record in opened if record.chunks)
    high = ended + sum(record.num_prompt_tokens for record in opened)
    yield _Range("prompt tokens", growth.of("prompt_tokens_total"), begun, high)
    yield _Range("prompt tokens by request", growth.of("request_prompt_tokens_sum"), ended, high)
    ended = sum(record.num_output_tokens for record in done)
    begun = ended + sum(record.num_output_tokens for record in opened)
    high = ended + sum(record.num_wanted_tokens for record in opened)
    yield _Range("generated tokens", growth.of("generation_tokens_total"), begun, high)
    yield _Range("generated tokens by request", growth.of("request_generation_tokens_sum"), ended, high)


def _latencies(records: Sequence[RequestRecord], growth: _Growth) -> Iterator[_Range]:
    done = [record for record in records if record.outcome == "success"]
    opened = [record for record in records if _is_open(record)]
    begun = sum(record.num_output_tokens > 0 for record in done) + sum(bool(each.chunks) for each in opened)
    high = begun + sum(not record.chunks for record in opened)
    yield _Range("first tokens timed", growth.of("time_to_first_token_seconds_count"), begun, high)
    low = len(done) + sum(bool(record.chunks) for record in opened)
    actual = growth.of("e2e_request_latency_seconds_count")
    yield _Range("requests timed", actual, low, len(done) + len(opened))
    gaps = sum(max(0, record.num_output_tokens - 1) for record in (*done, *opened))
    high = gaps + sum(record.num_wanted_tokens - record.num_output_tokens for record in opened)
    yield _Range("gaps timed", growth.of("inter_token_latency_seconds_count"), gaps, high)
