"""One forward pass: the decoder's segments with attention over the paged pool between them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

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
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        plans: Sequence[AttentionPlan],
        sample_index: torch.Tensor,
    ) -> torch.Tensor:
        """token_ids, positions: int64 [N]. plans: one a layer group. sample_index: int64 [n], tokens to
        sample after. Returns logits, float32 [n, vocab]."""
        with _attention_backends(token_ids.device):
            return self._compute(token_ids, positions, plans, sample_index)

    def _compute(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        plans: Sequence[AttentionPlan],
        sample_index: torch.Tensor,
    ) -> torch.Tensor:
        ops, config, weights = self._ops, self.config, self._weights
        by = rotation(positions, self._frequencies)
        residual = decoder.embed(ops, weights, token_ids)
        last = config.num_layers - 1
        for i, layer in enumerate(weights.layers):
            qkv = decoder.before_attention(ops, config, layer, residual)
            attended = self._attend(i, plans[self._group_of[i]], qkv, by)
            if i == last:  # from here on tokens no longer meet, and the others are of no use
                attended, residual = attended[sample_index], residual[sample_index]
            residual = decoder.after_attention(ops, config, layer, attended, residual)
        hidden = decoder.final_norm(ops, config, weights, residual)
        return decoder.head(ops, weights, hidden).float()

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
