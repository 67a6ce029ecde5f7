"""What a run leaves behind: a record of each request, and what the run was.

Times are in seconds on one monotonic clock that all client processes share; 0 is the start of the run.
"""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

Outcome = Literal["success", "rejected", "deadline", "cancelled", "failed", "incomplete"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True, kw_only=True)
class RequestRecord:
    """One request that was sent.

    index: its place in the schedule. scheduled: when it was due (a later turn: its predecessor's end and
    the time to think; closed loop: when its slot fell free). sent: when the client handed it to the
    transport. ended: when the stream ended, the client cancelled it, or the run did.
    chunks: (when it arrived, tokens in it), without messages that bring no token.
    outcome: success; rejected (RESOURCE_EXHAUSTED, UNAVAILABLE, HTTP 429 or 503, before the first token);
    deadline (passed, as the client asked for); cancelled (by the client, as it meant to); failed (anything
    else); incomplete (still running when the run was ended). error: status and message, if there is one.
    num_output_tokens: as the server tells at the end, else what the chunks hold. num_wanted_tokens: the
    limit that was sent. family: which shared prefix, or "". turn: of a conversation, from 0.
    behaviour: "" reads to the end; "cancel", "deadline", "slow" (its times are the reader's, not the
    server's). process: which client process sent it.
    """

    index: int
    scheduled: float
    sent: float
    ended: float
    chunks: tuple[tuple[float, int], ...] = ()
    outcome: Outcome = "success"
    error: str | None = None
    finish_reason: str | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    num_wanted_tokens: int = 0
    family: str = ""
    turn: int = 0
    behaviour: str = ""
    process: int = 0

    @property
    def ttft(self) -> float | None:
        """Seconds from sending to the first token; None if there was none."""
        return self.chunks[0][0] - self.sent if self.chunks else None

    @property
    def e2e(self) -> float:
        """Seconds from sending to the end."""
        return self.ended - self.sent

    @property
    def tpot(self) -> float | None:
        """(e2e - ttft) / (output tokens - 1); 0 of a single token, None of none."""
        if not self.chunks:
            return None
        return (
            (self.ended - self.chunks[0][0])
            / max(1, self.num_output_tokens - 1)
            * (self.num_output_tokens > 1)
        )

    @property
    def itls(self) -> list[float]:
        """Seconds before each token: a chunk of n tokens has n times its gap / n. The first has none."""
        gaps: list[float] = []
        for (before, _), (now, num_tokens) in zip(self.chunks, self.chunks[1:], strict=False):
            gaps += [(now - before) / num_tokens] * num_tokens
        return gaps

    @property
    def lag(self) -> float:
        """Seconds that the tool itself was late."""
        return self.sent - self.scheduled

    def to_json(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> "RequestRecord":
        values = json.loads(line)
        values["chunks"] = tuple((time, num_tokens) for time, num_tokens in values["chunks"])
        return cls(**values)


# A scrape of /metrics: `name{label="value"}` as exposed, labels sorted -> value.
Samples = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What was run.

    arrival: its kind and parameters, in words. rate: offered requests a second; None where there is none
    (closed loop, trace, all at once). concurrency: of a closed loop. started_at: UTC, ISO 8601. duration:
    seconds from the start to the end of the last request. num_planned: requests of the schedule; those never
    sent (a turn after one that failed, the run's end) have no record. environment: versions, CPU, GPU,
    commit. loop_lag: seconds that the clients' event loops were late, a value a measurement; with the
    records' own lags it decides `invalid`: why the result should not be trusted, or None.
    count_differences: where server and client counted differently.
    """

    name: str
    target: str
    arrival: str
    workload: str
    seed: int
    started_at: str
    rate: float | None = None
    concurrency: int | None = None
    duration: float = 0.0
    num_planned: int = 0
    num_processes: int = 1
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    metrics_before: Samples = field(default_factory=dict)
    metrics_after: Samples = field(default_factory=dict)
    loop_lag: tuple[float, ...] = ()
    invalid: str | None = None
    count_differences: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "RunInfo":
        values = json.loads(text)
        values["loop_lag"] = tuple(values["loop_lag"])
        values["count_differences"] = tuple(values["count_differences"])
        return cls(**values)


def write_records(path: Path, records: Iterable[RequestRecord]) -> None:
    """A record a line."""
    with path.open("w") as file:
        file.writelines(record.to_json() + "\n" for record in records)


def read_records(path: Path) -> list[RequestRecord]:
    """Raises OSError, and ValueError for what is not a file of records."""
    return [RequestRecord.from_json(line) for line in path.read_text().splitlines() if line]


def read_run(folder: Path) -> tuple[list[RequestRecord], RunInfo]:
    """records.jsonl and info.json of a run's folder."""
    return read_records(folder / "records.jsonl"), RunInfo.from_json((folder / "info.json").read_text())
