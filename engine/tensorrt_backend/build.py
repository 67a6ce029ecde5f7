"""From options to a runner: load, build plans, compile and choose kernels, size the pool, capture graphs."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from engine.config import EngineOptions
from engine.errors import TensorRTError
from engine.loading import (
    BuiltBackend,
    LoadedModel,
    PhaseProgress,
    StartReport,
    free_bytes,
    load_model,
    out_of_memory,
)
from engine.memory import MemoryBudget, PoolDemand, size_pool
from engine.model.config import ModelConfig
from engine.sampling.custom.registry import Registry
from engine.tensorrt_backend.assemble import assemble, upload_words
from engine.tensorrt_backend.buckets import decode_buckets, token_buckets
from engine.tensorrt_backend.candidates import Buckets, Candidates, plan_specs
from engine.tensorrt_backend.choices import Selection, choices
from engine.tensorrt_backend.contexts import PlanEngine, PlanRuntime
from engine.tensorrt_backend.disk_cache import CacheFile
from engine.tensorrt_backend.executor import StreamExecutor
from engine.tensorrt_backend.gpu import Gpu, current_gpu
from engine.tensorrt_backend.kernel_cache import KernelCache
from engine.tensorrt_backend.library import Library, load_library
from engine.tensorrt_backend.plan_cache import CachedPlan, PlanCache
from engine.tensorrt_backend.plans import PlanSpec
from engine.tensorrt_backend.runner import RoutedSegments, TensorRTRunner
from engine.tensorrt_backend.selection import Selector
from engine.tensorrt_backend.selection_file import selection_file
from engine.tensorrt_backend.start import Phases
from engine.tensorrt_backend.step_buffers import StepBuffers, allocate
from engine.tensorrt_backend.summary import details
from engine.tensorrt_backend.uploads import Uploads
from kvcache.config import KVCacheConfig, group_layers
from kvcache.storage import bytes_per_block

_LOG = logging.getLogger(__name__)

_BLAS_WORKSPACE = 64 << 20  # bytes, which torch takes once more for the thread that steps run in
_NUM_BUILDERS = 4  # plans built at once


def build(
    options: EngineOptions, progress: PhaseProgress | None = None, registry: Registry | None = None
) -> BuiltBackend:
    """Load options.model_dir and get everything ready that a step needs. registry: what requests may name.

    Raises ModelError (unsupported, or a broken checkpoint), BackendUnavailableError (no usable library, GPU
    or driver) or ConfigError (does not fit the GPU, with the budget).
    """
    try:
        return _Build(options, progress, registry or Registry()).run()
    except torch.OutOfMemoryError as error:
        raise out_of_memory(options, error) from error


def build_plans(
    options: EngineOptions, library: Library, config: ModelConfig, dtype: torch.dtype, gpu: str | None
) -> Iterator[tuple[PlanSpec, CachedPlan]]:
    """Make the plans of a model and keep them in options.plan_dir. Yields each as it is done.

    gpu: its name; None where there is none, which tensorrt_rtx does not need.
    """
    cache = PlanCache(library, options.plan_dir, gpu)
    for spec in plan_specs(config, dtype, buckets_of(options)):
        yield spec, cache.get(spec)


def buckets_of(options: EngineOptions) -> Buckets:
    return Buckets(
        tokens=token_buckets(options.max_num_seqs, options.max_num_batched_tokens),
        decode=decode_buckets(options.max_num_seqs),
    )


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What the phase of kernels leaves: forms, and the memory that all steps share."""

    selection: Selection
    routed: RoutedSegments
    buffers: StepBuffers
    activation_bytes: int


