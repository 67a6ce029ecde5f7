"""What every backend does first: read the configuration, choose device and dtype, load the weights."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from engine.config import EngineOptions
from engine.errors import ConfigError
from engine.memory import MemoryBudget, format_bytes, free_host_bytes
from engine.model.checkpoint import load_weights
from engine.model.config import ModelConfig
from engine.model.huggingface import load_config
from engine.model.weights import ModelWeights, num_parameters
from engine.nvidia import why_no_cuda
from engine.sampling.custom import Registry
from kvcache.config import KVCacheConfig
from scheduler.step import Runner

PhaseProgress = Callable[[str, int, int], None]
"""Called with the name of a phase of the start ("weights", "plans", "kernels", "graphs"), how much of it is
done, and how much there is: bytes for weights, a count for the others. 0 of 0: it begins."""

_UNKNOWN_FREE_BYTES = 4 << 30  # where a system does not tell how much is free


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Weights on a device. config.max_model_len is the longest sequence that options and model take."""

    config: ModelConfig
    weights: ModelWeights[torch.Tensor]
    device: torch.device
    dtype: torch.dtype

    @property
    def weight_bytes(self) -> int:
        return num_parameters(self.config) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class StartReport:
    """What the start found out, for people and metrics. phases: (name, seconds), in order.

    rejected: plans and kernels that differed from the reference, and are not used, one line each.
    details: (name, value) of what else one wants to know, such as which bucket runs how.
    """

    phases: tuple[tuple[str, float], ...] = ()
    rejected: tuple[str, ...] = ()
    details: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class BuiltBackend:
    """A model ready to run. The caller makes a KVCacheManager of `cache`, and a Scheduler.

    name: "torch" or "tensorrt". model.max_model_len is this engine's. registry: the processors and criteria
    that requests may name.
    """

    name: str
    runner: Runner
    model: ModelConfig
    cache: KVCacheConfig
    memory: MemoryBudget
    device: torch.device
    dtype: torch.dtype
    start: StartReport = StartReport()
    registry: Registry = field(default_factory=Registry)


def load_model(options: EngineOptions, progress: PhaseProgress | None = None) -> LoadedModel:
    """Raises ModelError (unsupported, or a broken checkpoint) or ConfigError (does not fit the machine)."""
    config = limit_length(load_config(options.model_dir), options.max_model_len)
    device = choose_device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.num_threads or max(1, len(os.sched_getaffinity(0)) - 1))
    dtype = choose_dtype(options.dtype, config, device)
    weight_bytes = num_parameters(config) * dtype.itemsize
    if weight_bytes > (free := free_bytes(device)):
        advice = "`nvidia-smi` lists who holds its memory" if device.type == "cuda" else "free some memory"
        amounts = f"{format_bytes(weight_bytes)} of weights: {format_bytes(free)} are free on {device}"
        raise ConfigError(f"{amounts}; {advice}, or serve a smaller model")

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("weights", done, total)

    weights = load_weights(options.model_dir, config, device=device, dtype=dtype, progress=report)
    return LoadedModel(config, weights, device, dtype)


def limit_length(model: ModelConfig, max_model_len: int | None) -> ModelConfig:
    if max_model_len is None:
        return model
    if not 2 <= max_model_len <= model.max_model_len:
        raise ConfigError(
            f"max_model_len {max_model_len}: must be in [2, {model.max_model_len}], the model's own"
        )
    return model.with_max_model_len(max_model_len)


def choose_device(name: str) -> torch.device:
    if name == "cuda" and (reason := why_no_cuda()) is not None:
        raise ConfigError(f"device 'cuda': {reason}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def choose_dtype(name: str, model: ModelConfig, device: torch.device) -> torch.dtype:
    if name == "auto":
        name = "float32" if device.type == "cpu" else model.dtype
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def out_of_memory(options: EngineOptions, error: torch.OutOfMemoryError) -> ConfigError:
    """What was allocated, who holds the rest, and what to do."""
    amounts = str(error).split(" Of the allocated memory")[0]
    return ConfigError(
        f"{options.model_dir} does not fit the device: {amounts} Do: give lower --max-num-batched-tokens and "
        "--max-num-seqs, or free memory; `nvidia-smi` lists who holds it"
    )


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    free = free_host_bytes()
    return _UNKNOWN_FREE_BYTES if free is None else free
