"""What an engine is, what its start took, and what its memory is used for. Does not change any more."""

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engine.loading import StartReport
from engine.memory import MemoryBudget
from engine.serving.metrics.specs import Family, Label, Spec, gauge, single
from engine.serving.types import ModelInfo
from engine.serving.version import version
from kvcache.config import KVCacheConfig

_FACT = "A fact, not a measure: the value is 1. Join it to others by instance."

ENGINE_INFO = gauge(
    "engine_info",
    "1",
    "What serves: the model, the backend, and the limits",
    _FACT,
    (
        *map(Label, ("model_name", "architecture", "backend", "dtype", "device")),
        *map(Label, ("policy", "max_model_len", "max_num_seqs", "max_num_queued")),
    ),
)
BUILD_INFO = gauge(
    "build_info",
    "1",
    "Versions: of inflight, Python and torch",
    _FACT,
    (Label("version"), Label("python"), Label("torch")),
)
CACHE_INFO = gauge(
    "cache_config_info",
    "1",
    "The KV cache: tokens a block, blocks (vLLM's name for them, on a CPU too), tokens in all, layer groups "
    "with tables of their own, and whether prefixes are shared",
    _FACT,
    tuple(map(Label, ("block_size", "num_gpu_blocks", "num_tokens", "num_groups", "enable_prefix_caching"))),
)
PLAN_INFO = gauge(
    "plan_info",
    "1",
    "TensorRT: the library and its version, and which form computes layers and head at how many tokens; "
    "nothing with the torch backend",
    _FACT,
    (Label("library"), Label("layers"), Label("head")),
)
STARTUP = gauge(
    "startup_seconds",
    "seconds",
    "What each phase of the start took",
    "`plans` or `kernels` long at every start: the plan cache is not kept; see --plan-dir.",
    (Label("phase", ("weights", "plans", "kernels", "graphs")),),
)
REJECTED = gauge(
    "rejected_kernels",
    "kernels",
    "Plans and kernels not used, as they differed from the reference at the start",
    "More than 0: slower, not wrong; report it with the lines that the start printed.",
)
MEMORY = gauge(
    "memory_bytes",
    "bytes",
    "Memory of the device by use, as planned at the start; `unused` is what the plan leaves of what was free",
    "Little kv_cache beside activations: lower --max-num-batched-tokens. Much unused: raise the KV cache's "
    "share.",
    (
        Label(
            "use",
            ("weights", "activations", "sampling", "plans_and_kernels", "graphs", "kv_cache", "unused"),
        ),
    ),
)
SPECS: tuple[Spec, ...] = (ENGINE_INFO, BUILD_INFO, CACHE_INFO, PLAN_INFO, STARTUP, REJECTED, MEMORY)


@dataclass(frozen=True, slots=True)
class StartMetrics:
    """backend, device: names. torch_version: "2.11.0"."""

    model: ModelInfo
    cache: KVCacheConfig
    memory: MemoryBudget
    start: StartReport
    backend: str
    device: str
    torch_version: str

    def families(self) -> Iterator[Family]:
        yield _info(ENGINE_INFO, self._engine())
        yield _info(
            BUILD_INFO,
            {"version": version(), "python": platform.python_version(), "torch": self.torch_version},
        )
        yield _info(CACHE_INFO, self._cache())
        details = dict(self.start.details)
        yield _info(PLAN_INFO, details) if details else Family(PLAN_INFO)
        yield Family(STARTUP, tuple(((phase,), seconds) for phase, seconds in self.start.phases))
        yield single(REJECTED, len(self.start.rejected))
        yield Family(MEMORY, tuple(((use,), num_bytes) for use, num_bytes in self._uses()))

    def _engine(self) -> dict[str, str]:
        model = self.model
        return {
            "model_name": model.name,
            "architecture": model.architecture,
            "backend": self.backend,
            "dtype": model.dtype,
            "device": self.device,
            "policy": model.policy,
            "max_model_len": str(model.max_model_len),
            "max_num_seqs": str(model.max_num_seqs),
            "max_num_queued": str(model.max_num_queued),
        }

    def _cache(self) -> dict[str, str]:
        cache = self.cache
        return {
            "block_size": str(cache.block_size),
            "num_gpu_blocks": str(cache.num_blocks),
            "num_tokens": str(self.memory.num_tokens),
            "num_groups": str(len(cache.groups)),
            "enable_prefix_caching": str(cache.enable_prefix_caching).lower(),
        }

    def _uses(self) -> Iterator[tuple[str, int]]:
        memory = self.memory
        yield "weights", memory.weight_bytes
        for name, num_bytes in memory.set_aside:
            yield name.replace(" ", "_"), num_bytes
        yield "kv_cache", memory.kv_bytes
        set_aside = sum(num_bytes for _, num_bytes in memory.set_aside)
        yield "unused", max(0, memory.free_bytes - set_aside - memory.kv_bytes)


def _info(spec: Spec, values: Mapping[str, str]) -> Family:
    """Labels without a value are empty."""
    return Family(spec, ((tuple(values.get(name, "") for name in spec.label_names), 1),))
