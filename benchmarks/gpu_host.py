"""What a decode step costs the host, and how long the GPU idles between steps, under the real scheduler."""

from functools import partial
from statistics import fmean, median

from benchmarks import gpu_peer as peer
from benchmarks.gpu_engine import Engine
from benchmarks.gpu_options import TOKEN_BUDGET
from benchmarks.gpu_report import Aim, Report
from benchmarks.gpu_requests import make_requests
from benchmarks.gpu_rows import block_tables, decode_steps, new_rows, run_steps
from benchmarks.gpu_serve import Served, Server
from scheduler.stats import StepStats

BATCHES = (1, 64, 256)
_NUM_WARMUPS = 2
_NUM_TOKENS = 128  # of each prompt, and of each output
_HEADER = (
    *("batch", "schedule", "launch", "update", "sum", "wait", "step ms", "graph ms", "idle"),
    *("gap us", "gap"),
)


def measure_host(engine: Engine, report: Report) -> None:
    report.line(
        "host: microseconds, medians. step: mean time from one step's end to the next one's, by events."
    )
    report.line(
        "graph: the same steps as graphs replayed without pause; idle: what of a step is beyond that."
    )
    report.line("gap: from the end of a step on the stream to the first thing that the next one enqueues.")
    rows = [report.attempt(f"batch {batch}", partial(_case, engine, batch, report)) for batch in BATCHES]
    report.table(_HEADER, [row for row in rows if row is not None])


def _case(engine: Engine, batch: int, report: Report) -> list[str]:
    served = _serve(engine, batch)
    full = [i for i, step in enumerate(served.steps) if step.num_decode_rows == batch][_NUM_WARMUPS:]
    step, gap = _times(served, full)
    graph = _graph(engine, batch, len(full))
    idle = 1 - graph / step
    if batch == 64:
        report.aims.append(Aim("GPU idle, batch 64", 100 * idle, 100 * peer.AIM_IDLE, "% of the step"))
    return [
        *(f"{batch}", *_host([served.steps[i] for i in full]), f"{step:.3f}", f"{graph:.3f}"),
        *(f"{idle:.1%}", f"{gap * 1000:.0f}", f"{gap / step:.1%}"),
    ]


def _serve(engine: Engine, batch: int) -> Served:
    requests = make_requests(engine, batch, _NUM_TOKENS, _NUM_TOKENS)
    return Server(engine, batch, max(batch, TOKEN_BUDGET)).serve(requests, with_events=True)


def _times(served: Served, steps: list[int]) -> tuple[float, float]:
    """Milliseconds: means of a step, and of the gap before it. steps: consecutive."""
    events = served.events
    first, last = steps[0], steps[-1]
    whole = float(events[first - 1][1].elapsed_time(events[last][1])) / len(steps)
    gaps = [float(events[i - 1][1].elapsed_time(events[i][0])) for i in steps]
    return whole, fmean(gaps)


def _graph(engine: Engine, batch: int, num_steps: int) -> float:
    """Milliseconds a step, at the same lengths."""
    tables = block_tables(engine, batch, 2 * _NUM_TOKENS + 8)
    assert tables is not None, "the pool holds the rows"
    run_steps(engine, decode_steps(new_rows(tables, _NUM_TOKENS, _NUM_TOKENS), 1))
    return engine.replay_decode(batch, num_steps)


def _host(steps: list[StepStats]) -> list[str]:
    parts = [
        [step.schedule_seconds for step in steps],
        [step.launch_seconds for step in steps],
        [step.update_seconds for step in steps],
    ]
    total = median(sum(values) for values in zip(*parts, strict=True))
    wait = median(step.wait_seconds for step in steps)
    return [f"{seconds * 1e6:.0f}" for seconds in (*map(median, parts), total, wait)]
