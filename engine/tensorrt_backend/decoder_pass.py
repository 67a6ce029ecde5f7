"""One pass through the decoder for a bucket: segments, and attention over the paged pool between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.attention.kernels import PagedAttention
from engine.tensorrt_backend.forms import Segments
from engine.tensorrt_backend.step_buffers import StepBuffers
from kvcache.config import LayerGroup
from kvcache.storage import KVCacheStorage


@dataclass(frozen=True, slots=True)
class StepTokens:
    """The N tokens of a step on the device, N being a bucket. All int32.

    rows, positions: [N], -1 in padding. token_ids: [N]. The first num_lone tokens attend alone, the others in
    tiles [num_tiles, 2] (see PagedAttention.begin).
    """

    rows: torch.Tensor
    positions: torch.Tensor
    token_ids: torch.Tensor
    num_lone: int
    tiles: torch.Tensor | None = None


class DecoderPass:
    """Enqueues passes on the current stream. Neither allocates nor waits, so it can be captured in a graph.

    attention: one for each layer group.
    """

    def __init__(
        self,
        buffers: StepBuffers,
        storage: KVCacheStorage,
        groups: Sequence[LayerGroup],
        attention: Sequence[PagedAttention],
    ) -> None:
        self._buffers = buffers
        self._storage = storage
        self._attention = attention
        self._group_of = {layer: i for i, group in enumerate(groups) for layer in group.layers}

    @property
    def num_layers(self) -> int:
        return len(self._group_of)

    def layers(self, segments: Segments, tokens: StepTokens) -> torch.Tensor:
        """Up to the last attention. Leaves the attended values in the buffers, returns the residual stream,
        [N, hidden].
        """
        buffers, num_tokens = self._buffers, len(tokens.rows)
        qkv, attended = buffers.qkv[:num_tokens], buffers.attended[:num_tokens]
        streams = [residual[:num_tokens] for residual in buffers.residuals]
        attention = [
            group.begin(tokens.rows, tokens.positions, tokens.tiles, tokens.num_lone)
            for group in self._attention
        ]
        segments.first(tokens.token_ids, streams[0], qkv)
        for layer in range(self.num_layers):
            if layer > 0:
                segments.middle(layer, attended, streams[(layer - 1) % 2], streams[layer % 2], qkv)
            keys, values = self._storage.layer(layer)
            attention[self._group_of[layer]].attend(qkv, keys, values, attended)
        return streams[(self.num_layers - 1) % 2]

    def logits(self, segments: Segments, residual: torch.Tensor) -> torch.Tensor:
        """Of all tokens of `layers`: [N, hidden] -> [N, vocab]. For steps that only decode."""
        num_tokens = len(residual)
        logits = self._buffers.logits[:num_tokens]
        segments.last(self._buffers.attended[:num_tokens], residual, logits)
        return logits

    def sampled_logits(self, segments: Segments, residual: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Of some tokens of `layers`: index, int32 [n], n being the bucket of `segments`. -> [n, vocab]."""
        buffers, num_samples = self._buffers, len(index)
        attended, last = buffers.last_attended[:num_samples], buffers.last_residual[:num_samples]
        torch.index_select(buffers.attended, 0, index, out=attended)
        torch.index_select(residual, 0, index, out=last)
        logits = buffers.logits[:num_samples]
        segments.last(attended, last, logits)
        return logits
