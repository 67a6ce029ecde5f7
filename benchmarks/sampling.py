"""Microseconds of what follows the logits: the kernels in a CUDA graph, beside what a GPU and torch can do.

    python -m benchmarks.sampling

Logits are random, normal, in bf16; every replay reads others than the last ones, more of them than a GPU's L2
cache holds. "floor": reading and writing the logits once at the bandwidth of a copy measured in the same run.
"sort": the usual way in torch, penalties and all, by sorting the vocabulary (benchmarks/sort_sampler.py), in
a graph too. Aims: greedy under 1.3 floors where the floor is above 5 us; mixed rows under 3.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.gpu_timing import copy_bandwidth, graph_seconds
from benchmarks.sort_sampler import SortSampler
from engine.sampling.params import SamplingParams
from scheduler.step import NewRow

CACHE_BYTES = 256 << 20  # no GPU has a larger cache
MAX_MODEL_LEN = 4096
NUM_PROMPT, NUM_GENERATED = 512, 128  # tokens that the rows have seen
GREEDY = SamplingParams()
TRUNCATED = SamplingParams(temperature=0.8, top_k=50, top_p=0.95, seed=0)
PENALTIES = SamplingParams(repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.1)
EVERYTHING = replace(
    TRUNCATED,
    repetition_penalty=1.1,
    presence_penalty=0.2,
    frequency_penalty=0.1,
    no_repeat_ngram_size=3,
    logit_bias=tuple((token_id, 1.0) for token_id in range(100, 116)),
    bad_word_ids=((7,), (8, 9), (10, 11, 12)),
    min_p=0.01,
)
MIXED = [
    GREEDY,
    SamplingParams(temperature=0.8, seed=0),
    TRUNCATED,
    SamplingParams(temperature=0.8, min_p=0.05, seed=0),
    PENALTIES,
    EVERYTHING,
    replace(TRUNCATED, typical_p=0.9),
    SamplingParams(allowed_token_ids=tuple(range(1000))),
]
LOADS: dict[str, Sequence[SamplingParams]] = {
    "greedy": [GREEDY],
    "top-k and top-p": [TRUNCATED],
    "top-p alone": [SamplingParams(temperature=0.8, top_p=0.95, seed=0)],
    "penalties": [PENALTIES],
    "everything": [EVERYTHING],
    "mixed": MIXED,
    "greedy, logprobs": [replace(GREEDY, logprobs=5)],
    "mixed, logprobs": [replace(params, logprobs=5) for params in MIXED],
}
AIMS = {"greedy": 1.3, "mixed": 3.0}  # of the floor


@dataclass(frozen=True, slots=True)
class Shape:
    """scale: the standard deviation of the logits. At 1, top-p alone keeps tens of thousands of tokens; at 3,
    a few hundred, which is nearer to a language model."""

    batch: int
    vocab_size: int
    scale: float


def make_logits(shape: Shape) -> list[Tensor]:
    """bfloat16, enough of them that reading one again finds it in no cache."""
    size = 2 * shape.batch * shape.vocab_size
    count = min(64, max(4, CACHE_BYTES // size))
    logits = [torch.randn(shape.batch, shape.vocab_size, device="cuda") * shape.scale for _ in range(2)]
    return [logits[index % 2].bfloat16() for index in range(count)]


def new_rows(params: Sequence[SamplingParams], shape: Shape) -> list[NewRow]:
    generator = torch.Generator().manual_seed(0)
    seen = torch.randint(shape.vocab_size, (NUM_PROMPT + NUM_GENERATED,), generator=generator).tolist()
    return [
        NewRow(
            row, NUM_PROMPT, NUM_GENERATED, 0, (), 1 << 30, params[row % len(params)], row % 128, tuple(seen)
        )
        for row in range(shape.batch)
    ]


def kernels_time(params: Sequence[SamplingParams], shape: Shape, logits: Sequence[Tensor]) -> float:
    from engine.sampling.kernels import DeviceSampler
    from engine.sampling.report import REPORT_WIDTH

    device, batch = torch.device("cuda"), shape.batch
    sampler = DeviceSampler(batch, shape.vocab_size, MAX_MODEL_LEN, (2,), batch, device)
    sampler.set_rows(new_rows(params, shape))
    rows = torch.arange(batch, dtype=torch.int32, device=device)
    out = torch.zeros(2, batch, dtype=torch.int32, device=device)
    report = torch.zeros(batch, REPORT_WIDTH, dtype=torch.int32, device=device)
    last_token = torch.zeros(batch, dtype=torch.int32, device=device)
    is_plain = not sampler.hints(range(batch))["full"].any()

    def sample() -> None:
        for each in logits:
            if is_plain:
                sampler.sample(each, rows, last_token, out)
            else:
                sampler.sample_processed(each, rows, last_token, out, report, None)

    return graph_seconds(sample) * 1e6 / len(logits)


def sort_time(params: Sequence[SamplingParams], shape: Shape, logits: Sequence[Tensor]) -> float:
    sampler = SortSampler([params[row % len(params)] for row in range(shape.batch)], new_rows(params, shape))

    def sample() -> None:
        for each in logits[:4]:
            sampler.sample(each)

    return graph_seconds(sample) * 1e6 / len(logits[:4])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64, 256], help="rows (1 64 256)")
    parser.add_argument("--vocab-size", type=int, default=128_256, help="default: 128256")
    parser.add_argument("--scale", type=float, nargs="+", default=[3.0], help="of the logits (3)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.sampling needs an NVIDIA GPU, and torch sees none here", file=sys.stderr)
        return 1
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}, copies at {bandwidth / 1e12:.2f} TB/s; microseconds a step")
    print(f"{'rows ask for':18}{'scale':>6}{'batch':>6}{'kernels':>9}{'floor':>8}{'x floor':>9}{'sort':>9}")
    for scale in arguments.scale:
        for batch in arguments.batch:
            measure(Shape(batch, arguments.vocab_size, scale), bandwidth)
    return 0


def measure(shape: Shape, bandwidth: float) -> None:
    logits = make_logits(shape)
    floor = 2 * logits[0].nbytes / bandwidth * 1e6
    for name, params in LOADS.items():
        kernels, peer = kernels_time(params, shape, logits), sort_time(params, shape, logits)
        verdict = ""
        if name in AIMS and floor > 5:
            verdict = f"  aim {AIMS[name]}: {'met' if kernels / floor <= AIMS[name] else 'MISSED'}"
        times = f"{kernels:9.1f}{floor:8.1f}{kernels / floor:9.2f}{peer:9.1f}"
        print(f"{name:18}{shape.scale:6}{shape.batch:6}{times}{verdict}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
