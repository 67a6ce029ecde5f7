"""Puts a runner together: the state of its rows, the pool, attention, sampling."""

from engine.attention.kernels import TILE_TOKENS, PagedAttention
from engine.attention.plan import AttentionShape
from engine.attention.rope import inverse_frequencies
from engine.loading import LoadedModel
from engine.sampling.custom.registry import Registry
from engine.sampling.custom.rows import CustomRows
from engine.sampling.kernels import DeviceSampler
from engine.tensorrt_backend.candidates import Buckets
from engine.tensorrt_backend.decoder_pass import DecoderPass
from engine.tensorrt_backend.device_state import DeviceState
from engine.tensorrt_backend.executor import Executor
from engine.tensorrt_backend.runner import RoutedSegments, TensorRTRunner
from engine.tensorrt_backend.step_buffers import StepBuffers
from engine.tensorrt_backend.step_sampling import StepSampling
from engine.tensorrt_backend.uploads import Uploads, padded
from kvcache.block_table import num_blocks_for
from kvcache.config import KVCacheConfig
from kvcache.storage import KVCacheStorage

_MIN_UPLOAD = 1 << 14  # words


def assemble(
    model: LoadedModel,
    cache: KVCacheConfig,
    buckets: Buckets,
    routed: RoutedSegments,
    buffers: StepBuffers,
    executor: Executor,
    uploads: Uploads,
    registry: Registry,
) -> TensorRTRunner:
    """A runner of as many rows as the largest decode bucket has. Allocates the pool; captures nothing yet.

    registry: processors and criteria that requests may name.
    """
    config, device, num_rows = model.config, model.device, buckets.decode[-1]
    num_blocks = num_blocks_for(config.max_model_len, cache.block_size)
    state = DeviceState(len(cache.groups), num_rows, num_blocks, uploads, device)
    storage = KVCacheStorage(cache, config.num_kv_heads, config.head_dim, model.dtype, device)
    attention = _attention(model, cache, buckets, state)
    sampler = DeviceSampler(
        num_rows, config.vocab_size, config.max_model_len, config.eos_token_ids, num_rows, device
    )
    return TensorRTRunner(
        state,
        StepSampling(sampler, CustomRows(registry, sampler.state), state, buffers, config.vocab_size),
        storage,
        uploads,
        buffers,
        DecoderPass(buffers, storage, cache.groups, attention),
        routed,
        executor,
    )


def upload_words(buckets: Buckets) -> int:
    """Of the largest upload: rows, positions and ids of all tokens, tiles, two lists of rows that sample."""
    num_tokens, num_rows = buckets.tokens[-1], buckets.decode[-1]
    num_tiles = num_tokens // TILE_TOKENS + num_rows
    return max(_MIN_UPLOAD, 3 * padded(num_tokens) + padded(2 * num_tiles) + 2 * padded(num_rows))


def _attention(
    model: LoadedModel, cache: KVCacheConfig, buckets: Buckets, state: DeviceState
) -> list[PagedAttention]:
    config = model.config
    shape = AttentionShape(
        config.num_heads, config.num_kv_heads, config.head_dim, cache.num_blocks, cache.block_size
    )
    frequencies = inverse_frequencies(config.rope, config.head_dim).to(model.device)
    return [
        PagedAttention(
            shape,
            group.window,
            frequencies,
            table,
            max_num_tokens=buckets.tokens[-1],
            max_num_lone=buckets.decode[-1],
            max_model_len=config.max_model_len,
            dtype=model.dtype,
        )
        for group, table in zip(cache.groups, state.block_tables, strict=True)
    ]
