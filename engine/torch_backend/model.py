"""One forward pass: the decoder's segments with attention over the paged pool between them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.attention.plan import AttentionPlan
from engine.attention.rope import Rotation, inverse_frequencies, rotate, rotation
from engine.model import decoder
from engine.model.config import ModelConfig
from engine.model.weights import ModelWeights
from engine.torch_backend.ops import TorchOps
from kvcache.config import LayerGroup
from kvcache.storage import KVCacheStorage


class LastLayer(NamedTuple):
    """What the last attention leaves of N tokens: attended [N, q_size], residual stream [N, hidden]."""

    attended: torch.Tensor
    residual: torch.Tensor


class TorchModel:
    """Weights and the pool they write into, on one device."""

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights[torch.Tensor],
        storage: KVCacheStorage,
        groups: Sequence[LayerGroup],
    ) -> None:
        self.config = config
        self._ops = TorchOps()
        self._weights = weights
        self._storage = storage
        self._group_of = {layer: i for i, group in enumerate(groups) for layer in group.layers}
        frequencies = inverse_frequencies(config.rope, config.head_dim)
        self._frequencies = frequencies.to(weights.embedding.device)

    def __call__(
        self, token_ids: torch.Tensor, positions: torch.Tensor, plans: Sequence[AttentionPlan]
    ) -> LastLayer:
        """token_ids, positions: int64 [N]. plans: one a layer group."""
        with _attention_backends(token_ids.device):
            return self._compute(token_ids, positions, plans)

    def logits(self, last: LastLayer, index: torch.Tensor) -> torch.Tensor:
        """After the last attention tokens no longer meet: the rest, for some of them alone.

        index: int64 [n]. Returns float32 [n, vocab].
        """
        ops, config, weights = self._ops, self.config, self._weights
        attended, residual = last.attended[index], last.residual[index]
        residual = decoder.after_attention(ops, config, weights.layers[-1], attended, residual)
        return decoder.head(ops, weights, decoder.final_norm(ops, config, weights, residual)).float()

    def _compute(
        self, token_ids: torch.Tensor, positions: torch.Tensor, plans: Sequence[AttentionPlan]
    ) -> LastLayer:
        ops, config, weights = self._ops, self.config, self._weights
        by = rotation(positions, self._frequencies)
        residual = decoder.embed(ops, weights, token_ids)
        attended = residual
        for i, layer in enumerate(weights.layers):
            if i > 0:
                residual = decoder.after_attention(ops, config, weights.layers[i - 1], attended, residual)
            qkv = decoder.before_attention(ops, config, layer, residual)
            attended = self._attend(i, plans[self._group_of[i]], qkv, by)
        return LastLayer(attended, residual)

    def _attend(self, layer: int, plan: AttentionPlan, qkv: torch.Tensor, by: Rotation) -> torch.Tensor:
        """Rotate queries and keys, write keys and values, attend. [N, qkv_size] -> [N, q_size]."""
        num_heads, num_kv_heads = self.config.num_heads, self.config.num_kv_heads
        heads = qkv.view(qkv.shape[0], -1, self.config.head_dim)
        rotated = rotate(heads[:, : num_heads + num_kv_heads], by)
        keys, values = self._storage.layer(layer)
        plan.write(keys, rotated[:, num_heads:])
        plan.write(values, heads[:, num_heads + num_kv_heads :])
        return plan.attend(rotated[:, :num_heads], keys, values)


def _attention_backends(device: torch.device) -> AbstractContextManager[None]:
    """All but cuDNN's: it spends tens of milliseconds on each new shape, and ours keep changing."""
    if device.type == "cpu":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
