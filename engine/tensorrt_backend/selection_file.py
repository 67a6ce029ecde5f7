"""Where the forms are kept that were chosen for a model on a GPU (selection.py)."""

from pathlib import Path

import torch

from engine.blas import segments as blas_segments
from engine.blas.kernels import rows as blas_rows
from engine.model.config import ModelConfig
from engine.skinny import segments as skinny_segments
from engine.skinny import tiling
from engine.skinny.kernels import product as skinny_product
from engine.tensorrt_backend import candidates, network, segments
from engine.tensorrt_backend.candidates import Buckets
from engine.tensorrt_backend.disk_cache import CacheFile, Key
from engine.tensorrt_backend.gpu import Gpu
from engine.tensorrt_backend.library import Library
from engine.tensorrt_backend.plan_cache import buckets_digest, model_digest, sources_digest

# What a form is made of; a change of one may change which is fastest.
_FORMS = (candidates, network, segments, blas_segments, blas_rows, skinny_segments, skinny_product, tiling)


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
        "definition": sources_digest(*_FORMS),
    }
    return CacheFile(directory / f"forms-{library.name}-{model}-{gpu.slug}-{sizes}.forms", key)
