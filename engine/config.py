"""The engine's options, as small frozen parts. Only the command line reads argv and the environment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import ConfigError

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
BACKENDS = ("auto", "tensorrt", "torch")


@dataclass(frozen=True, slots=True)
class StepLimits:
    """max_num_seqs: sequences running at once. max_num_batched_tokens: token budget of a step."""

    max_num_seqs: int
    max_num_batched_tokens: int


DEFAULT_LIMITS: Mapping[str, StepLimits] = {"torch": StepLimits(64, 512), "tensorrt": StepLimits(256, 1024)}
"""By backend: what a GPU takes at once to be busy is too much for a CPU."""


def choose_limits(backend: str, num_seqs: int | None, num_batched_tokens: int | None) -> StepLimits:
    """What was asked for; for None the default of the backend, as far as it goes with what was asked for."""
    default = DEFAULT_LIMITS[backend]
    if num_batched_tokens is None:
        num_batched_tokens = max(default.max_num_batched_tokens, num_seqs or 0)
    if num_seqs is None:
        num_seqs = max(1, min(default.max_num_seqs, num_batched_tokens))
    return StepLimits(num_seqs, num_batched_tokens)


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """num_bytes: size of the KV pool.

    None takes `fraction` of the memory that is free once the weights are loaded, and on a CPU no more than
    `max_num_seqs` sequences of full length can use.
    """

    block_size: int = 16
    num_bytes: int | None = None
    fraction: float = 0.9
    enable_prefix_caching: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.block_size <= 1024:
            raise ConfigError(f"block size {self.block_size}: must be in [1, 1024] tokens")
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"KV cache fraction {self.fraction}: must be in (0, 1]")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """model_dir: a Hugging Face directory. dtype "auto": the checkpoint's own, float32 on a CPU.

    max_model_len: longest sequence in tokens, prompt and output; None is the model's own maximum.
    max_num_seqs, max_num_batched_tokens: see StepLimits; the defaults are those of the torch backend.
    max_num_queued: requests that may wait before new ones are refused.
    num_threads: cores that compute a step on a CPU. None takes all but one, which is left to gRPC, tokenizing
    and whoever else runs on the machine: threads of one step that wait for a core cost more than they bring.
    step_timeout: seconds without a finished step, with work to do, after which the engine counts as hung.
    backend: "auto" is tensorrt on a GPU where it can run, else torch. plan_dir: where plans, compiled kernels
    and measurements are kept from one start to the next; None keeps none.
    plugins: modules or .py files that register logits processors and stopping criteria.
    """

    model_dir: Path
    device: str = "auto"
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = DEFAULT_LIMITS["torch"].max_num_seqs
    max_num_batched_tokens: int = DEFAULT_LIMITS["torch"].max_num_batched_tokens
    max_num_queued: int = 1024
    policy: str = "fcfs"
    num_threads: int | None = None
    step_timeout: float = 120.0
    backend: str = "auto"
    plan_dir: Path | None = None
    plugins: tuple[str, ...] = ()
    cache: CacheOptions = field(default_factory=CacheOptions)

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ConfigError(f"device {self.device!r}: must be one of {', '.join(DEVICES)}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype {self.dtype!r}: must be one of {', '.join(DTYPES)}")
        if self.backend not in BACKENDS:
            raise ConfigError(f"backend {self.backend!r}: must be one of {', '.join(BACKENDS)}")
        if self.max_num_seqs < 1:
            raise ConfigError(f"max_num_seqs {self.max_num_seqs}: must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            limit = f"must be at least max_num_seqs={self.max_num_seqs}, one token for each running sequence"
            raise ConfigError(f"max_num_batched_tokens {self.max_num_batched_tokens}: {limit}")
        if self.max_num_queued < 0:
            raise ConfigError(f"max_num_queued {self.max_num_queued}: must be at least 0")
        if self.num_threads is not None and not 1 <= self.num_threads <= 1024:
            raise ConfigError(f"num_threads {self.num_threads}: must be in [1, 1024]")
        if not self.step_timeout > 0:
            raise ConfigError(f"step_timeout {self.step_timeout}: must be above 0 seconds")
        if self.policy not in ("fcfs", "priority"):
            raise ConfigError(f"policy {self.policy!r}: must be fcfs or priority")
