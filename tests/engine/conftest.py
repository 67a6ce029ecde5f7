"""Tiny random models of every architecture, saved by transformers, and a way to run them to the end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engine.backends import build_backend
from engine.config import CacheOptions, EngineOptions
from engine.loading import BuiltBackend, choose_device, choose_dtype, limit_length
from engine.model.huggingface import load_config
from engine.sampling.params import SamplingParams
from kvcache.config import KVCacheConfig, group_layers
from kvcache.manager import KVCacheManager
from kvcache.storage import bytes_per_block
from scheduler.config import SchedulerConfig
from scheduler.request import Request, SequenceOutput, SequenceSummary
from scheduler.scheduler import Scheduler
from scheduler.stats import SchedulerStats
from scheduler.step import PendingStep, TokenLogprobs

NUM_NEW_TOKENS = 64
_SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,  # large enough for texts that do not repeat one token
    "bos_token_id": 1,
    "eos_token_id": None,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
_QWEN_WINDOWS = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2}

# Name -> (prefix of the transformers classes, what differs from _SIZES)
MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama2": ("Llama", {"num_key_value_heads": 4}),
    "llama3.1-tied": ("Llama", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "llama-linear": ("Llama", {"rope_parameters": _LINEAR}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral-windowed": ("Mistral", {"sliding_window": 24}),
    "mistral-full": ("Mistral", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("Qwen2", {}),
    "qwen2-mixed": ("Qwen2", _QWEN_WINDOWS),
    "qwen3": ("Qwen3", {"head_dim": 32}),
}


@dataclass(frozen=True)
class TinyModel:
    """A model directory, and the model that transformers wrote there."""

    path: Path
    reference: Any

    def greedy(self, prompt: list[int], num_new_tokens: int = NUM_NEW_TOKENS) -> list[int]:
        """transformers' own continuation."""
        ids = torch.tensor([prompt])
        out = self.reference.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_new_tokens
        )
        token_ids: list[int] = out[0, len(prompt) :].tolist()
        return token_ids

    @torch.inference_mode()
    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """After each token, float32 [len(token_ids), vocab_size]."""
        logits: torch.Tensor = self.reference(torch.tensor([token_ids])).logits[0]
        return logits.float()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    """Makes the model of a name of MODELS, once a session; half of them in several shards."""

    @cache
    def make(name: str) -> TinyModel:
        torch.manual_seed(sorted(MODELS).index(name))
        family, differences = MODELS[name]
        config = getattr(transformers, f"{family}Config")(**{**_SIZES, **differences})
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith("bias") or parameter.dim() == 1:
                    parameter += 0.2 * torch.randn_like(parameter)  # else zeros and ones, which hide mistakes
        path = tmp_path_factory.mktemp(name)
        is_sharded = sorted(MODELS).index(name) % 2 == 0
        model.save_pretrained(path, max_shard_size="100KB" if is_sharded else "1GB")
        assert (path / "model.safetensors.index.json").exists() == is_sharded
        return TinyModel(path, model)

    return make


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Of unequal lengths, two of them longer than the windows, one longer than a step's token budget."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(2, 128, (n,), generator=generator).tolist() for n in (5, 21, 47, 90)]


def options(path: Path, num_bytes: int | None, block_size: int, changes: dict[str, Any]) -> EngineOptions:
    """Small limits: chunks of at most 40 tokens, four sequences at once."""
    given = {"device": "cpu", "backend": "torch", "max_num_seqs": 4, "max_num_batched_tokens": 40, **changes}
    return EngineOptions(path, cache=CacheOptions(block_size, num_bytes), **given)


