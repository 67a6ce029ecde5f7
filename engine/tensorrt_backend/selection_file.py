"""Where the forms are kept that were chosen for a model on a GPU (selection.py)."""

from pathlib import Path

import torch

from engine.blas import segments as blas_segments
from engine.blas.kernels import rows as blas_rows
from engine.model import decoder
from engine.model.config import ModelConfig
from engine.skinny import product, scratch, tiling
from engine.skinny import segments as skinny_segments
from engine.skinny.kernels import finish
from engine.skinny.kernels import product as skinny_kernels
from engine.skinny.kernels import rows as skinny_rows
from engine.tensorrt_backend import candidates, choices, network, plans, segments, self_check
from engine.tensorrt_backend.candidates import Buckets
from engine.tensorrt_backend.disk_cache import CacheFile, Key
from engine.tensorrt_backend.gpu import Gpu
from engine.tensorrt_backend.library import Library
from engine.tensorrt_backend.plan_cache import buckets_digest, model_digest, sources_digest

# What a form is made of; a change of one may change which is fastest.
_DEFINITION = (
    *(decoder, network, segments, plans, candidates, choices, self_check),
    *(blas_segments, blas_rows),
    *(skinny_segments, product, scratch, tiling, skinny_kernels, finish, skinny_rows),
)


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
        "definition": sources_digest(*_DEFINITION),
    }
    return CacheFile(directory / f"forms-{library.name}-{model}-{gpu.slug}-{sizes}.forms", key)
