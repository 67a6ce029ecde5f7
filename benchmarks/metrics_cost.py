"""What measuring costs: the time that metrics take from a step, beside that step.

A step of 256 running sequences gives each a token, and ends one request (their outputs are 256 tokens long).
What is timed is all that metrics do for it, in whichever thread, since all share the interpreter: the
StepStats of the scheduler's loop and their observation, the times of tokens, the times of the output thread,
the end of a request. Apart from that, what a scrape takes, which also holds the interpreter.

Beside it: a step of 5 ms, as of a small model on a GPU, and one of the demo model on this machine's CPU.

    python -m benchmarks.metrics_cost --running 16 64 256 1024
"""

import argparse
import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from engine.config import EngineOptions
from engine.demo import MODEL_DIR
from engine.sampling.params import SamplingParams
from engine.serving.build import build_engine
from engine.serving.metrics import Metrics
from engine.serving.metrics.specs import Distribution
from engine.serving.metrics.steps import STEP_TIME
from engine.serving.request_outputs import OutputEnd, RequestEnd
from engine.serving.types import Timings, Usage
from kvcache.config import KVCacheConfig
from kvcache.manager import KVCacheManager
from scheduler.config import SchedulerConfig
from scheduler.request import FinishReason, SequenceOutput
from scheduler.scheduler import Scheduler
from scheduler.stats import StepStats

_AIM = 0.01  # of a step
_GPU_STEP_SECONDS = 5e-3
_SECONDS_BETWEEN_SCRAPES = 15.0  # Prometheus asks every 15 s, or less often
_NUM_ROUNDS = 2000
_PARAMS = SamplingParams(max_new_tokens=256)
_END = RequestEnd(
    FinishReason.LENGTH,
    Usage(512, 0, 256),
    Timings(0.01, 0.05, 2.0),
    outputs=(OutputEnd(FinishReason.LENGTH, 256, 1.95),),
)


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds, of the fastest of many rounds."""

    step: float
    tokens: float
    outputs: float
    end: float
    scrape: float

    @property
    def of_a_step(self) -> float:
        return self.step + self.tokens + self.outputs + self.end


class Running:
    """A request of which only its times matter."""

    def __init__(self) -> None:
        self.arrival_time = 0.0
        self.last_times: list[float | None] = [None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--running", type=int, nargs="+", default=[1, 16, 64, 256, 1024], help="sequences")
    arguments = parser.parse_args()
    table = Table("sequences", "step", "tokens", "output thread", "a request's end", "in all")
    for heading in ("of a 5 ms step", "a demo step", "of it"):
        table.add_column(heading)
    for num_running in arguments.running:
        table.add_row(*_row(num_running, measure(num_running), demo_step_seconds(num_running)))
    console = Console()
    console.print(table)
    scrape = measure(1).scrape
    share = scrape / _SECONDS_BETWEEN_SCRAPES
    console.print(
        f"a scrape: {scrape * 1e3:.1f} ms; every {_SECONDS_BETWEEN_SCRAPES:g} s {share:.3%} of the time"
    )
    console.print(f"the aim: less than {_AIM:.0%} of a step at 256 sequences")


def _row(num_running: int, costs: Costs, demo: float) -> list[str]:
    parts = (costs.step, costs.tokens, costs.outputs, costs.end, costs.of_a_step)
    return [
        str(num_running),
        *(f"{seconds * 1e6:.1f} µs" for seconds in parts),
        f"{costs.of_a_step / _GPU_STEP_SECONDS:.2%}",
        f"{demo * 1e3:.1f} ms",
        f"{costs.of_a_step / demo:.2%}",
    ]


def measure(num_running: int) -> Costs:
    scheduler = Scheduler(SchedulerConfig(num_running, 2048, 4096), KVCacheManager(KVCacheConfig(1024)))
    metrics = Metrics(scheduler.stats, max_model_len=4096)
    requests = {f"request-{index:032}": Running() for index in range(num_running)}
    outputs = [SequenceOutput(request_id, 0, (index,)) for index, request_id in enumerate(requests)]
    clock = iter(range(10**9))

    def observe_step() -> None:
        metrics.steps.observe(StepStats(7, num_running, 0, 1e-4, 2e-4, 4e-3, 3e-4, 5e-3, 0.0))

    def observe_tokens() -> None:
        metrics.tokens.observe(outputs, requests, float(next(clock)))

    def observe_outputs() -> None:
        started = time.monotonic()
        metrics.steps.observe_outputs(1e-5, time.monotonic() - started)

    def observe_end() -> None:
        metrics.requests.observe_prepared(1e-3)
        metrics.requests.observe_end(_PARAMS, _END, None, is_submitted=True)

    return Costs(
        fastest(observe_step),
        fastest(observe_tokens),
        fastest(observe_outputs),
        fastest(observe_end),
        fastest(metrics.registry.text, 50),
    )


def fastest(work: Callable[[], object], num_rounds: int = _NUM_ROUNDS) -> float:
    best = float("inf")
    for _ in range(num_rounds):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


def demo_step_seconds(num_running: int) -> float:
    """Mean time of a step of the demo model in which all sequences decode, by its own metrics."""
    budget = max(512, num_running)
    options = EngineOptions(MODEL_DIR, device="cpu", max_num_seqs=num_running, max_num_batched_tokens=budget)
    return asyncio.run(_decode(options, num_running))


async def _decode(options: EngineOptions, num_running: int) -> float:
    params = SamplingParams(max_new_tokens=30, ignore_eos=True)
    async with build_engine(options).engine as engine:

        async def read(index: int) -> None:
            async for _ in engine.generate(str(index), [5, 6, 7], params):
                pass

        await asyncio.gather(*map(read, range(num_running)))
        times = next(each for each in engine.metrics.steps.families() if each.spec is STEP_TIME)
    decode = dict(times.samples)["decode",]
    assert isinstance(decode, Distribution)
    return decode.total / sum(decode.counts)


if __name__ == "__main__":
    main()
