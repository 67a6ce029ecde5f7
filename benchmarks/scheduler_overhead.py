"""Host time of a step: what the scheduler and the KV manager cost, without a device.

A fake device answers at once. "decode" keeps a number of sequences decoding and nothing else; "mixed"
replaces each sequence that ends by a new request, so that most steps also prefill. The kv column is the time
spent inside KVCacheManager; it is taken in a second run, because measuring it costs time itself.

    python benchmarks/scheduler_overhead.py --running 1 16 64 256 1024 --steps 2000
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kvcache.config import KVCacheConfig
from kvcache.manager import KVCacheManager
from scheduler import Finish, Request, Scheduler, SchedulerConfig, StepInput, StepOutput

MICROSECONDS = 1e6
MAX_MODEL_LEN = 2**31


@dataclass
class FakeDevice:
    """Samples pseudo-random tokens and counts those that each row may still generate."""

    rng: random.Random
    num_left: dict[int, int] = field(default_factory=dict)

    def run(self, step: StepInput) -> StepOutput:
        for new in step.new_rows:
            self.num_left[new.row] = new.max_new_tokens - new.num_generated_tokens
        rows = [*step.decode_rows, *(chunk.row for chunk in step.chunks if chunk.samples)]
        for row in rows:
            self.num_left[row] -= 1
        finishes: list[int] = [Finish.NONE if self.num_left[row] else Finish.LENGTH for row in rows]
        return StepOutput(step.step_id, self.rng.choices(range(32000), k=len(rows)), finishes)


class TimedKV(KVCacheManager):
    """Adds up the seconds spent in the methods that a step calls."""

    seconds = 0.0


def _timed(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: TimedKV, *args: Any) -> Any:
        started = time.perf_counter()
        result = method(self, *args)
        self.seconds += time.perf_counter() - started
        return result

    return call


for name in ("add", "grow", "commit", "fork", "free", "block_tables"):
    setattr(TimedKV, name, _timed(getattr(KVCacheManager, name)))


@dataclass
class Timings:
    """Microseconds, one entry a step."""

    schedule: list[float] = field(default_factory=list)
    update: list[float] = field(default_factory=list)
    num_decode_rows: int = 0
    num_chunk_tokens: int = 0
    kv: float = 0.0  # mean

    @property
    def total(self) -> list[float]:
        return [schedule + update for schedule, update in zip(self.schedule, self.update, strict=True)]


class Load:
    """Keeps `num_running` requests in a scheduler."""

    def __init__(self, num_running: int, lengths: Iterator[tuple[int, int]], kv: KVCacheManager) -> None:
        self.kv = kv
        config = SchedulerConfig(num_running, 4 * num_running + 512, MAX_MODEL_LEN)
        self.scheduler = Scheduler(config, kv)
        self.rng = random.Random(0)
        self.device = FakeDevice(self.rng)
        self.lengths = lengths
        self.num_added = 0
        for _ in range(num_running):
            self.add()

    def add(self) -> None:
        num_prompt_tokens, max_new_tokens = next(self.lengths)
        prompt = self.rng.choices(range(32000), k=num_prompt_tokens)
        self.scheduler.add(Request(str(self.num_added), prompt, max_new_tokens))
        self.num_added += 1

    def step(self) -> tuple[float, float, StepInput]:
        started = time.perf_counter()
        step = self.scheduler.schedule(started)
        scheduled = time.perf_counter()
        assert step is not None
        output = self.device.run(step)
        sampled = time.perf_counter()
        outputs = self.scheduler.update(output, sampled)
        updated = time.perf_counter()
        for each in outputs:
            if each.summary is not None:
                self.add()
        return (scheduled - started) * MICROSECONDS, (updated - sampled) * MICROSECONDS, step


def decode_lengths(num_steps: int) -> Iterator[tuple[int, int]]:
    """Prompts of 16 to 31 tokens, so that sequences cross block boundaries in different steps."""
    index = 0
    while True:
        yield 16 + index % 16, num_steps
        index += 1


def mixed_lengths(rng: random.Random) -> Iterator[tuple[int, int]]:
    while True:
        yield rng.randint(16, 512), rng.randint(16, 256)


def measure(make_load: Callable[[type[KVCacheManager]], Load], num_warmup: int, num_steps: int) -> Timings:
    timings = Timings()
    load = make_load(KVCacheManager)
    for _ in range(num_warmup):
        load.step()
    for _ in range(num_steps):
        schedule, update, step = load.step()
        timings.schedule.append(schedule)
        timings.update.append(update)
        timings.num_decode_rows += len(step.decode_rows)
        timings.num_chunk_tokens += step.num_tokens - len(step.decode_rows)
    load = make_load(TimedKV)
    for _ in range(num_warmup):
        load.step()
    assert isinstance(load.kv, TimedKV)
    load.kv.seconds = 0.0
    for _ in range(num_steps):
        load.step()
    timings.kv = load.kv.seconds / num_steps * MICROSECONDS
    return timings


HEADER = (
    f"{'load':8}{'running':>8}{'rows':>8}{'chunk tokens':>14}"
    f"{'schedule':>10}{'update':>8}{'total':>8}{'p99':>8}{'kv':>7}{'per row':>9}"
)


def report(name: str, num_running: int, timings: Timings) -> str:
    num_steps = len(timings.total)
    median = statistics.median(timings.total)
    p99 = sorted(timings.total)[int(0.99 * num_steps)]
    num_rows = timings.num_decode_rows / num_steps
    return (
        f"{name:8}{num_running:8}{num_rows:8.1f}{timings.num_chunk_tokens / num_steps:14.1f}"
        f"{statistics.median(timings.schedule):10.1f}{statistics.median(timings.update):8.1f}"
        f"{median:8.1f}{p99:8.1f}{timings.kv:7.1f}{median / max(num_rows, 1):9.2f}"
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--running", type=int, nargs="+", default=[1, 16, 64, 256, 1024], metavar="N")
    parser.add_argument("--steps", type=int, default=2000, help="measured steps of each load (default: 2000)")
    parser.add_argument("--block-size", type=int, default=16, help="tokens a block (default: 16)")
    parser.add_argument("--no-prefix-caching", action="store_true", help="publish and look up no blocks")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    print("microseconds a step: medians, p99 of the total, mean of kv (a part of schedule and update)")
    print(HEADER)
    for name in ("decode", "mixed"):
        for num_running in args.running:

            def make_load(kv_type: type[KVCacheManager], name: str = name, n: int = num_running) -> Load:
                num_tokens = args.steps + 1000 if name == "decode" else 1024
                kv = KVCacheConfig(
                    num_blocks=n * (num_tokens // args.block_size + 8),
                    block_size=args.block_size,
                    enable_prefix_caching=not args.no_prefix_caching,
                )
                lengths = decode_lengths(num_tokens) if name == "decode" else mixed_lengths(random.Random(1))
                return Load(n, lengths, kv_type(kv))

            print(report(name, num_running, measure(make_load, 300, args.steps)), flush=True)


if __name__ == "__main__":
    main()
