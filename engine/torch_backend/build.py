"""From options to a runner: read the model, share out the memory, allocate the pool."""

import os
from dataclasses import dataclass

import torch

from engine.config import EngineOptions
from engine.errors import ConfigError
from engine.memory import MemoryBudget, PoolDemand, format_bytes, free_host_bytes, size_pool
from engine.model.checkpoint import Progress, load_weights
from engine.model.config import ModelConfig
from engine.model.huggingface import load_config
from engine.model.weights import ModelWeights, num_parameters
from engine.sampling.params import SamplingParams
from engine.torch_backend.runner import TorchRunner
from kvcache.block_table import num_blocks_for
from kvcache.config import KVCacheConfig, LayerGroup, group_layers
from kvcache.storage import bytes_per_block
from scheduler.step import Chunk, NewRow, StepInput

_UNKNOWN_FREE_BYTES = 4 << 30  # where a system does not tell how much is free


@dataclass(frozen=True, slots=True)
class TorchEngine:
    """A model ready to run. The caller makes a KVCacheManager of `cache`, and a Scheduler.

    model.max_model_len is this engine's: the longest sequence that the options and the model take.
    """

    runner: TorchRunner
    model: ModelConfig
    cache: KVCacheConfig
    memory: MemoryBudget
    device: torch.device
    dtype: torch.dtype


def build(options: EngineOptions, progress: Progress | None = None) -> TorchEngine:
    """Load options.model_dir and size everything. progress: called with (bytes read, bytes in all).

    Raises ModelError (unsupported, or a broken checkpoint) or ConfigError (does not fit the machine).
    """
    try:
        return _build(options, progress)
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"{options.model_dir} does not fit the device: {error}") from error


def _build(options: EngineOptions, progress: Progress | None) -> TorchEngine:
    model = _limit_length(load_config(options.model_dir), options.max_model_len)
    device = _choose_device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.num_threads or max(1, len(os.sched_getaffinity(0)) - 1))
    dtype = _choose_dtype(options.dtype, model, device)
    weight_bytes = num_parameters(model) * dtype.itemsize
    if weight_bytes > (free := _free_bytes(device)):
        raise ConfigError(
            f"{format_bytes(weight_bytes)} of weights: {format_bytes(free)} are free on {device}"
        )
    weights = load_weights(options.model_dir, model, device=device, dtype=dtype, progress=progress)
    groups = group_layers(model.windows)
    block = KVCacheConfig(1, options.cache.block_size, groups)
    demand = PoolDemand(
        groups=groups,
        max_model_len=model.max_model_len,
        block_bytes=bytes_per_block(block, model.num_kv_heads, model.head_dim, dtype),
        weight_bytes=weight_bytes,
        activation_bytes=_activation_bytes(options, model, weights, groups),
    )
    cache, memory = size_pool(options, demand, _free_bytes(device), is_cpu=device.type == "cpu")
    runner = TorchRunner(model, weights, cache, options.max_num_seqs)
    return TorchEngine(runner, model, cache, memory, device, dtype)


def _limit_length(model: ModelConfig, max_model_len: int | None) -> ModelConfig:
    if max_model_len is None:
        return model
    if not 2 <= max_model_len <= model.max_model_len:
        raise ConfigError(
            f"max_model_len {max_model_len}: must be in [2, {model.max_model_len}], the model's own"
        )
    return model.with_max_model_len(max_model_len)


def _choose_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda': torch finds no CUDA device here")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def _choose_dtype(name: str, model: ModelConfig, device: torch.device) -> torch.dtype:
    if name == "auto":
        name = "float32" if device.type == "cpu" else model.dtype
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    free = free_host_bytes()
    return _UNKNOWN_FREE_BYTES if free is None else free


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
    return num_tokens * columns * 4 + num_rows * model.vocab_size * 4 * 6 + attention


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
    sampling = SamplingParams(temperature=1.0, top_p=0.9, seed=0)
    rows = [
        NewRow(row, 1, 1, model.max_model_len - 1, (table,) * num_groups, 2, sampling, output_index=0)
        for row in range(options.max_num_seqs)
    ]
    chunk = Chunk(num_decodes, start, (0,) * num_chunk_tokens, samples=True)
    num_tokens = num_decodes + num_chunk_tokens
    return StepInput(0, tuple(range(num_decodes)), (chunk,), tuple(rows), num_tokens=num_tokens)
