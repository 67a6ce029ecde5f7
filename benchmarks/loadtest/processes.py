"""Client processes: started together, watched, and their records put together."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from benchmarks.loadtest.errors import LoadError, TargetError
from benchmarks.loadtest.records import RequestRecord, read_records
from benchmarks.loadtest.schedule import Plan
from benchmarks.loadtest.share import Limits, Share
from benchmarks.loadtest.tally import Figures
from benchmarks.loadtest.targets import TargetSpec
from benchmarks.loadtest.worker import Done, Failed, Job, Ready, work

START_DELAY = 0.5  # seconds from the last process's readiness to the start
POLL_INTERVAL = 0.1


@dataclass(frozen=True)
class Sent:
    """records: in order of their index. loop_lags: seconds, of all processes."""

    records: list[RequestRecord]
    loop_lags: list[float]
    was_stopped: bool


def send_all(
    target: TargetSpec,
    plan: Plan,
    folder: Path,
    *,
    num_processes: int,
    concurrency: int = 0,
    limits: Limits | None = None,
    watch: Callable[[int, Figures], None] = lambda process, figures: None,
    started: Callable[[], None] = lambda: None,
) -> Sent:
    """Carries out a plan. Blocks. Ctrl-C ends the run early, and keeps what there is.

    folder: gets a file of records for each process. concurrency: of a closed loop; 0 is an open one.
    watch: gets each process's figures. started: called when all are connected. Raises TargetError.
    """
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    fleet: dict[Connection, SpawnProcess] = {}
    jobs = _jobs(target, plan, folder, num_processes, concurrency, limits or Limits())
    try:
        for job in jobs:
            link, theirs = context.Pipe()
            process = context.Process(target=work, args=(job, theirs, counter), daemon=True)
            process.start()
            theirs.close()
            fleet[link] = process
        _start(fleet)
        started()
        loop_lags, was_stopped = _watch(fleet, watch)
        for process in fleet.values():
            process.join()
    finally:
        for link, process in fleet.items():
            process.kill()  # no effect on those that have ended
            process.join()
            link.close()
    records = [record for job in jobs for record in read_records(job.path)]
    return Sent(sorted(records, key=lambda record: record.index), loop_lags, was_stopped)


def _jobs(
    target: TargetSpec, plan: Plan, folder: Path, num_processes: int, concurrency: int, limits: Limits
) -> Sequence[Job]:
    count = min(num_processes, concurrency or len(plan.conversations), len(plan.conversations))
    return [
        Job(
            target,
            Share(
                plan.conversations,
                process=number,
                num_processes=count,
                num_slots=len(range(number, concurrency, count)),
                limits=limits,
            ),
            folder / f"records-{number}.jsonl",
        )
        for number in range(count)
    ]


def _start(fleet: dict[Connection, SpawnProcess]) -> None:
    for link, process in fleet.items():
        answer = _receive(link, process)
        if not isinstance(answer, Ready):
            raise TargetError(answer.message if isinstance(answer, Failed) else f"unexpected {answer}")
    zero = time.monotonic() + START_DELAY
    for link in fleet:
        link.send(zero)


def _watch(
    fleet: dict[Connection, SpawnProcess], watch: Callable[[int, Figures], None]
) -> tuple[list[float], bool]:
    loop_lags: list[float] = []
    links = list(fleet)
    running = set(links)
    was_stopped = False
    while running:
        try:
            for link in wait(list(running), POLL_INTERVAL):
                assert isinstance(link, Connection)
                message = _receive(link, fleet[link])
                if isinstance(message, Figures):
                    watch(links.index(link), message)
                elif isinstance(message, Done):
                    loop_lags += message.loop_lags
                    running.discard(link)
                else:
                    raise LoadError(
                        message.message if isinstance(message, Failed) else f"unexpected {message}"
                    )
        except KeyboardInterrupt:
            if was_stopped:
                raise
            was_stopped = True
            for link in running:
                link.send("stop")
    return loop_lags, was_stopped


def _receive(link: Connection, process: SpawnProcess) -> object:
    try:
        return link.recv()
    except EOFError:
        process.join()
        raise LoadError(f"a client process ended with exit status {process.exitcode}") from None
