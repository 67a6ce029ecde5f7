"""Microseconds of sampling and stopping: the kernels in a CUDA graph, torch's sampler, a read of the logits.

    python -m benchmarks.sampling

Logits are random and normal; every replay reads others than the last ones, more of them than a GPU's L2 cache
holds. "floor" is the time of reading the logits once at the bandwidth of a copy measured in the same run.
torch's sampler runs without a graph, as it cannot be captured: its host time is in the measurement.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_timing import copy_bandwidth, graph_seconds
from engine.sampling.params import SamplingParams
from scheduler.step import NewRow

CACHE_BYTES = 256 << 20  # no GPU has a larger cache
MICROSECONDS = 1e3  # in a millisecond, the unit of CUDA events
LOADS: dict[str, Sequence[SamplingParams]] = {
    "greedy": [SamplingParams()],
    "temperature": [SamplingParams(temperature=0.8, seed=0)],
    "top-k 50": [SamplingParams(temperature=0.8, top_k=50, seed=0)],
    "top-p 0.95": [SamplingParams(temperature=0.8, top_p=0.95, seed=0)],
    "all": [SamplingParams(temperature=0.8, top_k=50, top_p=0.95, seed=0)],
    "mixed": [
        SamplingParams(),
        SamplingParams(temperature=0.8, seed=0),
        SamplingParams(temperature=0.8, top_k=50, top_p=0.95, seed=0),
        SamplingParams(temperature=0.8, min_p=0.05, seed=0),
    ],
}


@dataclass(frozen=True, slots=True)
class Shape:
    """scale: the standard deviation of the logits. At 1, top-p alone keeps tens of thousands of tokens; at 3,
    a few hundred, which is nearer to a language model."""

    batch: int
    vocab_size: int
    scale: float


def median_time(calls: Sequence[Callable[[], object]], repeats: int) -> float:
    """Microseconds of a call, the calls taken in turn."""
    events = [make_event() for _ in range(2 * repeats)]
    for call in calls:
        call()
    for index in range(repeats):
        events[2 * index].record()
        calls[index % len(calls)]()
        events[2 * index + 1].record()
    torch.cuda.synchronize()
    pairs = zip(events[::2], events[1::2], strict=True)
    times: list[float] = [begin.elapsed_time(end) for begin, end in pairs]
    return MICROSECONDS * statistics.median(times)


def make_event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def make_logits(shape: Shape) -> list[Tensor]:
    """bfloat16, enough of them that reading one again finds it in no cache."""
    size = 2 * shape.batch * shape.vocab_size
    count = min(64, max(4, CACHE_BYTES // size))
    logits = [torch.randn(shape.batch, shape.vocab_size, device="cuda") * shape.scale for _ in range(2)]
    return [logits[index % 2].bfloat16() for index in range(count)]


def new_rows(params: Sequence[SamplingParams], batch: int) -> list[NewRow]:
    return [NewRow(row, 1, 0, 0, (), 1 << 30, params[row % len(params)], row % 128) for row in range(batch)]


def kernels_time(params: Sequence[SamplingParams], shape: Shape, logits: Sequence[Tensor]) -> float:
    from engine.sampling.kernels import DeviceSampler

    device = torch.device("cuda")
    sampler = DeviceSampler(shape.batch, shape.vocab_size, 4096, (2,), shape.batch, device)
    sampler.set_rows(new_rows(params, shape.batch))
    rows = torch.arange(shape.batch, dtype=torch.int32, device=device)
    out = torch.zeros(2, shape.batch, dtype=torch.int32, device=device)
    last_token = torch.zeros(shape.batch, dtype=torch.int32, device=device)

    def sample() -> None:
        for each in logits:
            sampler.sample(each, rows, last_token, out)

    return graph_seconds(sample) * 1e6 / len(logits)


def torch_time(params: Sequence[SamplingParams], shape: Shape, logits: Sequence[Tensor]) -> float:
    from engine.sampling.sampler import Sampler

    device = torch.device("cuda")
    sampler = Sampler(shape.batch, shape.vocab_size, 4096, (2,), device)
    sampler.set_rows(new_rows(params, shape.batch))
    rows, host_rows = torch.arange(shape.batch, device=device), range(shape.batch)

    def sample(each: Tensor) -> None:
        sampler.sample(each.float(), rows, host_rows)

    return median_time([partial(sample, each) for each in logits], 10)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64, 256], help="rows (1 8 64 256)")
    parser.add_argument("--vocab-size", type=int, default=128_256, help="default: 128256")
    parser.add_argument("--scale", type=float, nargs="+", default=[1.0, 3.0], help="of the logits (1 3)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.sampling needs an NVIDIA GPU, and torch sees none here", file=sys.stderr)
        return 1
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}, copies at {bandwidth / 1e12:.2f} TB/s; microseconds a step")
    print(f"{'rows ask for':12} {'scale':>6} {'batch':>6} {'kernels':>9} {'floor':>7} {'torch':>9}")
    for scale in arguments.scale:
        for batch in arguments.batch:
            shape = Shape(batch, arguments.vocab_size, scale)
            logits = make_logits(shape)
            floor = logits[0].nbytes / bandwidth * 1e6
            for name, params in LOADS.items():
                kernels, peer = kernels_time(params, shape, logits), torch_time(params, shape, logits)
                print(
                    f"{name:12} {scale:6} {batch:6} {kernels:9.1f} {floor:7.1f} {peer:9.1f}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
