"""A checkpoint of random weights in the shape of Llama-3.1-8B, written in seconds."""

import json
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.gpu_tokenizer import write_tokenizer
from engine.model.huggingface import parse_config
from engine.model.weights import WeightSpec, weight_specs

NUM_LAYERS = 32
_NUM_THREADS = 8
_READ_BYTES = 16 << 20


def config_json(num_layers: int) -> dict[str, Any]:
    """config.json as transformers 5 writes it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "dtype": "bfloat16",
        "eos_token_id": [128001, 128008, 128009],
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": num_layers,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_theta": 500000.0,
            "rope_type": "llama3",
        },
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": 128256,
    }


def write_checkpoint(model_dir: Path, num_layers: int, device: torch.device) -> None:
    """A shard for each layer and one for the rest, and a tokenizer, to serve it with.

    config.json comes last, so it says that all is there.
    """
    content = config_json(num_layers)
    shards: dict[int, list[WeightSpec]] = defaultdict(list)
    for spec in weight_specs(parse_config(content, {})):
        shards[0 if spec.layer is None else spec.layer + 1].append(spec)
    model_dir.mkdir(parents=True, exist_ok=True)
    names = {shard: f"model-{shard + 1:05}-of-{len(shards):05}.safetensors" for shard in shards}

    def write(shard: int) -> None:
        tensors = _random_tensors(shards[shard], shard, device)
        save_file(tensors, model_dir / names[shard], metadata={"format": "pt"})

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        list(pool.map(write, shards))
    weight_map = {
        source: names[shard] for shard, specs in shards.items() for spec in specs for source in spec.sources
    }
    index = {"metadata": {}, "weight_map": weight_map}
    (model_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    write_tokenizer(model_dir, content["vocab_size"])
    (model_dir / "config.json").write_text(json.dumps(content, indent=2))


def read_checkpoint(model_dir: Path) -> int:
    """Bytes of the weights, which are in the page cache then."""
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return sum(pool.map(_read, sorted(model_dir.glob("*.safetensors"))))


def _random_tensors(specs: Iterable[WeightSpec], seed: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Matrices of the deviation that Llama is initialised with, norms of ones."""
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for spec in specs:
        for i, source in enumerate(spec.sources):
            tensor = torch.ones(spec.source_shape(i), dtype=torch.bfloat16, device=device)
            if spec.num_columns is not None:
                tensor.normal_(0.0, 0.02, generator=generator)
            tensors[source] = tensor.cpu()
    return tensors


def _read(path: Path) -> int:
    buffer, num_bytes = bytearray(_READ_BYTES), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            num_bytes += count
    return num_bytes
