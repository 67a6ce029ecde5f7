"""The TensorRT backend's runner on a CPU: its kernels interpreted, its segments by torch."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

import numpy as np
import torch

from engine.loading import BuiltBackend, LoadedModel
from engine.memory import MemoryBudget
from engine.model.checkpoint import load_weights
from engine.model.huggingface import load_config
from engine.sampling.custom.plugins import build_registry
from engine.tensorrt_backend.assemble import assemble, upload_words
from engine.tensorrt_backend.buckets import Router
from engine.tensorrt_backend.candidates import Buckets
from engine.tensorrt_backend.packing import Words
from engine.tensorrt_backend.runner import RoutedSegments
from engine.tensorrt_backend.step_buffers import allocate
from engine.tensorrt_backend.uploads import Uploads, padded
from engine.torch_backend.segments import TorchSegments
from kvcache.config import KVCacheConfig, group_layers

CPU = torch.device("cpu")
BUCKETS = Buckets(tokens=(1, 4, 40), decode=(1, 4))


class HostUploads:
    """Uploads to where they are."""

    def __init__(self, max_num_words: int) -> None:
        self.max_num_words = max_num_words
        self.num_uploads = 0

    def upload(self, parts: Sequence[Words]) -> list[torch.Tensor]:
        self.num_uploads += 1
        assert sum(padded(part.size) for part in parts) <= self.max_num_words
        return [torch.from_numpy(np.array(part)) for part in parts]


class _Again:
    def __init__(self, enqueue: Callable[[], object]) -> None:
        self._enqueue = enqueue

    def replay(self) -> None:
        self._enqueue()


class _Copied:
    def __init__(self, tensor: torch.Tensor) -> None:
        self._copy = tensor.clone()

    def wait(self) -> torch.Tensor:
        return self._copy


class HostExecutor:
    """engine.tensorrt_backend.executor.Executor that has done everything at once."""

    def entered(self) -> AbstractContextManager[object]:
        return nullcontext()

    def capture(self, enqueue: Callable[[], object]) -> _Again:
        return _Again(enqueue)  # nothing to compile, and the interpreter is slow

    def fetch(self, tensor: torch.Tensor) -> _Copied:
        return _Copied(tensor)

    def synchronize(self) -> None:
        pass


def build_on_host(
    model_dir: Path, num_blocks: int = 64, *, warm_up: bool = False, plugins: Sequence[str] = ()
) -> BuiltBackend:
    """float32, four rows, steps of at most 40 tokens. warm_up: as on a GPU, which takes half a minute."""
    config = load_config(model_dir)
    weights = load_weights(model_dir, config, device=CPU, dtype=torch.float32)
    model = LoadedModel(config, weights, CPU, torch.float32)
    cache = KVCacheConfig(num_blocks, 16, group_layers(config.windows))
    buffers = allocate(model, BUCKETS.tokens[-1], BUCKETS.decode[-1])
    # Which the other forms are compared with: interpreting these as well would take minutes.
    segments = dict.fromkeys(BUCKETS.tokens, TorchSegments(config, weights))
    routed = RoutedSegments(segments, Router({1: 1.0, 4: 2.0}), Router({1: 1.0, 4: 2.0, 40: 3.0}))
    uploads = HostUploads(upload_words(BUCKETS))
    registry = build_registry(plugins)
    runner = assemble(
        model, cache, BUCKETS, routed, buffers, HostExecutor(), cast(Uploads, uploads), registry
    )
    for bucket in BUCKETS.decode:
        runner.capture(bucket)
    if warm_up:
        runner.warm_up()
    budget = MemoryBudget(0, 0, (), 0, num_blocks, num_blocks * 16)
    return BuiltBackend("tensorrt", runner, config, cache, budget, CPU, torch.float32, registry=registry)
