"""From options to an engine that can be started."""

from contextlib import suppress
from dataclasses import dataclass

import torch

from engine.backends import build_backend
from engine.config import EngineOptions
from engine.demo import MODEL_DIR
from engine.errors import InvalidArgumentError
from engine.loading import BuiltBackend, PhaseProgress, StartReport
from engine.memory import MemoryBudget
from engine.sampling.custom import Kind, Registry
from engine.sampling.guided.compiler import GrammarCompiler
from engine.serving.async_engine import AsyncEngine
from engine.serving.metrics import StartMetrics
from engine.serving.types import ModelInfo, NamedInfo
from engine.text.tokenizer import Tokenizer
from kvcache.manager import KVCacheManager
from scheduler.config import SchedulerConfig
from scheduler.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """engine: not started yet. backend: "torch" or "tensorrt". device: "cpu", or the GPU's name."""

    engine: AsyncEngine
    memory: MemoryBudget
    backend: str
    device: str
    start: StartReport


def build_engine(options: EngineOptions, progress: PhaseProgress | None = None) -> BuiltEngine:
    """Load a model and everything around it.

    Raises ModelError (unsupported, broken, or without a tokenizer) or ConfigError (does not fit the machine).
    """
    tokenizer = Tokenizer.from_directory(options.model_dir)
    built = build_backend(options, progress)
    config = SchedulerConfig(
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=built.model.max_model_len,
        policy=options.policy,
    )
    kv = KVCacheManager(built.cache)
    info = _model_info(options, built, tokenizer)
    scheduler = Scheduler(config, kv)
    compiler = GrammarCompiler(tokenizer.to_json(), info.vocab_size, info.eos_token_ids)
    with suppress(InvalidArgumentError):  # guided requests will be told that this model cannot be guided
        compiler.prepare()
    engine = AsyncEngine(
        scheduler,
        kv,
        built.runner,
        tokenizer,
        info,
        registry=built.registry,
        compiler=compiler,
        step_timeout=options.step_timeout,
    )
    device = device_name(built.device)
    start = StartMetrics(
        model=engine.model_info,
        cache=built.cache,
        memory=built.memory,
        start=built.start,
        backend=built.name,
        device=device,
        torch_version=torch.__version__,
    )
    engine.metrics.registry.add(start.families)
    return BuiltEngine(engine, built.memory, built.name, device, built.start)


def device_name(device: torch.device) -> str:
    """ "cpu", or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _model_info(options: EngineOptions, built: BuiltBackend, tokenizer: Tokenizer) -> ModelInfo:
    model = built.model
    return ModelInfo(
        name="demo" if options.model_dir == MODEL_DIR else options.model_dir.resolve().name,
        architecture=model.architecture,
        vocab_size=model.vocab_size,
        max_model_len=model.max_model_len,
        dtype=str(built.dtype).removeprefix("torch."),
        tokenizer_sha256=tokenizer.sha256,
        eos_token_ids=model.eos_token_ids,
        max_prompt_chars=model.max_model_len * tokenizer.max_token_chars,
        block_size=built.cache.block_size,
        policy=options.policy,
        max_num_seqs=options.max_num_seqs,
        max_num_queued=options.max_num_queued,
        logits_processors=_named(built.registry, Kind.PROCESSOR),
        stopping_criteria=_named(built.registry, Kind.CRITERION),
    )


def _named(registry: Registry, kind: Kind) -> tuple[NamedInfo, ...]:
    return tuple(NamedInfo(each.name, each.text, each.schema) for each in registry.describe(kind))