@dataclass
class Served:
    """What came of the requests, by (request id, output index)."""

    token_ids: dict[tuple[str, int], list[int]]
    summaries: dict[tuple[str, int], SequenceSummary]
    logprobs: dict[tuple[str, int], list[TokenLogprobs]]
    prompt_logprobs: dict[tuple[str, int], list[TokenLogprobs]]
    stats: SchedulerStats

    @property
    def texts(self) -> list[list[int]]:
        """Token ids in the order of request ids, then outputs."""
        order = sorted(self.token_ids, key=lambda key: (int(key[0]), key[1]))
        return [self.token_ids[key] for key in order]


class Server:
    """An engine, driven by hand through the real scheduler and KV cache manager."""

    def __init__(self, engine: BuiltBackend, max_num_seqs: int = 4, max_num_batched_tokens: int = 40) -> None:
        limits = SchedulerConfig(max_num_seqs, max_num_batched_tokens, engine.model.max_model_len)
        self.engine = engine
        self.kv = KVCacheManager(engine.cache)
        self.scheduler = Scheduler(limits, self.kv)

    def serve(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingParams = SamplingParams(ignore_eos=True),  # noqa: B008 (frozen)
        *,
        num_outputs: int = 1,
        num_new_tokens: int = NUM_NEW_TOKENS,
        steps_in_flight: int = 1,
    ) -> Served:
        """Run the prompts, as requests "0", "1", ..., until all have ended."""
        return self.serve_each(
            [(prompt, sampling) for prompt in prompts],
            num_outputs=num_outputs,
            num_new_tokens=num_new_tokens,
            steps_in_flight=steps_in_flight,
        )

    def serve_each(
        self,
        requests: Sequence[tuple[list[int], SamplingParams]],
        *,
        num_outputs: int = 1,
        num_new_tokens: int = NUM_NEW_TOKENS,
        steps_in_flight: int = 1,
    ) -> Served:
        """The same where each asks for something of its own."""
        for i, (prompt, sampling) in enumerate(requests):
            scores_prompt = sampling.prompt_logprobs is not None
            self.scheduler.add(
                Request(str(i), prompt, num_new_tokens, sampling, num_outputs, scores_prompt=scores_prompt)
            )
        served = Served({}, {}, {}, {}, self.scheduler.stats())
        pending: list[PendingStep] = []
        while self.scheduler.has_work:
            while len(pending) < steps_in_flight and (step := self.scheduler.schedule(now=0.0)):
                pending.append(self.engine.runner.launch(step))
            for output in self.scheduler.update(pending.pop(0).result(), now=0.0):
                _take(served, output)
        while pending:
            self.scheduler.update(pending.pop(0).result(), now=0.0)
        self.kv.check_invariants()
        assert self.kv.num_free_blocks == self.kv.num_blocks
        served.stats = self.scheduler.stats()
        return served


def _take(served: Served, output: SequenceOutput) -> None:
    key = (output.request_id, output.output_index)
    served.token_ids.setdefault(key, []).extend(output.token_ids)
    served.logprobs.setdefault(key, []).extend(output.logprobs)
    served.prompt_logprobs.setdefault(key, []).extend(output.prompt_logprobs)
    if output.summary:
        served.summaries[key] = output.summary


def _block_bytes(path: Path, block_size: int, changes: dict[str, Any]) -> int:
    config = limit_length(load_config(path), changes.get("max_model_len"))
    dtype = choose_dtype(changes.get("dtype", "auto"), config, choose_device(changes.get("device", "cpu")))
    one = KVCacheConfig(1, block_size, group_layers(config.windows))
    return bytes_per_block(one, config.num_kv_heads, config.head_dim, dtype)


@pytest.fixture(scope="session")
def server(tiny_model: Callable[[str], TinyModel]) -> Callable[..., Server]:
    """A fresh engine on the model of that name. num_blocks: of the pool; changes: of EngineOptions."""

    def make(name: str, num_blocks: int | None = None, block_size: int = 16, **changes: Any) -> Server:
        path = tiny_model(name).path
        num_bytes = None if num_blocks is None else num_blocks * _block_bytes(path, block_size, changes)
        return Server(build_backend(options(path, num_bytes, block_size, changes)))

    return make