class _Build:
    """One start."""

    def __init__(self, options: EngineOptions, progress: PhaseProgress | None, registry: Registry) -> None:
        self._options = options
        self._registry = registry
        self._progress = progress
        self._phases = Phases(progress)
        self._buckets = buckets_of(options)
        self._library = load_library("auto")
        self._gpu: Gpu
        self._model: LoadedModel
        self._stream: torch.cuda.Stream

    @torch.inference_mode()
    def run(self) -> BuiltBackend:
        phases = self._phases
        with phases.phase("weights"):
            self._model = load_model(self._options, self._progress)
        self._gpu = current_gpu(self._model.device)
        self._library.check_gpu(self._gpu.name, self._gpu.capability)
        self._stream = torch.cuda.Stream(self._model.device)  # type: ignore[no-untyped-call]
        free = free_bytes(self._model.device)
        kernels = self._kernel_cache()
        with phases.phase("plans"):
            engines = self._load_plans(PlanRuntime(self._library, kernels))
        with phases.phase("kernels"):
            chosen = self._choose(engines)
            kernels.save()
        with phases.phase("graphs"):
            runner, cache, memory = self._finish(chosen, free)
        model = self._model
        report = StartReport(
            phases.seconds, chosen.selection.rejected, tuple(details(self._library, chosen.selection))
        )
        return BuiltBackend(
            "tensorrt",
            runner,
            model.config,
            cache,
            memory,
            model.device,
            model.dtype,
            report,
            self._registry,
        )

    # Plans and kernels

    def _kernel_cache(self) -> KernelCache:
        directory, name = self._options.plan_dir, f"kernels-{self._library.name}-{self._gpu.slug}.bin"
        path = None if directory is None else directory / name
        return KernelCache(self._library, path, self._gpu.name, self._gpu.driver)

    def _load_plans(self, runtime: PlanRuntime) -> list[PlanEngine]:
        """Of all segments and forms but those that the library refuses; candidates make do without."""
        cache = PlanCache(self._library, self._options.plan_dir, self._gpu.name)
        specs = list(plan_specs(self._model.config, self._model.dtype, self._buckets))
        engines = []
        with ThreadPoolExecutor(_NUM_BUILDERS, thread_name_prefix="plans") as pool:
            futures = [pool.submit(cache.get, spec) for spec in specs]
            for done, (spec, future) in enumerate(zip(specs, futures, strict=True), 1):
                try:
                    engines.append(runtime.load(future.result().content, spec))
                except TensorRTError as error:
                    _LOG.warning("not used: %s", error)
                self._phases.report(done, len(specs))
        return engines

    def _choose(self, engines: list[PlanEngine]) -> _Chosen:
        model, buckets = self._model, self._buckets
        buffers = allocate(model, buckets.tokens[-1], buckets.decode[-1])
        candidates = Candidates(model, buckets, engines)
        selector = Selector(model, buckets, candidates, buffers, self._stream)
        selection = selector.select(self._selection_file(), self._phases.report)
        routed = selector.routed(selection)
        candidates.keep((choice.form, bucket) for _, bucket, choice in choices(selection))
        activation_bytes = candidates.activation_bytes + buffers.num_bytes
        return _Chosen(selection, routed, buffers, activation_bytes)

    def _selection_file(self) -> CacheFile | None:
        if (directory := self._options.plan_dir) is None:
            return None
        model = self._model
        return selection_file(directory, self._library, self._gpu, model.config, model.dtype, self._buckets)

    # Pool and graphs

    def _finish(self, chosen: _Chosen, free: int) -> tuple[TensorRTRunner, KVCacheConfig, MemoryBudget]:
        """free: bytes that were free with only the weights loaded."""
        model, options = self._model, self._options
        block = KVCacheConfig(1, options.cache.block_size, group_layers(model.config.windows))
        taken = free - free_bytes(model.device)
        graphs = self._graph_bytes(chosen, block)
        demand = PoolDemand(
            groups=block.groups,
            max_model_len=model.config.max_model_len,
            block_bytes=bytes_per_block(block, model.config.num_kv_heads, model.config.head_dim, model.dtype),
            weight_bytes=model.weight_bytes,
            set_aside=(
                ("activations", chosen.activation_bytes + _BLAS_WORKSPACE),
                ("plans and kernels", max(0, taken - chosen.activation_bytes)),
                ("graphs", graphs),
            ),
        )
        cache, memory = size_pool(options, demand, free, is_cpu=False)
        runner = self._runner(chosen, cache)
        buckets = chosen.routed.decode.used
        for done, bucket in enumerate(buckets, 1):
            runner.capture(bucket)
            self._phases.report(done, len(buckets))
        runner.warm_up()
        return runner, cache, memory

    def _graph_bytes(self, chosen: _Chosen, block: KVCacheConfig) -> int:
        """What graphs will take: those of the two largest buckets, captured over a pool of one block."""
        device = self._model.device
        free = [free_bytes(device)]
        runner, used = self._runner(chosen, block), chosen.routed.decode.used
        runner.warm_up()
        for bucket in used[-2:][::-1]:
            runner.capture(bucket)
            free.append(free_bytes(device))
        # The first one comes with the rows' state, scratch memory and kernels; the others are like the last.
        return max(0, free[0] - free[1]) + max(0, free[-2] - free[-1]) * (len(used) - 1)

    def _runner(self, chosen: _Chosen, cache: KVCacheConfig) -> TensorRTRunner:
        uploads = Uploads(upload_words(self._buckets), self._model.device)
        executor = StreamExecutor(self._stream)
        return assemble(
            self._model,
            cache,
            self._buckets,
            chosen.routed,
            chosen.buffers,
            executor,
            uploads,
            self._registry,
        )
