"""Attention of one layer group over the paged pool. Everything it enqueues can be captured in a CUDA graph:
grids depend on the bucket alone, lengths, rows and blocks are read on the device, and nothing is allocated.
"""

import math

import torch
import triton
from torch import Tensor

from engine.attention.kernels.chunk import attend_tiles
from engine.attention.kernels.lone import attend_lone
from engine.attention.kernels.split import NUM_WORDS, split
from engine.attention.kernels.tuning import TILE_TOKENS, Tuning, tune
from engine.attention.kernels.write import write
from engine.attention.plan import AttentionShape

_MERGED_AT_ONCE = 4096  # float32 values that a program holds, of several pieces


class PagedAttention:
    """One layer group's attention. Its scratch memory serves all buckets: steps run one after another, on one
    stream, and the layers of a step too.
    """

    def __init__(
        self,
        shape: AttentionShape,
        window: int | None,
        frequencies: Tensor,
        table: Tensor,
        *,
        max_num_tokens: int,
        max_num_lone: int,
        max_model_len: int,
        dtype: torch.dtype,
        tuning: Tuning | None = None,
    ) -> None:
        """frequencies: radians a position, float32 [head_dim / 2], on the device. table: int32
        [max_num_rows, max_num_blocks], block ids; read by every step, never copied. dtype: of the model and
        the pool. tuning: None takes what was measured to be best.
        """
        assert frequencies.shape == (shape.head_dim // 2,), "RoPE turns whole heads"
        assert frequencies.dtype == torch.float32
        assert table.dtype == torch.int32
        assert table.shape[1] * shape.block_size >= max_model_len
        device = table.device
        tuning = tune(shape, dtype, device) if tuning is None else tuning
        self.shape, self.table, self.frequencies, self.tuning = shape, table, frequencies, tuning
        self.window = 0 if window is None else window
        self.max_num_tokens, self.max_num_lone = max_num_tokens, max_num_lone
        self.scale = math.log2(math.e) / math.sqrt(shape.head_dim)
        self.columns = triton.next_power_of_2(max(shape.head_dim, 16))
        self.group_rows = triton.next_power_of_2(shape.num_heads // shape.num_kv_heads)
        self.is_wide = shape.num_lines * shape.head_dim >= 1 << 31
        angles = (max_num_tokens, shape.head_dim // 2)
        self.cosines = torch.empty(angles, dtype=torch.float32, device=device)
        self.sines = torch.empty(angles, dtype=torch.float32, device=device)
        self.previous = torch.empty(max_num_lone, dtype=torch.int32, device=device)
        num_pieces = max_num_lone + tuning.most_pieces
        self.pieces = torch.empty((num_pieces, NUM_WORDS.value), dtype=torch.int32, device=device)
        # Contexts of a single piece need no slot; of the others, rounding up at most doubles the pieces.
        partial = (2 * tuning.most_pieces, shape.num_kv_heads, self.group_rows)
        self.sums = torch.empty((*partial, shape.head_dim), dtype=torch.float32, device=device)
        self.softmaxes = torch.empty((*partial, 2), dtype=torch.float32, device=device)
        arrivals = (max_num_lone, shape.num_kv_heads)
        self.arrivals = torch.zeros(arrivals, dtype=torch.int32, device=device)

    @property
    def num_bytes(self) -> int:
        """Of the scratch memory."""
        scratch = (self.cosines, self.sines, self.previous, self.pieces, self.sums, self.softmaxes)
        return sum(tensor.nbytes for tensor in (*scratch, self.arrivals))

    def begin(self, rows: Tensor, positions: Tensor, tiles: Tensor | None, num_lone: int) -> "StepAttention":
        """Enqueue what the layers of a step share; once a step, before them.

        rows, positions: int32 [N], -1 in padding. The first num_lone tokens attend alone; of one row, those
        have consecutive positions. tiles: int32 [num_tiles, 2], (first packed token, number of tokens) of up
        to TILE_TOKENS tokens of one row with consecutive positions; no tokens: unused. None: all are lone.
        """
        num_tokens = len(rows)
        assert num_tokens <= self.max_num_tokens
        assert num_lone <= min(self.max_num_lone, num_tokens)
        half = self.shape.head_dim // 2
        # Steps with tiles have any number of lone tokens: one compilation for all of them.
        lone = triton.next_power_of_2(max(num_lone if tiles is None else self.max_num_lone, 16))
        split[(num_tokens,)](
            rows,
            positions,
            self.frequencies,
            self.cosines,
            self.sines,
            self.pieces,
            self.previous,
            num_lone,
            WINDOW=self.window,
            HALF=half,
            PAIRS=triton.next_power_of_2(half),
            LONE=lone,
            MOST=self.tuning.most_pieces,
            ENOUGH=self.tuning.enough_pieces,
            LEAST_TILES=self.tuning.least_tiles,
            SLOTS=triton.next_power_of_2(self.tuning.most_pieces),
            PIECES=triton.next_power_of_2(self.tuning.most_pieces + lone),
            TILE=self.tuning.lone.keys,
            num_warps=4,
        )
        return StepAttention(self, rows, positions, tiles, num_lone)


class StepAttention:
    """A step's part of PagedAttention, as tensors of a bucket whose contents change from step to step."""

    def __init__(
        self, group: PagedAttention, rows: Tensor, positions: Tensor, tiles: Tensor | None, num_lone: int
    ) -> None:
        self._group, self._num_lone = group, num_lone
        self._rows, self._positions, self._tiles = rows, positions, tiles

    def attend(self, qkv: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
        """Enqueue one layer: rotate q and k, write K/V into the pool, attend.

        qkv: [N, (num_heads + 2 * num_kv_heads) * head_dim], before RoPE. keys, values: the layer's pool,
        [num_blocks, num_kv_heads, block_size, head_dim]. out: [N, num_heads * head_dim]; of padding, zeros.
        All of the model's dtype; the rows of qkv and out may be strided.
        """
        assert len(qkv) == len(out) == len(self._rows)
        assert qkv.stride(1) == out.stride(1) == 1
        assert keys.is_contiguous()
        assert values.is_contiguous()
        if self._num_lone < len(self._rows):  # first: a lone token may follow a tile of its row
            self._write(qkv, keys, values, out)
        if self._num_lone:
            self._attend_lone(qkv, keys, values, out)
        if self._tiles is not None and len(self._tiles):
            self._attend_tiles(qkv, keys, values, out, self._tiles)

    def _write(self, qkv: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
        group, shape = self._group, self._group.shape
        write[(len(self._rows) - self._num_lone,)](
            qkv,
            keys,
            values,
            out,
            self._rows,
            self._positions,
            group.table,
            group.cosines,
            group.sines,
            self._num_lone,
            qkv.stride(0),
            out.stride(0),
            group.table.stride(0),
            NUM_HEADS=shape.num_heads,
            NUM_KV_HEADS=shape.num_kv_heads,
            HEAD_DIM=shape.head_dim,
            BLOCK_SIZE=shape.block_size,
            WIDE=group.is_wide,
            HEADS=triton.next_power_of_2(shape.num_kv_heads),
            COLUMNS=group.columns,
            WIDTH=triton.next_power_of_2(shape.num_heads * shape.head_dim),
            num_warps=4,
        )

    def _attend_lone(self, qkv: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
        group, shape, launch = self._group, self._group.shape, self._group.tuning.lone
        attend_lone[(shape.num_kv_heads, self._num_lone + group.tuning.most_pieces)](
            qkv,
            keys,
            values,
            out,
            group.table,
            group.cosines,
            group.sines,
            group.previous,
            group.pieces,
            group.sums,
            group.softmaxes,
            group.arrivals,
            qkv.stride(0),
            out.stride(0),
            group.table.stride(0),
            group.scale,
            NUM_HEADS=shape.num_heads,
            NUM_KV_HEADS=shape.num_kv_heads,
            HEAD_DIM=shape.head_dim,
            BLOCK_SIZE=shape.block_size,
            WIDE=group.is_wide,
            ROWS=group.group_rows,
            QUERIES=max(group.group_rows, 16),
            COLUMNS=group.columns,
            TILE=launch.keys,
            AT_ONCE=max(1, _MERGED_AT_ONCE // (group.group_rows * group.columns)),
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
        )

    def _attend_tiles(self, qkv: Tensor, keys: Tensor, values: Tensor, out: Tensor, tiles: Tensor) -> None:
        group, shape, launch = self._group, self._group.shape, self._group.tuning.chunk
        attend_tiles[(shape.num_heads // group.tuning.pack, len(tiles))](
            qkv,
            keys,
            values,
            out,
            self._rows,
            self._positions,
            tiles,
            group.table,
            group.cosines,
            group.sines,
            qkv.stride(0),
            out.stride(0),
            group.table.stride(0),
            group.scale,
            NUM_HEADS=shape.num_heads,
            NUM_KV_HEADS=shape.num_kv_heads,
            HEAD_DIM=shape.head_dim,
            BLOCK_SIZE=shape.block_size,
            WIDE=group.is_wide,
            WINDOW=group.window,
            COLUMNS=group.columns,
            TILE_TOKENS=TILE_TOKENS,
            PACK=group.tuning.pack,
            KEYS=launch.keys,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
        )
