"""A model's weights as records, generic in the tensor type, and where in a checkpoint each comes from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic

from engine.model.config import ModelConfig
from engine.model.ops import TensorT


@dataclass(frozen=True, slots=True)
class LayerWeights(Generic[TensorT]):
    """H hidden, I intermediate, D head columns; Q and KV columns of all query and of all key (value) heads.

    qkv holds the rows of q, k and v one after the other, gate_up those of gate and up, each contiguous: a
    backend may take the parts by address.
    """

    input_norm: TensorT  # [H]
    qkv: TensorT  # [Q + 2 KV, H]
    o: TensorT  # [H, Q]
    post_attention_norm: TensorT  # [H]
    gate_up: TensorT  # [2 I, H]
    down: TensorT  # [H, I]
    qkv_bias: TensorT | None = None  # [Q + 2 KV]
    o_bias: TensorT | None = None  # [H]
    gate_up_bias: TensorT | None = None  # [2 I]
    down_bias: TensorT | None = None  # [H]
    q_norm: TensorT | None = None  # [D]
    k_norm: TensorT | None = None  # [D]


@dataclass(frozen=True, slots=True)
class ModelWeights(Generic[TensorT]):
    embedding: TensorT  # [vocab, H]
    layers: tuple[LayerWeights[TensorT], ...]
    final_norm: TensorT  # [H]
    head: TensorT  # [vocab, H]; the embedding itself where they are tied


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """One weight and the checkpoint's tensors that it is stacked from, along the first dimension.

    layer: None for those outside the layers. sources: tensor names. num_rows: rows of each source.
    num_columns: None for vectors.
    """

    layer: int | None
    field: str
    sources: tuple[str, ...]
    num_rows: tuple[int, ...]
    num_columns: int | None = None

    def source_shape(self, index: int) -> tuple[int, ...]:
        return self._shape(self.num_rows[index])

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape(sum(self.num_rows))

    def _shape(self, num_rows: int) -> tuple[int, ...]:
        return (num_rows,) if self.num_columns is None else (num_rows, self.num_columns)


def weight_specs(config: ModelConfig) -> Iterator[WeightSpec]:
    """Every weight of the model, under the names that transformers gives the tensors of these
    architectures.
    """
    hidden = config.hidden_size
    yield WeightSpec(None, "embedding", ("model.embed_tokens.weight",), (config.vocab_size,), hidden)
    for layer in range(config.num_layers):
        yield from _layer_specs(config, layer)
    yield WeightSpec(None, "final_norm", ("model.norm.weight",), (hidden,))
    if not config.tie_word_embeddings:
        yield WeightSpec(None, "head", ("lm_head.weight",), (config.vocab_size,), hidden)


def _layer_specs(config: ModelConfig, layer: int) -> Iterator[WeightSpec]:
    hidden, intermediate = config.hidden_size, config.intermediate_size
    qkv_rows = (config.q_size, config.kv_size, config.kv_size)
    qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    gate_up = ("mlp.gate_proj", "mlp.up_proj")

    def spec(
        field: str, modules: tuple[str, ...], rows: tuple[int, ...], columns: int | None, kind: str
    ) -> WeightSpec:
        names = tuple(f"model.layers.{layer}.{module}.{kind}" for module in modules)
        return WeightSpec(layer, field, names, rows, columns)

    yield spec("input_norm", ("input_layernorm",), (hidden,), None, "weight")
    yield spec("qkv", qkv, qkv_rows, hidden, "weight")
    yield spec("o", ("self_attn.o_proj",), (hidden,), config.q_size, "weight")
    yield spec("post_attention_norm", ("post_attention_layernorm",), (hidden,), None, "weight")
    yield spec("gate_up", gate_up, (intermediate, intermediate), hidden, "weight")
    yield spec("down", ("mlp.down_proj",), (hidden,), intermediate, "weight")
    if config.qkv_bias:
        yield spec("qkv_bias", qkv, qkv_rows, None, "bias")
    if config.o_bias:
        yield spec("o_bias", ("self_attn.o_proj",), (hidden,), None, "bias")
    if config.mlp_bias:
        yield spec("gate_up_bias", gate_up, (intermediate, intermediate), None, "bias")
        yield spec("down_bias", ("mlp.down_proj",), (hidden,), None, "bias")
    if config.qk_norm:
        yield spec("q_norm", ("self_attn.q_norm",), (config.head_dim,), None, "weight")
        yield spec("k_norm", ("self_attn.k_norm",), (config.head_dim,), None, "weight")


def num_parameters(config: ModelConfig) -> int:
    """Weights of the model, tied ones counted once."""
    return sum(sum(spec.num_rows) * (spec.num_columns or 1) for spec in weight_specs(config))
