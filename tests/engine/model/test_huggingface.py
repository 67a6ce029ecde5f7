"""Reading config.json: both generations of transformers, every architecture, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from engine.errors import ModelError, UnsupportedModelError
from engine.model.config import LinearScaling, Llama3Scaling, RopeConfig
from engine.model.huggingface import load_config, parse_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_llama() -> None:
    config = parse_config({**LLAMA, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16"}, {})
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (4, 4, 2, 16)
    assert (config.q_size, config.kv_size, config.qkv_size) == (64, 32, 128)
    assert config.windows == (None,) * 4
    assert (config.dtype, config.rms_norm_eps, config.max_model_len) == ("bfloat16", 1e-5, 2048)
    assert not any((config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm))
    assert config.rope == RopeConfig(10000.0)


def test_what_llama_1_leaves_out() -> None:
    config = parse_config({key: LLAMA[key] for key in LLAMA if key != "num_key_value_heads"}, {})
    assert config.num_kv_heads == 4
    assert config.dtype == "float32"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rope_theta": 5e5}, RopeConfig(5e5)),
        ({"rope_theta": 5e5, "rope_scaling": None}, RopeConfig(5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, RopeConfig(10000.0, LinearScaling(2.0))),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7}}, RopeConfig(7.0)),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            RopeConfig(5e5, Llama3Scaling(8.0, 1.0, 4.0, 8192)),
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
            RopeConfig(5e5, Llama3Scaling(8.0, 1.0, 4.0, 8192)),
        ),
    ],
)
def test_rope_of_transformers_4_and_5(fields: dict[str, Any], expected: RopeConfig) -> None:
    assert parse_config({**LLAMA, **fields}, {}).rope == expected


@pytest.mark.parametrize(
    ("own", "generation", "expected"),
    [
        (2, {}, (2,)),
        ([2, 7], {}, (2, 7)),
        (None, {}, ()),
        (2, {"eos_token_id": [128001, 128008, 128009]}, (128001, 128008, 128009)),
        (2, {"eos_token_id": 5}, (5,)),
        (2, {"eos_token_id": None}, (2,)),
    ],
)
def test_end_of_sequence_ids(own: Any, generation: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert parse_config({**LLAMA, "eos_token_id": own}, generation).eos_token_ids == expected


@pytest.mark.parametrize(
    ("family", "fields", "windows"),
    [
        ("Mistral", {"sliding_window": 24}, (24,) * 4),
        ("Mistral", {"sliding_window": None}, (None,) * 4),
        ("Mistral", {"sliding_window": 2048}, (None,) * 4),  # never outgrown
        ("Qwen2", {"sliding_window": 24}, (None,) * 4),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 24}, (None,) * 4),  # from layer 28 on
        (
            "Qwen2",
            {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 3},
            (None, None, None, 24),
        ),
        (
            "Qwen3",
            {
                "use_sliding_window": True,
                "sliding_window": 24,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            (24, None, 24, None),
        ),
    ],
)
def test_windows_of_what_transformers_writes(
    family: str, fields: dict[str, Any], windows: tuple[int | None, ...], tmp_path: Path
) -> None:
    config = getattr(transformers, f"{family}Config")(
        **{**LLAMA, "architectures": [f"{family}ForCausalLM"], **fields}
    )
    config.save_pretrained(tmp_path)
    assert load_config(tmp_path).windows == windows
    older = {**LLAMA, "architectures": [f"{family}ForCausalLM"], "max_window_layers": 28, **fields}
    assert parse_config(older, {}).windows == windows


def test_a_shorter_model_drops_windows() -> None:
    mistral = {**LLAMA, "architectures": ["MistralForCausalLM"], "sliding_window": 24}
    config = parse_config(mistral, {})
    assert config.with_max_model_len(24).windows == (None,) * 4
    assert config.with_max_model_len(25).windows == (24,) * 4


@pytest.mark.parametrize(
    ("family", "bias", "expected"),
    [
        ("Llama", True, (True, True)),
        ("Mistral", True, (False, False)),
        ("Qwen2", False, (True, False)),
        ("Qwen3", True, (True, True)),
        ("Qwen3", False, (False, False)),
    ],
)
def test_attention_biases(family: str, bias: bool, expected: tuple[bool, bool]) -> None:
    fields = {**LLAMA, "architectures": [f"{family}ForCausalLM"], "attention_bias": bias}
    config = parse_config(fields, {})
    assert (config.qkv_bias, config.o_bias) == expected
    assert config.qk_norm == (family == "Qwen3")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, ["GPT2LMHeadModel", "LlamaForCausalLM", "Qwen3ForCausalLM"]),
        ({"architectures": None}, ["names none", "MistralForCausalLM"]),
        ({"hidden_act": "gelu"}, ["gelu", "silu"]),
        ({"quantization_config": {"quant_method": "awq"}}, ["awq"]),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, ["auto_map"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ["yarn", "llama3", "linear"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, ["layer type"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, ["partial_rotary_factor", "0.25"]),
        ({"dtype": "float8_e4m3fn"}, ["float8_e4m3fn", "bfloat16"]),
        (
            {"architectures": ["MistralForCausalLM"], "layer_types": ["full_attention"] * 4},
            ["layer_types", "sliding_window"],
        ),
        (
            {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["chunked_attention"] * 4},
            ["chunked_attention", "full_attention"],
        ),
        (
            {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["sliding_attention"] * 4},
            ["sliding_attention"],  # without use_sliding_window
        ),
    ],
)
def test_unsupported(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        parse_config({**LLAMA, **fields}, {})
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_size": None}, "hidden_size=None"),
        ({"vocab_size": "many"}, "vocab_size='many'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"num_attention_heads": True}, "num_attention_heads=True"),
        ({"rms_norm_eps": -1}, "rms_norm_eps=-1"),
        ({"num_key_value_heads": 3}, "3 key/value heads"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor=None"),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "layer_types": ["full_attention"],
            },
            "1 entries for 4 layers",
        ),
    ],
)
def test_malformed_fields(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        parse_config({**LLAMA, **fields}, {})


def test_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: no such file"):
        load_config(tmp_path)
    config = tmp_path / "config.json"
    config.write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: Expecting"):
        load_config(tmp_path)
    config.write_text("[]")
    with pytest.raises(ModelError, match="not a JSON object"):
        load_config(tmp_path)
    config.write_text(json.dumps(LLAMA))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert load_config(tmp_path).eos_token_ids == (3, 4)
