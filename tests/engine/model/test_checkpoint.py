"""Checkpoints: what is stacked where, and everything that can be wrong with one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.errors import CheckpointError
from engine.model.checkpoint import load_weights
from engine.model.config import ModelConfig, RopeConfig
from engine.model.weights import num_parameters, weight_specs

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=48,
    hidden_size=16,
    intermediate_size=20,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    max_model_len=64,
    rms_norm_eps=1e-5,
    rope=RopeConfig(10000.0),
    windows=(None, None),
    qkv_bias=True,
    qk_norm=True,
)
CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def tensors() -> Tensors:
    """What a checkpoint of CONFIG holds."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(spec.source_shape(i), generator=generator)
        for spec in weight_specs(CONFIG)
        for i, name in enumerate(spec.sources)
    }


def save(tensors: Tensors, path: Path) -> None:
    save_file(tensors, path / "model.safetensors")


def load(path: Path, config: ModelConfig = CONFIG, dtype: torch.dtype = torch.float32) -> object:
    return load_weights(path, config, device=CPU, dtype=dtype)


def failure(path: Path, config: ModelConfig = CONFIG) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path, config)
    return str(caught.value)


def test_rows_are_stacked_in_checkpoint_order(tensors: Tensors, tmp_path: Path) -> None:
    save(tensors, tmp_path)
    weights = load_weights(tmp_path, CONFIG, device=CPU, dtype=torch.float32)
    layer, prefix = weights.layers[1], "model.layers.1."
    projections = [tensors[f"{prefix}self_attn.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(layer.qkv, torch.cat(projections))
    assert layer.qkv.is_contiguous()
    assert layer.qkv_bias is not None
    assert torch.equal(
        layer.qkv_bias, torch.cat([tensors[f"{prefix}self_attn.{name}_proj.bias"] for name in "qkv"])
    )
    mlp = [tensors[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(layer.gate_up, torch.cat(mlp))
    assert torch.equal(weights.head, tensors["lm_head.weight"])
    assert layer.o_bias is None
    assert num_parameters(CONFIG) == sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("keep_head", [False, True])
def test_tied_embeddings(tensors: Tensors, tmp_path: Path, keep_head: bool) -> None:
    if not keep_head:
        del tensors["lm_head.weight"]
    save(tensors, tmp_path)
    config = replace(CONFIG, tie_word_embeddings=True)
    weights = load_weights(tmp_path, config, device=CPU, dtype=torch.float32)
    assert weights.head is weights.embedding


def test_dtype_is_converted_and_progress_ends_at_the_total(tensors: Tensors, tmp_path: Path) -> None:
    save({name: tensor.bfloat16() for name, tensor in tensors.items()}, tmp_path)
    seen: list[tuple[int, int]] = []
    weights = load_weights(
        tmp_path, CONFIG, device=CPU, dtype=torch.float32, progress=lambda *sizes: seen.append(sizes)
    )
    assert weights.embedding.dtype == torch.float32
    assert torch.equal(weights.embedding, tensors["model.embed_tokens.weight"].bfloat16().float())
    assert len(seen) == len(tensors)
    assert seen[-1] == (2 * num_parameters(CONFIG),) * 2
    assert seen == sorted(seen)


def test_shards(tensors: Tensors, tmp_path: Path) -> None:
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    weights = load_weights(tmp_path, CONFIG, device=CPU, dtype=torch.float32)
    assert torch.equal(weights.final_norm, tensors["model.norm.weight"])
    (tmp_path / "b.safetensors").unlink()
    assert "b.safetensors" in failure(tmp_path)


def test_all_that_is_wrong_is_told_at_once(tensors: Tensors, tmp_path: Path) -> None:
    del tensors["model.norm.weight"]
    for layer in range(2):
        del tensors[f"model.layers.{layer}.self_attn.k_proj.weight"]
        tensors[f"model.layers.{layer}.self_attn.gate.weight"] = torch.zeros(1)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(16, 20)
    tensors["lm_head.weight"] = torch.zeros(48, 16, dtype=torch.int8)
    save(tensors, tmp_path)
    message = failure(tmp_path)
    assert message.splitlines()[1:] == [
        "missing (3):",
        "  model.layers.*.self_attn.k_proj.weight (* = 0, 1)",
        "  model.norm.weight",
        "unexpected (2):",
        "  model.layers.*.self_attn.gate.weight (* = 0, 1)",
        "wrong (2):",
        "  model.layers.*.mlp.up_proj.weight has shape [16, 20], expected [20, 16] (* = 1)",
        "  lm_head.weight has dtype I8, expected one of F32, BF16, F16",
    ]


def test_computed_buffers_are_ignored(tensors: Tensors, tmp_path: Path) -> None:
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2)
    save(tensors, tmp_path)
    load(tmp_path)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _garble(file: Path) -> None:
    file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [_truncate, _garble, _empty])
def test_damaged_files(damage: Callable[[Path], None], tensors: Tensors, tmp_path: Path) -> None:
    save(tensors, tmp_path)
    damage(tmp_path / "model.safetensors")
    assert "model.safetensors: corrupt or truncated" in failure(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_damaged_index(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert "not a checkpoint's index" in failure(tmp_path)


def test_pickle_is_refused_with_advice(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert "save_pretrained" in failure(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    assert "neither model.safetensors nor" in failure(tmp_path)
