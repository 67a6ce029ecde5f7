"""Where each token of a step writes and reads in the pool: index tensors, made once a step per layer group.

The pool's tensors are [num_blocks, num_kv_heads, block_size, head_dim]. Seen as rows of head_dim columns,
token t of head h of block b is *line* (b * num_kv_heads + h) * block_size + t.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from engine.attention.chunk import ChunkTokens
from engine.attention.layout import ChunkSpan, StepLayout, split_by_width
from engine.attention.lone import Contexts, GatheredTokens, Piece, SampledTokens, can_sample

# One more group of lone tokens costs a few calls a layer, as much as attending over this much padding, in
# (query head, key) pairs. Measured on two CPU cores, and on an H100.
_SPLIT_COST_CPU = 1 << 14
_SPLIT_COST_GPU = 1 << 20


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """The heads of a layer, and the pool they attend over."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_blocks: int
    block_size: int

    @property
    def num_lines(self) -> int:
        return self.num_blocks * self.num_kv_heads * self.block_size


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """One layer group's part of a step of N packed tokens.

    write_lines: int64 [N * num_kv_heads], where each token's keys and values go. pieces: in packed order.
    """

    write_lines: torch.Tensor
    pieces: tuple[Piece, ...]

    def write(self, pool: torch.Tensor, heads: torch.Tensor) -> None:
        """heads: [N, num_kv_heads, head_dim], of the pool's dtype."""
        head_dim = pool.shape[-1]
        pool.view(-1, head_dim).index_copy_(0, self.write_lines, heads.reshape(-1, head_dim))

    def attend(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """q: [N, num_heads, head_dim] -> [N, num_heads * head_dim]."""
        parts = [piece.attend(q[piece.start : piece.end], keys, values) for piece in self.pieces]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(len(q), -1)


class Planner:
    """Makes the plans of one layer group, on one device."""

    def __init__(
        self,
        shape: AttentionShape,
        window: int | None,
        device: torch.device,
        dtype: torch.dtype,
        *,
        gather: bool = False,
    ) -> None:
        """gather: take the portable form for lone tokens, whatever the device has."""
        assert shape.num_lines < 1 << 31, "lines are counted in 32 bits"
        self._shape = shape
        self._window = window
        self._device = device
        self._is_sampled = not gather and can_sample(device, dtype)
        self._in_block = self._arange(shape.block_size)
        self._zero = torch.tensor(0.0, dtype=dtype, device=device)
        self._minus_infinity = torch.tensor(-math.inf, dtype=dtype, device=device)
        self._kv_offsets = self._arange(shape.num_kv_heads) * shape.block_size
        repeats = shape.num_heads // shape.num_kv_heads if self._is_sampled else 1
        self._line_offsets = self._kv_offsets.repeat_interleave(repeats)[:, None]

    def plan(
        self, layout: StepLayout, rows: torch.Tensor, positions: torch.Tensor, table: torch.Tensor
    ) -> AttentionPlan:
        """rows, positions: layout's, int64 [N], on the device. table: int32 [rows, max_blocks], block ids."""
        make = SampledTokens if self._is_sampled else GatheredTokens
        lone = [make(self._contexts(*span, rows, positions, table)) for span in self._spans(layout)]
        chunks = [self._chunk(part, table) for chunk in layout.chunks for part in chunk.split()]
        return AttentionPlan(self._write_lines(rows, positions, table), (*lone, *chunks))

    def _arange(self, end: int) -> torch.Tensor:
        return torch.arange(end, dtype=torch.int32, device=self._device)

    def _write_lines(self, rows: torch.Tensor, positions: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        size = self._shape.block_size
        blocks = table[rows, positions // size].long()
        lines = blocks * (self._shape.num_kv_heads * size) + positions % size
        return (lines[:, None] + self._kv_offsets).view(-1)

    def _spans(self, layout: StepLayout) -> list[tuple[int, int, int]]:
        """(start, end, most blocks that one of its tokens sees) of the lone tokens, by similar width."""
        size = self._shape.block_size
        last = layout.positions[: layout.num_lone]
        first = np.zeros_like(last) if self._window is None else np.maximum(last - self._window + 1, 0)
        # With a window the number rises and falls by one along the tokens: take the most so far.
        num_blocks = np.maximum.accumulate(last // size - first // size + 1)
        split_cost = _SPLIT_COST_CPU if self._device.type == "cpu" else _SPLIT_COST_GPU
        spans = split_by_width(num_blocks * size, self._shape.num_heads, split_cost)
        return [(start, end, int(num_blocks[end - 1])) for start, end in spans]

    def _contexts(
        self,
        start: int,
        end: int,
        num_blocks: int,
        rows: torch.Tensor,
        positions: torch.Tensor,
        table: torch.Tensor,
    ) -> Contexts:
        size, num_kv_heads = self._shape.block_size, self._shape.num_kv_heads
        last = positions[start:end, None]  # [n, 1]
        seen = self._arange(num_blocks * size)
        if self._window is None:
            blocks = table.index_select(0, rows[start:end])[:, :num_blocks]
            unseen, own = seen > last, last
        else:
            first = (last - self._window + 1).clamp_(min=0)
            first_block = first // size
            entries = torch.minimum(first_block + self._arange(num_blocks), last // size)
            blocks = table[rows[start:end, None], entries]
            own = last - first_block * size
            unseen = (seen > own) | (seen < first - first_block * size)
        lines = (blocks * (num_kv_heads * size))[:, :, None] + self._in_block
        lines = lines.view(end - start, -1)  # [n, S]
        lines = torch.where(unseen, lines.gather(1, own), lines)
        lines = lines[:, None] + self._line_offsets  # [n, heads, S]
        return Contexts(start, end, lines, self._mask(unseen)[:, None], self._shape.num_lines)

    def _chunk(self, chunk: ChunkSpan, table: torch.Tensor) -> ChunkTokens:
        size, num_kv_heads = self._shape.block_size, self._shape.num_kv_heads
        end = chunk.end_position
        first = 0 if self._window is None else max(0, chunk.position - self._window + 1)
        offset = first - first % size
        blocks = table[chunk.row, first // size : -(-end // size)].long() * num_kv_heads
        heads = self._arange(num_kv_heads)[:, None]
        mask = self._chunk_mask(chunk.position, first, end)
        indices = (blocks + heads).view(-1)
        return ChunkTokens(chunk.start, chunk.end, indices, first - offset, end - offset, mask)

    def _chunk_mask(self, position: int, first: int, end: int) -> torch.Tensor | None:
        """Queries [position, end) over keys [first, end)."""
        if position == 0 and (self._window is None or end <= self._window):
            return None
        queries = torch.arange(position, end, device=self._device)[:, None]
        keys = torch.arange(first, end, device=self._device)
        unseen = keys > queries
        if self._window is not None:
            unseen |= keys <= queries - self._window
        return self._mask(unseen)

    def _mask(self, unseen: torch.Tensor) -> torch.Tensor:
        """0 where seen, -inf where not."""
        return torch.where(unseen, self._minus_infinity, self._zero)
