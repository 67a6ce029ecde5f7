"""A Hugging Face config.json, as written by transformers 4 and 5, read into a ModelConfig.

What is not supported is refused by name: nothing may be computed silently in another way than the model
means.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelError, UnsupportedModelError
from engine.model.config import LinearScaling, Llama3Scaling, ModelConfig, RopeConfig

Json = Mapping[str, Any]
DTYPES = ("float32", "bfloat16", "float16")
ROPE_TYPES = ("default", "linear", "llama3")


def load_config(model_dir: Path) -> ModelConfig:
    """Read config.json, and the end-of-sequence ids of generation_config.json if there are any.

    Raises UnsupportedModelError, or ModelError when a file or a field is missing or malformed.
    """
    generation = model_dir / "generation_config.json"
    return parse_config(
        _read_json(model_dir / "config.json"), _read_json(generation) if generation.exists() else {}
    )


def parse_config(config: Json, generation_config: Json) -> ModelConfig:
    name, architecture = _find_architecture(config)
    _refuse_unsupported(config)
    num_layers = _integer(config, "num_hidden_layers")
    num_heads = _integer(config, "num_attention_heads")
    num_kv_heads = _integer(config, "num_key_value_heads", num_heads)
    hidden_size = _integer(config, "hidden_size")
    head_dim = _integer(config, "head_dim", architecture.head_dim or hidden_size // num_heads)
    if num_heads % num_kv_heads or head_dim % 2:
        raise ModelError(
            f"config.json: {num_heads} heads of {head_dim} columns over {num_kv_heads} key/value heads"
        )
    attention_bias = bool(config.get("attention_bias"))
    max_model_len = _integer(config, "max_position_embeddings")
    return ModelConfig(
        architecture=name,
        vocab_size=_integer(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_integer(config, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_model_len=max_model_len,
        rms_norm_eps=_number(config, "rms_norm_eps", 1e-6),
        rope=_parse_rope(config),
        windows=architecture.windows(config, num_layers),
        dtype=_parse_dtype(config),
        eos_token_ids=_parse_eos(generation_config) or _parse_eos(config),
        tie_word_embeddings=bool(config.get("tie_word_embeddings")),
        qkv_bias=architecture.qkv_bias or (attention_bias and architecture.reads_attention_bias),
        o_bias=attention_bias and architecture.reads_attention_bias,
        mlp_bias=bool(config.get("mlp_bias")) and architecture.reads_mlp_bias,
        qk_norm=architecture.qk_norm,
    ).with_max_model_len(max_model_len)


def _no_windows(config: Json, num_layers: int) -> tuple[int | None, ...]:
    return (None,) * num_layers


def _mistral_windows(config: Json, num_layers: int) -> tuple[int | None, ...]:
    """The same window in every layer; transformers takes 4096 where the field is absent."""
    if "layer_types" in config:
        raise _unsupported("MistralForCausalLM with layer_types", ["one sliding_window for all layers"])
    window = config.get("sliding_window", 4096)
    return (None if window is None else _integer(config, "sliding_window", 4096),) * num_layers


def _qwen_windows(config: Json, num_layers: int) -> tuple[int | None, ...]:
    """layer_types if given, else windows from layer max_window_layers on; none without use_sliding_window."""
    is_windowed = bool(config.get("use_sliding_window")) and config.get("sliding_window", 4096) is not None
    known: dict[str, int | None] = {"full_attention": None}
    if is_windowed:
        known["sliding_attention"] = _integer(config, "sliding_window", 4096)
    types = config.get("layer_types")
    if types is None:
        num_full = config.get("max_window_layers", 28) if is_windowed else num_layers
        types = ["full_attention" if layer < num_full else "sliding_attention" for layer in range(num_layers)]
    if unknown := set(types) - set(known):
        raise _unsupported(f"layer types {', '.join(sorted(unknown))}", list(known))
    if len(types) != num_layers:
        raise ModelError(f"config.json: layer_types has {len(types)} entries for {num_layers} layers")
    return tuple(known[kind] for kind in types)


@dataclass(frozen=True, slots=True)
class _Architecture:
    """How an architecture differs from Llama. head_dim: its default where hidden_size / heads is not."""

    windows: Callable[[Json, int], tuple[int | None, ...]] = _no_windows
    qkv_bias: bool = False
    reads_attention_bias: bool = False
    reads_mlp_bias: bool = False
    qk_norm: bool = False
    head_dim: int | None = None


ARCHITECTURES: Mapping[str, _Architecture] = {
    "LlamaForCausalLM": _Architecture(reads_attention_bias=True, reads_mlp_bias=True),
    "MistralForCausalLM": _Architecture(_mistral_windows),
    "Qwen2ForCausalLM": _Architecture(_qwen_windows, qkv_bias=True),
    "Qwen3ForCausalLM": _Architecture(_qwen_windows, reads_attention_bias=True, qk_norm=True, head_dim=128),
}


def _find_architecture(config: Json) -> tuple[str, _Architecture]:
    names = config.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            return name, ARCHITECTURES[name]
    given = ", ".join(map(str, names)) or "(config.json names none)"
    raise _unsupported(f"architecture {given}", ARCHITECTURES)


def _refuse_unsupported(config: Json) -> None:
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise _unsupported(f"activation {activation!r}", ["silu"])
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "of an unnamed method")
        raise _unsupported(f"quantization {method}", ["unquantized checkpoints"])
    if "AutoModelForCausalLM" in (config.get("auto_map") or {}):
        raise _unsupported("a model with code of its own (auto_map)", ARCHITECTURES)


def _parse_rope(config: Json) -> RopeConfig:
    """transformers 5: rope_parameters with everything. transformers 4: rope_theta and rope_scaling."""
    rope: Json = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise _unsupported("RoPE parameters by layer type", ["the same for all layers"])
    for source in (rope, config):
        if source.get("partial_rotary_factor", 1.0) != 1.0:
            raise _unsupported(f"partial_rotary_factor {source['partial_rotary_factor']}", ["1.0"])
    theta = _number(rope if "rope_theta" in rope else config, "rope_theta", 10000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta)
    if kind == "linear":
        return RopeConfig(theta, LinearScaling(_number(rope, "factor")))
    if kind == "llama3":
        low, high = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
        original = _integer(rope, "original_max_position_embeddings")
        return RopeConfig(theta, Llama3Scaling(_number(rope, "factor"), low, high, original))
    raise _unsupported(f"RoPE scaling {kind!r}", ROPE_TYPES)


def _parse_dtype(config: Json) -> str:
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    if dtype not in DTYPES:
        raise _unsupported(f"dtype {dtype}", DTYPES)
    return dtype


def _parse_eos(config: Json) -> tuple[int, ...]:
    ids = config.get("eos_token_id")
    if ids is None:
        return ()
    ids = ids if isinstance(ids, list) else [ids]
    if not all(isinstance(token_id, int) and token_id >= 0 for token_id in ids):
        raise ModelError(f"eos_token_id={ids}: must be a token id or a list of them")
    return tuple(ids)


def _unsupported(what: str, supported: Iterable[str]) -> UnsupportedModelError:
    return UnsupportedModelError(f"{what} is not supported; supported: {', '.join(supported)}")


def _read_json(path: Path) -> Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; a model directory needs a config.json") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: not a JSON object")
    return content


def _integer(config: Json, field: str, default: int | None = None) -> int:
    value = config.get(field)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"config.json: {field}={value!r}: must be a positive integer")
    return value


def _number(config: Json, field: str, default: float | None = None) -> float:
    value = config.get(field)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ModelError(f"config.json: {field}={value!r}: must be a positive number")
    return float(value)
