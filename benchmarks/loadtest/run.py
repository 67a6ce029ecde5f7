"""One load: warm-up, scrape, schedule, scrape; and the folder that it leaves."""

import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.loadtest.arrivals import Arrivals
from benchmarks.loadtest.counts import check_counts
from benchmarks.loadtest.environment import describe_environment
from benchmarks.loadtest.errors import TargetError
from benchmarks.loadtest.processes import Sent, send_all
from benchmarks.loadtest.progress import show_progress
from benchmarks.loadtest.records import RequestRecord, RunInfo, Samples, write_records
from benchmarks.loadtest.schedule import make_plan
from benchmarks.loadtest.scrape import scrape_settled
from benchmarks.loadtest.share import Limits
from benchmarks.loadtest.targets import ServedModel, TargetSpec
from benchmarks.loadtest.validity import LAG_LIMIT, why_invalid
from benchmarks.loadtest.workload import Workload

WARM_UP_CONCURRENCY = 16
WARM_UP_CONTENT = -1  # its prompts are nobody else's


@dataclass(frozen=True)
class Server:
    """What is driven, and what it serves. metrics_url: None is no scrape; metrics_needed: it was asked for,
    so that its absence is an error."""

    target: TargetSpec
    model: ServedModel
    metrics_url: str | None = None
    metrics_needed: bool = False


@dataclass(frozen=True)
class RunSettings:
    """arguments: of the command line, for the record. lag_limit: seconds, see validity.py."""

    name: str
    workload: Workload
    arrivals: Arrivals
    num_requests: int = 100
    seed: int = 0
    num_processes: int = 1
    num_warm_up: int = 0
    limits: Limits = field(default_factory=Limits)
    lag_limit: float = LAG_LIMIT
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What came of it. was_stopped: by Ctrl-C."""

    folder: Path
    records: list[RequestRecord]
    info: RunInfo
    was_stopped: bool


def run_load(server: Server, settings: RunSettings, folder: Path) -> Run:
    """Runs, and writes records.jsonl and info.json. Blocks. Raises LoadError.

    A wrong option is told before anything is sent.
    """
    vocab_size, seed = server.model.vocab_size, settings.seed
    plan = make_plan(
        settings.workload, settings.arrivals, settings.num_requests, vocab_size=vocab_size, seed=seed
    )
    plan.check_fits(server.model.max_model_len)
    folder.mkdir(parents=True, exist_ok=True)
    if settings.num_warm_up:
        warm_up(server, settings)
    before = _scrape(server)
    started_at = _Moment()
    is_closed = settings.arrivals.kind == "closed"
    with show_progress(settings.name, plan.num_requests) as live:
        sent = send_all(
            server.target,
            plan,
            folder,
            num_processes=settings.num_processes,
            concurrency=settings.arrivals.concurrency if is_closed else 0,
            limits=settings.limits,
            watch=live.take,
            started=started_at.set,
        )
    after = _scrape(server) if before else {}
    info = _info(server, settings, sent, before, after, started_at.text)
    write_records(folder / "records.jsonl", sent.records)
    (folder / "info.json").write_text(info.to_json() + "\n")
    for path in folder.glob("records-*.jsonl"):
        path.unlink()
    return Run(folder, sent.records, info, sent.was_stopped)


def warm_up(server: Server, settings: RunSettings) -> None:
    """Requests of the same kind with other prompts, some at a time. Raises LoadError."""
    workload = dataclasses.replace(settings.workload, behaviours=(), num_turns=1, content=WARM_UP_CONTENT)
    concurrency = min(WARM_UP_CONCURRENCY, settings.num_warm_up)
    plan = make_plan(
        workload,
        Arrivals("closed", concurrency=concurrency),
        settings.num_warm_up,
        vocab_size=server.model.vocab_size,
        seed=settings.seed,
    )
    with TemporaryDirectory() as folder, show_progress("warm-up", plan.num_requests) as live:
        sent = send_all(
            server.target, plan, Path(folder), num_processes=1, concurrency=concurrency, watch=live.take
        )
    if not any(record.outcome == "success" for record in sent.records):
        errors = sorted({record.error or record.outcome for record in sent.records})
        raise TargetError(f"no request of the warm-up succeeded: {'; '.join(errors[:3])}")


class _Moment:
    """When the clients were ready."""

    text = ""

    def set(self) -> None:
        self.text = datetime.now(UTC).isoformat(timespec="milliseconds")


def _scrape(server: Server) -> Samples:
    if server.metrics_url is None:
        return {}
    try:
        return scrape_settled(server.metrics_url)
    except TargetError:
        if server.metrics_needed:
            raise
        return {}


def _info(
    server: Server, settings: RunSettings, sent: Sent, before: Samples, after: Samples, started_at: str
) -> RunInfo:
    arrivals, records = settings.arrivals, sent.records
    num_turns = min(settings.workload.num_turns, settings.num_requests)
    model = {
        "model": server.model.name,
        "server_version": server.model.server_version,
    }
    return RunInfo(
        name=settings.name,
        target=server.target.url,
        arrival=arrivals.describe(),
        workload=settings.workload.describe(),
        seed=settings.seed,
        started_at=started_at,
        rate=arrivals.offered_rate and arrivals.offered_rate * num_turns,
        concurrency=arrivals.concurrency if arrivals.kind == "closed" else None,
        duration=max((record.ended for record in records), default=0.0),
        num_planned=settings.num_requests,
        num_processes=settings.num_processes,
        arguments=settings.arguments,
        environment={**describe_environment(), **{name: text for name, text in model.items() if text}},
        metrics_before=before,
        metrics_after=after,
        loop_lag=tuple(sent.loop_lags),
        invalid=why_invalid(records, sent.loop_lags, settings.lag_limit),
        count_differences=tuple(check_counts(records, before, after)) if before and after else (),
    )
