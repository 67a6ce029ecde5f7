"""From options to a runner: read the model, share out the memory, allocate the pool."""

import time

import torch

from engine.config import EngineOptions
from engine.loading import (
    BuiltBackend,
    PhaseProgress,
    StartReport,
    free_bytes,
    load_model,
    out_of_memory,
)
from engine.memory import PoolDemand, size_pool
from engine.model.config import ModelConfig
from engine.model.weights import ModelWeights
from engine.sampling.custom import Registry
from engine.sampling.params import SamplingParams
from engine.sampling.tables import table_bytes
from engine.torch_backend.runner import TorchRunner
from kvcache.block_table import num_blocks_for
from kvcache.config import KVCacheConfig, LayerGroup, group_layers
from kvcache.storage import bytes_per_block
from scheduler.step import Chunk, NewRow, StepInput

# What takes most memory to sample.
_EVERYTHING = SamplingParams(
    temperature=1.0,
    top_p=0.9,
    typical_p=0.9,
    repetition_penalty=1.1,
    frequency_penalty=0.1,
    no_repeat_ngram_size=2,
    logprobs=5,
    seed=0,
)


def build(
    options: EngineOptions, progress: PhaseProgress | None = None, registry: Registry | None = None
) -> BuiltBackend:
    """Load options.model_dir and size everything. registry: what requests may name, by default nothing.

    Raises ModelError (unsupported, or a broken checkpoint) or ConfigError (does not fit the machine).
    """
    try:
        return _build(options, progress, registry or Registry())
    except torch.OutOfMemoryError as error:
        raise out_of_memory(options, error) from error


def _build(options: EngineOptions, progress: PhaseProgress | None, registry: Registry) -> BuiltBackend:
    started = time.perf_counter()
    loaded = load_model(options, progress)
    start = StartReport((("weights", time.perf_counter() - started),))
    model, weights = loaded.config, loaded.weights
    groups = group_layers(model.windows)
    block = KVCacheConfig(1, options.cache.block_size, groups)
    demand = PoolDemand(
        groups=groups,
        max_model_len=model.max_model_len,
        block_bytes=bytes_per_block(block, model.num_kv_heads, model.head_dim, loaded.dtype),
        weight_bytes=loaded.weight_bytes,
        set_aside=(
            ("activations", _activation_bytes(options, model, weights, groups)),
            ("sampling", table_bytes(options.max_num_seqs, model.vocab_size, model.max_model_len)),
        ),
    )
    is_cpu = loaded.device.type == "cpu"
    cache, memory = size_pool(options, demand, free_bytes(loaded.device), is_cpu=is_cpu)
    runner = TorchRunner(model, weights, cache, options.max_num_seqs, registry)
    return BuiltBackend("torch", runner, model, cache, memory, loaded.device, loaded.dtype, start, registry)


def _activation_bytes(
    options: EngineOptions,
    model: ModelConfig,
    weights: ModelWeights[torch.Tensor],
    groups: tuple[LayerGroup, ...],
) -> int:
    """Most memory that a step takes for a while: measured on CUDA, estimated from shapes on a CPU."""
    if weights.embedding.is_cuda:
        return _measure_activations(options, model, weights, groups)
    num_tokens, num_rows = options.max_num_batched_tokens, options.max_num_seqs
    columns = 4 * model.hidden_size + 2 * model.qkv_size + 3 * model.q_size + 4 * model.intermediate_size
    attention = (2 * model.max_model_len * model.kv_size + (4 << 20)) * 4 + (20 << 20)
    return num_tokens * columns * 4 + num_rows * model.vocab_size * 4 * 13 + attention


def _measure_activations(
    options: EngineOptions,
    model: ModelConfig,
    weights: ModelWeights[torch.Tensor],
    groups: tuple[LayerGroup, ...],
) -> int:
    """Run the largest step that can occur, over a pool of one block that stands for all of them."""
    device = weights.embedding.device
    cache = KVCacheConfig(1, options.cache.block_size, groups)
    runner = TorchRunner(model, weights, cache, options.max_num_seqs)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    runner.launch(_largest_step(options, model, len(groups))).result()
    return torch.cuda.max_memory_allocated(device) - before


def _largest_step(options: EngineOptions, model: ModelConfig, num_groups: int) -> StepInput:
    """max_num_seqs sequences at full length: all but one decode, one fills the budget with a chunk."""
    num_decodes = options.max_num_seqs - 1
    num_chunk_tokens = min(options.max_num_batched_tokens - num_decodes, model.max_model_len)
    start = model.max_model_len - num_chunk_tokens
    table = (0,) * num_blocks_for(model.max_model_len, options.cache.block_size)
    rows = [
        NewRow(row, 1, 1, model.max_model_len - 1, (table,) * num_groups, 2, _EVERYTHING, 0, (0, 0))
        for row in range(options.max_num_seqs)
    ]
    chunk = Chunk(num_decodes, start, (0,) * num_chunk_tokens, samples=True)
    num_tokens = num_decodes + num_chunk_tokens
    return StepInput(0, tuple(range(num_decodes)), (chunk,), tuple(rows), num_tokens=num_tokens)
