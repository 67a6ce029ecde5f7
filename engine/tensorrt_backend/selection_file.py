"""Where the forms are kept that were chosen for a model on a GPU (selection.py)."""

from pathlib import Path

import torch

from engine.model.config import ModelConfig
from engine.tensorrt_backend.candidates import Buckets
from engine.tensorrt_backend.disk_cache import CacheFile, Key
from engine.tensorrt_backend.gpu import Gpu
from engine.tensorrt_backend.library import Library
from engine.tensorrt_backend.plan_cache import buckets_digest, model_digest


def selection_file(
    directory: Path, library: Library, gpu: Gpu, config: ModelConfig, dtype: torch.dtype, buckets: Buckets
) -> CacheFile:
    """One file a model, library, GPU and set of buckets; a change of anything else replaces it."""
    model, sizes = model_digest(config, dtype), buckets_digest(buckets.tokens, buckets.decode)
    key: Key = {
        "library": library.name,
        "version": library.version,
        "gpu": gpu.name,
        "driver": gpu.driver,
        "tokens": list(buckets.tokens),
        "decode": list(buckets.decode),
        "layers": config.num_layers,
    }
    return CacheFile(directory / f"forms-{library.name}-{model}-{gpu.slug}-{sizes}.forms", key)
