"""The segments of a decoder in one bucket, whichever way they are computed."""

from typing import Protocol

import torch


class Segments(Protocol):
    """All segments (see engine.model.decoder) for a static number of tokens, N, or rows that sample, n.

    Calls enqueue on torch's current stream and can be captured in a CUDA graph: they neither allocate nor
    wait, and the addresses they are given are those that a replay uses. Tensors are contiguous, of the
    model's dtype (token ids: int32); outputs are written whole and never overlap inputs.
    """

    def first(self, token_ids: torch.Tensor, residual_out: torch.Tensor, qkv_out: torch.Tensor) -> None:
        """[N] -> the residual stream [N, hidden], and layer 0's queries, keys and values [N, qkv_size]."""
        ...

    def middle(
        self,
        layer: int,
        attended: torch.Tensor,
        residual: torch.Tensor,
        residual_out: torch.Tensor,
        qkv_out: torch.Tensor,
    ) -> None:
        """After the attention of layer - 1, [N, q_size], up to that of `layer`, 1 <= layer < num_layers."""
        ...

    def last(self, attended: torch.Tensor, residual: torch.Tensor, logits_out: torch.Tensor) -> None:
        """After the last layer's attention, on rows that sample: [n, q_size], [n, hidden] -> [n, vocab]."""
        ...


class ComposedSegments:
    """The last segment in another form than the layers."""

    def __init__(self, layers: Segments, last: Segments) -> None:
        self.first = layers.first
        self.middle = layers.middle
        self.last = last.last
