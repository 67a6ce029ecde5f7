"""Every architecture against transformers: logits, and greedy tokens through the real scheduler."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.attention.plan import AttentionShape, Planner
from engine.model.checkpoint import load_weights
from engine.model.huggingface import load_config
from engine.torch_backend.batch_state import BatchState
from engine.torch_backend.model import TorchModel
from engine.torch_backend.packing import pack
from kvcache.config import KVCacheConfig, group_layers
from kvcache.storage import KVCacheStorage
from scheduler.step import Chunk, NewRow, StepInput

NAMES = [
    "llama2",
    "llama3.1-tied",
    "llama-linear",
    "llama-biases",
    "mistral-windowed",
    "mistral-full",
    "qwen2",
    "qwen2-mixed",
    "qwen3",
]
CPU = torch.device("cpu")
Make = Callable[..., Any]


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_batched_with_chunked_prefill(
    name: str, tiny_model: Make, server: Make, prompts: list[list[int]]
) -> None:
    expected = [tiny_model(name).greedy(prompt) for prompt in prompts]
    served = server(name).serve(prompts)
    assert served.texts == expected
    assert min(len(set(text)) for text in expected) >= 8, "texts that repeat themselves prove little"
    assert len({tuple(text) for text in expected}) == len(prompts)


@pytest.mark.parametrize("gather", [False, True], ids=["in-place", "gathered"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_of_every_prompt_token(
    name: str, gather: bool, tiny_model: Make, prompts: list[list[int]]
) -> None:
    model = tiny_model(name)
    for prompt, logits in zip(prompts, _logits_in_chunks(model.path, prompts, gather), strict=True):
        with torch.no_grad():
            expected = model.reference(torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def _logits_in_chunks(path: Path, prompts: list[list[int]], gather: bool) -> list[torch.Tensor]:
    """Logits after every token, computed in steps that cut each prompt in three; the last part is short."""
    config = load_config(path)
    cache = KVCacheConfig(num_blocks=64, groups=group_layers(config.windows))
    storage = KVCacheStorage(cache, config.num_kv_heads, config.head_dim, torch.float32, CPU)
    weights = load_weights(path, config, device=CPU, dtype=torch.float32)
    model = TorchModel(config, weights, storage, cache.groups)
    shape = AttentionShape(config.num_heads, config.num_kv_heads, config.head_dim, cache.num_blocks, 16)
    planners = [Planner(shape, g.window, CPU, torch.float32, gather=gather) for g in cache.groups]
    state = BatchState(len(cache.groups), len(prompts), 6, CPU)
    state.update(StepInput(0, new_rows=_rows(prompts, len(cache.groups))))
    logits: list[list[torch.Tensor]] = [[] for _ in prompts]
    with torch.inference_mode():
        for step in _steps(prompts):
            packed = pack(step, state.num_computed, max_lone_chunk=8)
            tensors = packed.token_ids, packed.layout.rows, packed.layout.positions
            token_ids, rows, positions = map(torch.from_numpy, tensors)
            plans = [
                planner.plan(packed.layout, rows, positions, table)
                for planner, table in zip(planners, state.block_tables, strict=True)
            ]
            # Short chunks are mixed with others by position: put each row's tokens back in order.
            order = torch.from_numpy(np.lexsort((packed.layout.positions, packed.layout.rows)))
            step_logits = model.logits(model(token_ids, positions, plans), order)
            parts = torch.split_with_sizes(step_logits, [len(chunk.token_ids) for chunk in step.chunks])
            for chunk, part in zip(step.chunks, parts, strict=True):
                logits[chunk.row].append(part)
    return [torch.cat(parts) for parts in logits]


def _rows(prompts: list[list[int]], num_groups: int) -> tuple[NewRow, ...]:
    blocks = torch.randperm(64, generator=torch.Generator().manual_seed(1)).tolist()
    tables = [tuple(blocks[i * 6 : i * 6 + 6]) for i in range(len(prompts) * num_groups)]
    return tuple(
        NewRow(row, len(prompt), 0, 0, tuple(tables[row * num_groups : (row + 1) * num_groups]), 1, None, 0)
        for row, prompt in enumerate(prompts)
    )


def _steps(prompts: list[list[int]]) -> list[StepInput]:
    steps = []
    for part in range(3):
        chunks = []
        for row, prompt in enumerate(prompts):
            cuts = (0, len(prompt) // 2, len(prompt) - 1 - row, len(prompt))
            start, end = cuts[part], cuts[part + 1]
            chunks.append(Chunk(row, start, tuple(prompt[start:end]), samples=False))
        steps.append(StepInput(part, chunks=tuple(chunks)))
    return steps
