"""The segments of a decoder (see engine.model.decoder) as networks: their tensors, and how weights are bound.

All weights are inputs, so one plan serves every layer, and a layer is a list of addresses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

import torch

from engine.model import decoder
from engine.model.config import ModelConfig
from engine.model.weights import LayerWeights, ModelWeights, weight_specs
from engine.tensorrt_backend.library import Library
from engine.tensorrt_backend.network import NetworkOps, Stacked

TOKENS = -1
"""In a shape: the bucket's number of tokens (or of rows that sample)."""

_ALIGNMENT = 256  # bytes, of an address that is bound


class SegmentKind(Enum):
    """FIRST: up to the first attention. MIDDLE: between two attentions. LAST: from the last one to logits."""

    FIRST = "first"
    MIDDLE = "middle"
    LAST = "last"


class SegmentForm(Enum):
    """How the MLP is written; which is fastest depends on the device and the bucket.

    FUSED: gate and up as one matrix product. APART: as two. *_MARKED: the products that are added to the
    residual stream are outputs of the plan as well, which keeps the library from adding within the matrix
    product: a kernel that does runs at half the memory bandwidth at 4 to 16 tokens.
    """

    FUSED = "fused"
    APART = "apart"
    FUSED_MARKED = "fused-marked"
    APART_MARKED = "apart-marked"

    @property
    def is_apart(self) -> bool:
        return self in (SegmentForm.APART, SegmentForm.APART_MARKED)

    @property
    def is_marked(self) -> bool:
        return self in (SegmentForm.FUSED_MARKED, SegmentForm.APART_MARKED)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a plan. shape: TOKENS where a bucket decides."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def shape_of(self, bucket: int) -> tuple[int, ...]:
        return tuple(bucket if size == TOKENS else size for size in self.shape)


@dataclass(frozen=True, slots=True)
class SegmentSpec:
    """A segment of a model in one form: everything that its network is made from.

    Inputs, N tokens of a bucket:

        FIRST   token_ids int32 [N]                         -> residual_out [N, hidden], qkv_out [N, qkv_size]
        MIDDLE  attended [N, q_size], residual [N, hidden]  -> residual_out, qkv_out
        LAST    attended, residual                          -> logits [N, vocab]

    then the weights, under the names of engine.model.weights; gate_up and its bias are `gate`, `up`,
    `gate_bias`, `up_bias` where they are apart. Marked forms also put out o_out and down_out, [N, hidden].
    """

    kind: SegmentKind
    form: SegmentForm
    config: ModelConfig
    dtype: torch.dtype
    activations: tuple[TensorSpec, ...]
    weights: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    scratch: tuple[TensorSpec, ...]  # outputs that nobody reads

    @property
    def name(self) -> str:
        """Of the kind, the form and the dtype, for files and messages."""
        form = () if self.kind is SegmentKind.FIRST else (self.form.value,)
        return "-".join((self.kind.value, *form, str(self.dtype).removeprefix("torch.")))


_AFTER = ("o", "o_bias", "post_attention_norm", "gate_up", "gate_up_bias", "down", "down_bias")
_BEFORE = ("input_norm", "qkv", "qkv_bias", "q_norm", "k_norm")
_FIELDS = {
    SegmentKind.FIRST: ("embedding", *_BEFORE),
    SegmentKind.MIDDLE: (*_AFTER, *_BEFORE),
    SegmentKind.LAST: (*_AFTER, "final_norm", "head"),
}
_PARTS = {"gate_up": ("gate", "up"), "gate_up_bias": ("gate_bias", "up_bias")}


def segment_spec(
    kind: SegmentKind, config: ModelConfig, dtype: torch.dtype, form: SegmentForm = SegmentForm.FUSED
) -> SegmentSpec:
    """The form matters to MIDDLE and LAST only; FIRST is always FUSED."""
    form = SegmentForm.FUSED if kind is SegmentKind.FIRST else form

    def tensor(name: str, *shape: int) -> TensorSpec:
        return TensorSpec(name, dtype, shape)

    hidden = config.hidden_size
    activations = [tensor("attended", TOKENS, config.q_size), tensor("residual", TOKENS, hidden)]
    outputs = [tensor("residual_out", TOKENS, hidden), tensor("qkv_out", TOKENS, config.qkv_size)]
    if kind is SegmentKind.FIRST:
        activations = [TensorSpec("token_ids", torch.int32, (TOKENS,))]
    elif kind is SegmentKind.LAST:
        outputs = [tensor("logits", TOKENS, config.vocab_size)]
    scratch = (tensor("o_out", TOKENS, hidden), tensor("down_out", TOKENS, hidden))
    return SegmentSpec(
        kind=kind,
        form=form,
        config=config,
        dtype=dtype,
        activations=tuple(activations),
        weights=_weight_tensors(kind, config, dtype, form),
        outputs=tuple(outputs),
        scratch=scratch if form.is_marked else (),
    )


