"""Plans on disk, so that only the first start builds them."""

import hashlib
import inspect
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch

from engine.model import decoder
from engine.model.config import ModelConfig
from engine.tensorrt_backend import network, plans, segments
from engine.tensorrt_backend.disk_cache import CacheFile, Key, Miss
from engine.tensorrt_backend.library import Library
from engine.tensorrt_backend.plans import PlanSpec, build_plan

_LOG = logging.getLogger(__name__)

_PORTABLE = "portable"
# What of a ModelConfig shapes a network. Not: how many layers, positions, windows.
_MODEL_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "rms_norm_eps",
    "qkv_bias",
    "o_bias",
    "mlp_bias",
    "qk_norm",
)


@dataclass(frozen=True, slots=True)
class CachedPlan:
    """is_kept: it is on disk, for the next start."""

    content: bytes
    was_built: bool
    is_kept: bool


class PlanCache:
    """Plans of any number of models in one directory; None keeps nothing.

    gpu: the name of the GPU in use; None where there is none. Plans of tensorrt_rtx are for any GPU.
    Threads may call it at once, and processes.
    """

    def __init__(self, library: Library, directory: Path | None, gpu: str | None) -> None:
        self._library = library
        self._directory = directory
        self._gpu = _PORTABLE if library.is_rtx else str(gpu)

    def get(self, spec: PlanSpec) -> CachedPlan:
        """The plan, read or built (then written). One log line says why one that was there is not used.

        Raises TensorRTError where it has to be built and cannot.
        """
        if self._directory is None:
            return CachedPlan(build_plan(self._library, spec), was_built=True, is_kept=False)
        file = CacheFile(self.path(self._directory, spec), self._key(spec))
        with file.lock():
            found = file.read()
            if not isinstance(found, Miss):
                return CachedPlan(found, was_built=False, is_kept=True)
            if found.reason is not None:
                _LOG.info("plan %s is built again: %s", spec.segment.name, found.reason)
            plan = build_plan(self._library, spec)
            return CachedPlan(plan, was_built=True, is_kept=file.write(plan))

    def path(self, directory: Path, spec: PlanSpec) -> Path:
        """One file a model, segment, form, dtype, library and set of buckets: servers with other limits
        can share the directory. A change of anything else replaces it."""
        model = model_digest(spec.segment.config, spec.segment.dtype)
        buckets = buckets_digest(spec.buckets)
        return directory / f"{self._library.name}-{model}-{spec.segment.name}-{buckets}.plan"

    def _key(self, spec: PlanSpec) -> Key:
        return {
            "library": self._library.name,
            "version": self._library.version,
            "gpu": self._gpu,
            "segment": spec.segment.name,
            "buckets": list(spec.buckets),
            "definition": sources_digest(decoder, network, segments, plans),
            **_model_numbers(spec.segment.config),
        }


def model_digest(config: ModelConfig, dtype: torch.dtype) -> str:
    """Twelve hexadecimal digits, the same for models whose plans are the same."""
    return _digest({**_model_numbers(config), "dtype": str(dtype)})[:12]


def buckets_digest(*buckets: Sequence[int]) -> str:
    """Eight hexadecimal digits, for names of files that are made for some lists of buckets."""
    return _digest(buckets)[:8]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _model_numbers(config: ModelConfig) -> Key:
    everything = asdict(config)
    return {name: everything[name] for name in _MODEL_FIELDS}


def sources_digest(*modules: ModuleType) -> str:
    """Of what decides about a file, so that a new release makes its own."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()[:12]
