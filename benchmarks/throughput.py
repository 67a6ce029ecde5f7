"""Output tokens/s on a CPU: this engine in process and through gRPC, beside `transformers`.

    python -m benchmarks.throughput

128 requests at once, prompts of 16 to 512 and outputs of 16 to 256 tokens (workload.py). Every run is a
process of its own; the rounds go through all engines in turn, so that a machine that drifts drifts for all.
transformers' static batches run at several sizes, and the best one counts. Exit status 1 if an aim is
missed.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.workload import Job, Result, mixed_lengths
from engine.demo import MODEL_DIR

AIM_OVER_TRANSFORMERS = 2.0
AIM_GRPC = 0.85
STATIC_SIZES = (16, 32, 64)
MAX_NUM_SEQS = 128

Run = Callable[[Path, Sequence[Job]], Result]


@dataclass(frozen=True, slots=True)
class Settings:
    """Of this engine. num_threads: None is the server's default."""

    num_threads: int | None
    max_num_batched_tokens: int


def in_process(settings: Settings, model_dir: Path, jobs: Sequence[Job]) -> Result:
    """AsyncEngine.generate, read on an event loop of the same process."""
    import uvloop

    return uvloop.run(_in_process(settings, model_dir, jobs))


async def _in_process(settings: Settings, model_dir: Path, jobs: Sequence[Job]) -> Result:
    from engine.config import EngineOptions
    from engine.sampling.params import SamplingParams
    from engine.serving.build import build_engine
    from engine.serving.types import OutputOptions

    options = EngineOptions(
        model_dir,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        num_threads=settings.num_threads,
    )

    async def generate(name: str, job: Job) -> int:
        params = SamplingParams(max_new_tokens=job.num_output_tokens, ignore_eos=True)
        deltas = engine.generate(name, job.prompt, params, output=OutputOptions(token_ids=True))
        return sum([len(delta.token_ids) async for delta in deltas])

    async with build_engine(options).engine as engine:
        return await _measure(jobs, generate)


def through_grpc(settings: Settings, model_dir: Path, jobs: Sequence[Job]) -> Result:
    """`inflight serve` in another process, the package's client in this one."""
    import uvloop

    from engine.serving.server_process import server_process

    arguments = ["--max-num-seqs", str(MAX_NUM_SEQS)]
    arguments += ["--max-num-batched-tokens", str(settings.max_num_batched_tokens)]
    if settings.num_threads is not None:
        arguments += ["--threads", str(settings.num_threads)]
    with server_process(str(model_dir), *arguments) as addresses:
        return uvloop.run(_through_grpc(addresses.grpc, jobs))


async def _through_grpc(address: str, jobs: Sequence[Job]) -> Result:
    from inflight.v1 import Client

    async with Client(address) as client:

        async def generate(name: str, job: Job) -> int:
            events = client.generate(
                job.prompt, max_new_tokens=job.num_output_tokens, ignore_eos=True, token_ids=True
            )
            return sum([len(event.token_ids) async for event in events])

        return await _measure(jobs, generate)


async def _measure(jobs: Sequence[Job], generate: Callable[[str, Job], Awaitable[int]]) -> Result:
    await generate("warm-up", Job(jobs[0].prompt[:16], 8))
    begin = time.perf_counter()
    made = await asyncio.gather(*(generate(str(index), job) for index, job in enumerate(jobs)))
    seconds = time.perf_counter() - begin
    assert made == [job.num_output_tokens for job in jobs], "every token asked for has come"
    return Result(seconds, sum(made))


def transformers_static(size: int, model_dir: Path, jobs: Sequence[Job]) -> Result:
    from benchmarks.transformers_peer import static_batches

    return static_batches(model_dir, jobs, size)


def transformers_continuous(model_dir: Path, jobs: Sequence[Job]) -> Result:
    from benchmarks.transformers_peer import continuous

    return continuous(model_dir, jobs, num_blocks=320, max_batch_tokens=128)


def engines(settings: Settings) -> dict[str, Run]:
    return {
        "inflight, in process": partial(in_process, settings),
        "inflight, gRPC": partial(through_grpc, settings),
        **{f"transformers, batches of {n}": partial(transformers_static, n) for n in STATIC_SIZES},
        "transformers, continuous": transformers_continuous,
    }


def apart(run: Run, model_dir: Path, jobs: Sequence[Job]) -> Result:
    """In a fresh process: no engine inherits another's threads, caches or memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, (model_dir, jobs))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="default: the demo model")
    parser.add_argument("--requests", type=int, default=128, help="default: 128")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3; medians count")
    parser.add_argument("--seed", type=int, default=0, help="of the requests; default: 0")
    parser.add_argument("--only", default="", help="engines whose name contains this")
    parser.add_argument("--threads", type=int, help="of a step of ours; default: the server's")
    parser.add_argument("--max-num-batched-tokens", type=int, default=512, help="of ours; default: 512")
    args = parser.parse_args()
    runs = engines(Settings(args.threads, args.max_num_batched_tokens))
    jobs = mixed_lengths(args.requests, vocab_size=512, seed=args.seed)
    num_prompt, num_output = sum(len(j.prompt) for j in jobs), sum(j.num_output_tokens for j in jobs)
    print(f"{len(jobs)} requests, {num_prompt:,} prompt and {num_output:,} output tokens, seed {args.seed}")
    rates: dict[str, list[float]] = {name: [] for name in runs if args.only in name}
    for _ in range(args.rounds):
        for name, measured in rates.items():
            measured.append(apart(runs[name], args.model, jobs).tokens_per_second)
            print(f"  {name:32} {measured[-1]:8,.0f} tokens/s", flush=True)
    return report({name: statistics.median(measured) for name, measured in rates.items()})


def report(medians: dict[str, float]) -> int:
    print("\nmedians")
    for name, rate in sorted(medians.items(), key=lambda item: -item[1]):
        print(f"  {name:32} {rate:8,.0f} tokens/s")
    ours, grpc = medians.get("inflight, in process"), medians.get("inflight, gRPC")
    peers = [rate for name, rate in medians.items() if name.startswith("transformers")]
    if ours is None or grpc is None or not peers:
        return 0
    over, share = ours / max(peers), grpc / ours
    print(f"in process over the best of transformers: {over:.2f}x (aim: {AIM_OVER_TRANSFORMERS}x)")
    print(f"gRPC over in process: {share:.2f} (aim: {AIM_GRPC})")
    return 0 if over >= AIM_OVER_TRANSFORMERS and share >= AIM_GRPC else 1


if __name__ == "__main__":
    sys.exit(main())
