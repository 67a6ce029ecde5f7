"""The same workload through `transformers`: static batches, and its own continuous batching."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.workload import Job, Result


def load(model_dir: Path) -> Any:
    """The model in float32 on the CPU, free to generate past its end-of-sequence token."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def static_batches(model_dir: Path, jobs: Sequence[Job], batch_size: int) -> Result:
    """`generate` on left-padded batches. Jobs of like output length share one, which wastes the fewest steps.

    A batch runs until its longest output is done; only the tokens that were asked for count.
    """
    model = load(model_dir)
    ordered = sorted(jobs, key=lambda job: (job.num_output_tokens, len(job.prompt)))
    _generate(model, ordered[:2])  # warm-up
    begin = time.perf_counter()
    for start in range(0, len(ordered), batch_size):
        _generate(model, ordered[start : start + batch_size])
    return Result(time.perf_counter() - begin, sum(job.num_output_tokens for job in jobs))


def _generate(model: Any, batch: Sequence[Job]) -> None:
    width = max(len(job.prompt) for job in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, job in enumerate(batch):
        ids[row, width - len(job.prompt) :] = torch.tensor(job.prompt)
        mask[row, width - len(job.prompt) :] = 1
    longest = max(job.num_output_tokens for job in batch)
    with torch.inference_mode():
        made = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=longest)
    assert made.shape[1] == width + longest


def continuous(model_dir: Path, jobs: Sequence[Job], num_blocks: int, max_batch_tokens: int) -> Result:
    """`transformers`' continuous batching: a background thread over its own paged cache."""
    from transformers import ContinuousBatchingConfig

    model = load(model_dir)
    config = ContinuousBatchingConfig(num_blocks=num_blocks, max_batch_tokens=max_batch_tokens)
    generation = model.generation_config
    generation.do_sample = False
    generation.eos_token_id = -1
    with model.continuous_batching_context_manager(generation, continuous_batching_config=config) as manager:
        begin = time.perf_counter()
        for job in jobs:
            manager.add_request(list(job.prompt), max_new_tokens=job.num_output_tokens)
        num_tokens = 0
        for _ in jobs:
            output = manager.get_result(timeout=600)
            if output is None or output.error:
                raise RuntimeError(f"transformers' continuous batching failed: {output and output.error}")
            num_tokens += len(output.generated_tokens)
        seconds = time.perf_counter() - begin
    assert num_tokens == sum(job.num_output_tokens for job in jobs)
    return Result(seconds, num_tokens)