def _weight_tensors(
    kind: SegmentKind, config: ModelConfig, dtype: torch.dtype, form: SegmentForm
) -> tuple[TensorSpec, ...]:
    shapes = {spec.field: spec.shape for spec in weight_specs(config)}
    shapes.setdefault("head", shapes["embedding"])
    tensors = []
    for field in (field for field in _FIELDS[kind] if field in shapes):
        rows, *columns = shapes[field]
        if form.is_apart and field in _PARTS:
            tensors += [TensorSpec(part, dtype, (rows // 2, *columns)) for part in _PARTS[field]]
        else:
            tensors.append(TensorSpec(field, dtype, (rows, *columns)))
    return tuple(tensors)


def define(library: Library, network: Any, spec: SegmentSpec) -> None:
    """Add the segment's inputs, layers and outputs to an empty network. Raises TensorRTError."""
    inputs = {tensor.name: _add_input(library, network, tensor) for tensor in spec.activations + spec.weights}
    ops = NetworkOps(library, network, marks_addends=spec.form.is_marked)
    outputs = [*_compute(ops, spec, inputs), *ops.addends]
    for tensor, output in zip(spec.outputs + spec.scratch, outputs, strict=True):
        output.name = tensor.name
        network.mark_output(output)


def _add_input(library: Library, network: Any, tensor: TensorSpec) -> Any:
    added = library.check(
        network.add_input(tensor.name, library.dtype(tensor.dtype), tensor.shape), f"adding {tensor.name}"
    )
    if tensor.shape[0] == TOKENS:
        added.set_dimension_name(0, "tokens")  # the same number in all inputs
    return added


def _compute(ops: NetworkOps, spec: SegmentSpec, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    config = spec.config
    layer, weights = _records(inputs)
    if spec.kind is SegmentKind.FIRST:
        residual = decoder.embed(ops, weights, inputs["token_ids"])
        return residual, decoder.before_attention(ops, config, layer, residual)
    residual = decoder.after_attention(ops, config, layer, inputs["attended"], inputs["residual"])
    if spec.kind is SegmentKind.MIDDLE:
        # One record holds the weights of two layers: what follows one attention and what precedes the next
        # have no field in common.
        return residual, decoder.before_attention(ops, config, layer, residual)
    return (decoder.head(ops, weights, decoder.final_norm(ops, config, weights, residual)),)


def _records(inputs: Mapping[str, Any]) -> tuple[LayerWeights[Any], ModelWeights[Any]]:
    """The inputs as the decoder's records; None where this segment has no such weight."""
    stacked = {
        field: Stacked(tuple(inputs[part] for part in parts))
        for field, parts in _PARTS.items()
        if parts[0] in inputs
    }
    given = {**inputs, **stacked}
    layer = LayerWeights(**{field.name: given.get(field.name) for field in fields(LayerWeights)})
    outside = {name: given.get(name) for name in ("embedding", "final_norm", "head")}
    return layer, ModelWeights(layers=(), **outside)


def bind_weights(
    spec: SegmentSpec, weights: ModelWeights[torch.Tensor], layer: int
) -> tuple[tuple[str, torch.Tensor], ...]:
    """The tensors to bind to the segment's weights: (name, tensor), to be kept while the plan runs.

    layer: of a MIDDLE segment, the layer whose attention it leads to, 1 <= layer < num_layers; of a FIRST
    one 0, of a LAST one num_layers. gate and up are views of gate_up, unless their address would not be
    aligned: then copies.
    """
    sources: dict[str, torch.Tensor] = {
        "embedding": weights.embedding,
        "final_norm": weights.final_norm,
        "head": weights.head,
    }
    if spec.kind is not SegmentKind.FIRST:
        sources |= _fields(weights.layers[layer - 1], _AFTER)
    if spec.kind is not SegmentKind.LAST:
        sources |= _fields(weights.layers[layer], _BEFORE)
    for field, parts in _PARTS.items():
        if field in sources:
            sources |= zip(parts, map(_aligned, sources[field].chunk(2)), strict=True)
    return tuple((tensor.name, sources[tensor.name]) for tensor in spec.weights)


def _fields(layer: LayerWeights[torch.Tensor], names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    given = ((name, getattr(layer, name)) for name in names)
    return {name: tensor for name, tensor in given if tensor is not None}


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()
