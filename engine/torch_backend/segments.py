"""The segments of a decoder on torch tensors: what the other forms are compared with, and fall back to."""

import torch

from engine.model import decoder
from engine.model.config import ModelConfig
from engine.model.weights import ModelWeights
from engine.torch_backend.ops import TorchOps


class TorchSegments:
    """engine.tensorrt_backend.forms.Segments for any number of tokens. It allocates: capture it in a graph
    that has a memory pool of its own."""

    def __init__(self, config: ModelConfig, weights: ModelWeights[torch.Tensor]) -> None:
        self._ops = TorchOps()
        self._config = config
        self._weights = weights

    def first(self, token_ids: torch.Tensor, residual_out: torch.Tensor, qkv_out: torch.Tensor) -> None:
        residual_out.copy_(decoder.embed(self._ops, self._weights, token_ids))
        layer = self._weights.layers[0]
        qkv_out.copy_(decoder.before_attention(self._ops, self._config, layer, residual_out))

    def middle(
        self,
        layer: int,
        attended: torch.Tensor,
        residual: torch.Tensor,
        residual_out: torch.Tensor,
        qkv_out: torch.Tensor,
    ) -> None:
        ops, config, layers = self._ops, self._config, self._weights.layers
        residual_out.copy_(decoder.after_attention(ops, config, layers[layer - 1], attended, residual))
        qkv_out.copy_(decoder.before_attention(ops, config, layers[layer], residual_out))

    def last(self, attended: torch.Tensor, residual: torch.Tensor, logits_out: torch.Tensor) -> None:
        ops, config, weights = self._ops, self._config, self._weights
        residual = decoder.after_attention(ops, config, weights.layers[-1], attended, residual)
        logits_out.copy_(decoder.head(ops, weights, decoder.final_norm(ops, config, weights, residual)))
