"""The requests that the throughput benchmarks send: fixed by a seed, the same for every engine."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Job:
    """One request: a prompt, and exactly num_output_tokens to generate (end of sequence is ignored)."""

    prompt: tuple[int, ...]
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class Result:
    """What one run of a workload took."""

    seconds: float
    num_output_tokens: int

    @property
    def tokens_per_second(self) -> float:
        return self.num_output_tokens / self.seconds


def mixed_lengths(num_jobs: int, vocab_size: int, seed: int) -> tuple[Job, ...]:
    """Prompts of 16 to 512 and outputs of 16 to 256 tokens, uniform. Random ids, so no prefix is shared."""
    rng = random.Random(seed)
    return tuple(
        Job(
            tuple(rng.randrange(3, vocab_size) for _ in range(rng.randint(16, 512))),
            rng.randint(16, 256),
        )
        for _ in range(num_jobs)
    )
