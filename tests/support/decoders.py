"""Configurations and random weights of the tiny models of every architecture, without a checkpoint."""

from dataclasses import dataclass, fields
from typing import Any

import torch
import transformers

from engine.model.config import ModelConfig
from engine.model.huggingface import parse_config
from engine.model.weights import LayerWeights, ModelWeights, weight_specs
from tests.engine.conftest import _SIZES, MODELS


@dataclass(frozen=True)
class Decoder:
    config: ModelConfig
    weights: ModelWeights[torch.Tensor]


def model_config(name: str) -> ModelConfig:
    """Of a name of MODELS."""
    family, differences = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**{**_SIZES, **differences})
    return parse_config({**config.to_dict(), "architectures": [f"{family}ForCausalLM"]}, {})


def random_decoder(config: ModelConfig, dtype: torch.dtype, device: str, seed: int = 0) -> Decoder:
    """Matrices that keep the size of what they multiply; vectors (norms, biases) around 0.5."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[dict[str, Any]] = [{} for _ in range(config.num_layers)]
    outside: dict[str, Any] = {}
    for spec in weight_specs(config):
        weight = torch.randn(spec.shape, generator=generator)
        weight = weight / spec.shape[-1] ** 0.5 if len(spec.shape) == 2 else 0.5 + 0.2 * weight
        (outside if spec.layer is None else layers[spec.layer])[spec.field] = weight.to(device, dtype)
    outside.setdefault("head", outside["embedding"])
    return Decoder(config, ModelWeights(layers=tuple(LayerWeights(**layer) for layer in layers), **outside))


def converted(decoder: Decoder, dtype: torch.dtype) -> Decoder:
    """The same weights in a wider dtype, to compute what is exact."""
    weights = decoder.weights

    def layer(each: LayerWeights[torch.Tensor]) -> LayerWeights[torch.Tensor]:
        values = {field.name: getattr(each, field.name) for field in fields(each)}
        return LayerWeights(**{name: None if v is None else v.to(dtype) for name, v in values.items()})

    outside = (weights.embedding, weights.final_norm, weights.head)
    embedding, final_norm, head = (weight.to(dtype) for weight in outside)
    layers = tuple(map(layer, weights.layers))
    return Decoder(decoder.config, ModelWeights(embedding, layers, final_norm, head))
