"""Steps for the attention kernels, and what they must give: dense attention, as plain as can be.

The pool is full of NaN where nothing was written, and the table of ids far outside the pool where a row has
no block, so that one read too many shows.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.attention.kernels import TILE_TOKENS, PagedAttention, Tuning
from engine.attention.plan import AttentionShape
from engine.attention.rope import inverse_frequencies, rotate, rotation
from engine.model.config import RopeConfig

STALE = 2**31 - 1


@dataclass(frozen=True)
class Row:
    """A sequence: tokens in the pool before the step, and those of the step, alone or in tiles."""

    num_past: int
    num_new: int = 1
    is_lone: bool = True


@dataclass(frozen=True)
class Heads:
    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Case:
    rows: tuple[Row, ...]
    heads: Heads
    block_size: int = 16
    window: int | None = None
    num_padding: tuple[int, int] = (0, 0)  # lone tokens and others
    tuning: Tuning | None = None


class Step:
    """The tensors of a case. Rows of the table are a random permutation of the case's."""

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self.case, self.dtype, self.device = case, dtype, device
        self._random = torch.Generator().manual_seed(seed)
        self._places = torch.randperm(len(case.rows), generator=self._random).tolist()
        self._pack()
        self._build_table()
        heads = case.heads
        width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
        self.qkv = self._randn(len(self.rows), width)
        past = [(row.num_past, heads.num_kv_heads, heads.head_dim) for row in case.rows]
        self.past = [(self._randn(*shape), self._randn(*shape)) for shape in past]
        self.frequencies = inverse_frequencies(RopeConfig(10000.0), heads.head_dim).to(device)

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._random).to(self.device, self.dtype)

    def _pack(self) -> None:
        """rows, positions, tiles. Lone tokens come by position, as a planner would have them."""
        case = self.case
        tokens = [
            (index, row.num_past + i) for index, row in enumerate(case.rows) for i in range(row.num_new)
        ]
        lone = sorted((t for t in tokens if case.rows[t[0]].is_lone), key=lambda token: token[1])
        rest = [t for t in tokens if not case.rows[t[0]].is_lone]
        padding = [(-1, -1)]
        self.tokens = lone + padding * case.num_padding[0] + rest + padding * case.num_padding[1]
        self.num_lone = len(lone) + case.num_padding[0]
        tiles, first = [], self.num_lone
        for row in case.rows:
            if not row.is_lone:
                tiles += [
                    (first + i, min(TILE_TOKENS, row.num_new - i)) for i in range(0, row.num_new, TILE_TOKENS)
                ]
                first += row.num_new
        tiles += [(0, 0)] * case.num_padding[1]
        rows = [-1 if index < 0 else self._places[index] for index, _ in self.tokens]
        self.rows = self._int32(rows)
        self.positions = self._int32([position for _, position in self.tokens])
        self.tiles = self._int32(tiles) if tiles else None

    def _int32(self, values: list[int] | list[tuple[int, int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def _build_table(self) -> None:
        size = self.case.block_size
        needed = [-(-(row.num_past + row.num_new) // size) for row in self.case.rows]
        self.num_blocks = sum(needed) + 3
        ids = torch.randperm(self.num_blocks, generator=self._random).tolist()
        table = torch.full((len(needed), max(needed) + 2), STALE, dtype=torch.int32)
        for index, (row, count) in enumerate(zip(self.case.rows, needed, strict=True)):
            first = 0
            if self.case.window is not None:  # blocks that no query sees any more are given back
                first = max(0, row.num_past - self.case.window + 1) // size
            for entry in range(first, count):
                table[self._places[index], entry] = ids.pop()
        self.table = table.to(self.device)

    def pool(self, *, with_new: bool) -> tuple[Tensor, Tensor]:
        """Keys and values before the step, or after it."""
        shape = (
            self.num_blocks,
            self.case.heads.num_kv_heads,
            self.case.block_size,
            self.case.heads.head_dim,
        )
        pools = torch.full((2, *shape), torch.nan, dtype=self.dtype, device=self.device)
        for index, row in enumerate(self.case.rows):
            num_tokens = row.num_past + row.num_new * with_new
            entries = self.table[self._places[index], : -(-num_tokens // self.case.block_size)].long()
            entries = entries.repeat_interleave(self.case.block_size)[:num_tokens]
            slots = torch.arange(num_tokens, device=self.device) % self.case.block_size
            is_held = entries != STALE
            for pool, context in zip(pools, self.contexts(index), strict=True):
                pool[entries[is_held], :, slots[is_held]] = context[:num_tokens][is_held]
        return pools[0], pools[1]

    def contexts(self, index: int) -> tuple[Tensor, Tensor]:
        """Rotated keys, and values, of all tokens of a row: [tokens, num_kv_heads, head_dim]."""
        _, k, v = self._split_qkv()
        new = [token for token, (owner, _) in enumerate(self.tokens) if owner == index]
        past = self.past[index]
        return torch.cat((past[0], k[new])), torch.cat((past[1], v[new]))

    def _split_qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.case.heads
        sizes = [heads.num_heads, heads.num_kv_heads, heads.num_kv_heads]
        q, k, v = torch.split(self.qkv.view(len(self.qkv), -1, heads.head_dim), sizes, 1)
        by = rotation(self.positions, self.frequencies)
        return rotate(q, by), rotate(k, by), v

    def dense(self) -> Tensor:
        """[N, num_heads * head_dim], float32; zeros in padding."""
        q = self._split_qkv()[0]
        out = torch.zeros(q.shape, dtype=torch.float32, device=self.device)
        repeats = self.case.heads.num_heads // self.case.heads.num_kv_heads
        for index in range(len(self.case.rows)):
            k, v = (x.float().repeat_interleave(repeats, 1) for x in self.contexts(index))
            new = [token for token, (owner, _) in enumerate(self.tokens) if owner == index]
            scores = torch.einsum("nhd,shd->hns", q[new].float(), k) / math.sqrt(q.shape[-1])
            distance = self.positions[new].long()[:, None] - torch.arange(len(k), device=self.device)
            unseen = distance < 0
            if self.case.window is not None:
                unseen |= distance >= self.case.window
            weights = scores.masked_fill(unseen, -math.inf).softmax(-1)
            out[new] = torch.einsum("hns,shd->nhd", weights, v)
        return out.view(len(out), -1)

    def group(self) -> PagedAttention:
        heads = self.case.heads
        shape = AttentionShape(
            heads.num_heads, heads.num_kv_heads, heads.head_dim, self.num_blocks, self.case.block_size
        )
        return PagedAttention(
            shape,
            self.case.window,
            self.frequencies,
            self.table,
            max_num_tokens=len(self.rows),
            max_num_lone=max(self.num_lone, 1),
            max_model_len=self.table.shape[1] * self.case.block_size,
            dtype=self.dtype,
            tuning=self.case.tuning,
        )


def relative_error(out: Tensor, reference: Tensor) -> float:
    """||out - reference|| / ||reference||."""
    return float((out.float() - reference.float()).norm() / reference.float().norm())


def check(case: Case, dtype: torch.dtype, device: torch.device, tolerance: float, seed: int = 0) -> None:
    """Two layers on the same scratch memory: outputs, and the pool bit for bit but for a rounding of keys."""
    step = Step(case, dtype, device, seed)
    layer = step.group().begin(step.rows, step.positions, step.tiles, step.num_lone)
    for _ in range(2):
        keys, values = step.pool(with_new=False)
        out = torch.full((len(step.rows), case.heads.num_heads * case.heads.head_dim), torch.nan)
        out = out.to(device, dtype)
        layer.attend(step.qkv, keys, values, out)
        assert out.isfinite().all()
        error = relative_error(out, step.dense())
        assert error < tolerance, error
        expected_keys, expected_values = step.pool(with_new=True)
        assert torch.equal(values.nan_to_num(7), expected_values.nan_to_num(7))
        assert torch.equal(keys.isnan(), expected_keys.isnan())
        assert relative_error(keys.nan_to_num(0), expected_keys.nan_to_num(0)) < tolerance / 10
