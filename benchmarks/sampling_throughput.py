"""What requests pay on a CPU for what they ask: output tokens/s of the demo model, beside plain greedy.

    python -m benchmarks.sampling_throughput

64 requests at once, as in benchmarks/throughput.py, in process; every kind of request in a batch of its own,
and all of them mixed. Rounds alternate between the kinds; medians count.
"""

import argparse
import asyncio
import statistics
import sys
import time
from dataclasses import replace

import uvloop

from benchmarks.workload import Job, mixed_lengths
from engine.config import EngineOptions
from engine.demo import MODEL_DIR
from engine.sampling.guided.spec import GuidedSpec
from engine.sampling.params import NamedSpec, SamplingParams
from engine.serving.async_engine import AsyncEngine
from engine.serving.build import build_engine
from engine.serving.types import OutputOptions

GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.8, top_k=50, top_p=0.95)
PENALTIES = replace(SAMPLED, repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.1)
BANS = replace(SAMPLED, no_repeat_ngram_size=4, bad_word_ids=((9, 8), (7,)), logit_bias=((5, 1.0), (6, -1.0)))
KINDS: dict[str, SamplingParams] = {
    "greedy": GREEDY,
    "top-k, top-p": SAMPLED,
    "typical-p": SamplingParams(temperature=0.8, typical_p=0.9),
    "penalties": PENALTIES,
    "bans, biases": BANS,
    "logprobs 5": replace(GREEDY, logprobs=5),
    "regex": SamplingParams(guided=GuidedSpec("regex", "([0-9]{1,3} ){300,400}")),
    "criterion": replace(GREEDY, stopping_criteria=(NamedSpec("repetition", {"num_repeats": 8}),)),
    "everything": replace(
        PENALTIES,
        typical_p=0.95,
        min_p=0.01,
        logprobs=5,
        no_repeat_ngram_size=4,
        bad_word_ids=((9, 8), (7,)),
        logit_bias=((5, 1.0), (6, -1.0)),
        stop_regex=("zz+z",),
    ),
}


async def run(engine: AsyncEngine, name: str, jobs: tuple[Job, ...]) -> float:
    """Output tokens/s."""
    kinds = [KINDS[name]] if name in KINDS else list(KINDS.values())

    async def generate(index: int, job: Job) -> int:
        kind = kinds[index % len(kinds)]
        ends = kind.guided is not None  # by itself, but not so soon
        params = replace(kind, max_new_tokens=job.num_output_tokens, ignore_eos=not ends, seed=index)
        deltas = engine.generate(f"{index}", job.prompt, params, output=OutputOptions(token_ids=True))
        return sum([len(delta.token_ids) async for delta in deltas])

    begin = time.perf_counter()
    made = await asyncio.gather(*(generate(index, job) for index, job in enumerate(jobs)))
    return sum(made) / (time.perf_counter() - begin)


async def measure(num_requests: int, num_rounds: int) -> dict[str, float]:
    jobs = mixed_lengths(num_requests, vocab_size=512, seed=0)
    names = [*KINDS, "mixed"]
    rates: dict[str, list[float]] = {name: [] for name in names}
    async with build_engine(EngineOptions(MODEL_DIR, max_num_seqs=num_requests)).engine as engine:
        for round_ in range(num_rounds + 1):  # the first warms up
            for name in names:
                rate = await run(engine, name, jobs)
                if round_:
                    rates[name].append(rate)
    return {name: statistics.median(measured) for name, measured in rates.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=64, help="default: 64")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    arguments = parser.parse_args()
    medians = uvloop.run(measure(arguments.requests, arguments.rounds))
    for name, rate in medians.items():
        print(f"{name:14} {rate:8,.0f} tokens/s   {rate / medians['greedy']:.2f} of greedy")
    return 0


if __name__ == "__main__":
    sys.exit(main())
