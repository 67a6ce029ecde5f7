"""Paged attention against a dense one that is as plain as can be, over random batches."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.layout import ChunkSpan, StepLayout
from engine.attention.lone import can_sample
from engine.attention.plan import AttentionShape, Planner

CPU = torch.device("cpu")
FORMS = pytest.mark.parametrize("gather", [False, True], ids=["in-place", "gathered"])


class Batch:
    """Rows of random contexts in a pool of garbage, each with a few new tokens at its end.

    lengths: (tokens in the pool, new tokens) of each row. The first num_lone rows attend token by token.
    """

    def __init__(
        self, lengths: list[tuple[int, int]], num_lone: int, heads: tuple[int, int, int], block_size: int
    ) -> None:
        self.lengths, self.block_size = lengths, block_size
        self.num_heads, self.num_kv_heads, self.head_dim = heads
        num_blocks = [-(-sum(length) // block_size) for length in lengths]
        self.num_blocks = sum(num_blocks) + 3
        ids = torch.randperm(self.num_blocks).int()
        self.table = torch.full((len(lengths), max(num_blocks) + 1), -1, dtype=torch.int32)
        for row, n in enumerate(num_blocks):
            self.table[row, :n] = ids[sum(num_blocks[:row]) : sum(num_blocks[: row + 1])]
        self.layout = self._layout(num_lone)
        num_tokens = len(self.layout.rows)
        self.q = torch.randn(num_tokens, self.num_heads, self.head_dim)
        self.k, self.v = (
            [torch.randn(sum(length), self.num_kv_heads, self.head_dim) for length in lengths] for _ in "kv"
        )

    def _layout(self, num_lone: int) -> StepLayout:
        tokens = [(row, past + i) for row, (past, new) in enumerate(self.lengths) for i in range(new)]
        lone = sorted((t for t in tokens if t[0] < num_lone), key=lambda token: token[1])
        rest = [t for t in tokens if t[0] >= num_lone]
        rows, positions = (np.array(x, dtype=np.int64) for x in zip(*lone, *rest, strict=True))
        chunks, start = [], len(lone)
        for row in range(num_lone, len(self.lengths)):
            past, new = self.lengths[row]
            chunks.append(ChunkSpan(start, start + new, row, past))
            start += new
        return StepLayout(rows, positions, len(lone), tuple(chunks))

    def paged(self, window: int | None, *, gather: bool) -> torch.Tensor:
        """Write the new tokens' K/V through a plan, attend through it."""
        shape = AttentionShape(
            self.num_heads, self.num_kv_heads, self.head_dim, self.num_blocks, self.block_size
        )
        planner = Planner(shape, window, CPU, torch.float32, gather=gather)
        rows, positions = torch.from_numpy(self.layout.rows), torch.from_numpy(self.layout.positions)
        plan = planner.plan(self.layout, rows, positions, self.table)
        pools = []
        for contexts in (self.k, self.v):
            pool = torch.full((self.num_blocks, self.num_kv_heads, self.block_size, self.head_dim), torch.nan)
            for row, context in enumerate(contexts):
                for position in range(self.lengths[row][0]):
                    block = self.table[row, position // self.block_size]
                    pool[block, :, position % self.block_size] = context[position]
            plan.write(pool, torch.stack([contexts[r][p] for r, p in zip(rows, positions, strict=True)]))
            pools.append(pool)
        return plan.attend(self.q, pools[0], pools[1]).view(self.q.shape)

    def dense(self, window: int | None) -> torch.Tensor:
        repeats = self.num_heads // self.num_kv_heads
        out = []
        for q, row, position in zip(self.q, self.layout.rows, self.layout.positions, strict=True):
            first = 0 if window is None else max(0, position - window + 1)
            k = self.k[row][first : position + 1].repeat_interleave(repeats, dim=1)
            v = self.v[row][first : position + 1].repeat_interleave(repeats, dim=1)
            scores = torch.einsum("hd,shd->hs", q, k) / math.sqrt(self.head_dim)
            out.append(torch.einsum("hs,shd->hd", scores.softmax(-1), v))
        return torch.stack(out)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Batch, int | None]:
    torch.manual_seed(draw(st.integers(0, 2**16)))
    num_rows = draw(st.integers(1, 5))
    past = st.integers(0, 70)
    lengths = [(draw(past), draw(st.integers(1, 30))) for _ in range(num_rows)]
    num_lone = draw(st.integers(0, num_rows))
    num_kv_heads = draw(st.sampled_from([1, 2, 3]))
    heads = (num_kv_heads * draw(st.sampled_from([1, 2, 4])), num_kv_heads, draw(st.sampled_from([2, 8, 20])))
    window = draw(st.sampled_from([None, 1, 7, 16, 24, 200]))
    return Batch(lengths, num_lone, heads, draw(st.sampled_from([1, 4, 16]))), window


@FORMS
@settings(max_examples=40, deadline=None)
@given(case=batches())
def test_equals_dense_attention(gather: bool, case: tuple[Batch, int | None]) -> None:
    """Unwritten parts of the pool hold NaN, so one read too many would show."""
    batch, window = case
    torch.testing.assert_close(batch.paged(window, gather=gather), batch.dense(window), rtol=0, atol=2e-5)


@FORMS
def test_many_rows_of_very_different_length(gather: bool) -> None:
    """Enough padding to be worth cutting the lone tokens into groups."""
    torch.manual_seed(3)
    batch = Batch([(n * n // 3, 1) for n in range(48)], 48, (4, 2, 8), 16)
    torch.testing.assert_close(batch.paged(None, gather=gather), batch.dense(None), rtol=0, atol=2e-5)


def test_lone_tokens_do_not_depend_on_their_neighbours() -> None:
    """Bit for bit: padding adds exact zeros, in the same order."""
    if not can_sample(CPU, torch.float32):
        pytest.skip("torch was built without MKL")
    torch.manual_seed(4)
    batch = Batch([(37, 1), (300, 1), (90, 1)], 3, (4, 2, 8), 16)
    together = batch.paged(None, gather=False)
    for token, row in enumerate(batch.layout.rows):
        alone = Batch([batch.lengths[row]], 1, (4, 2, 8), 16)
        alone.q, alone.k, alone.v = batch.q[token : token + 1], [batch.k[row]], [batch.v[row]]
        assert torch.equal(alone.paged(None, gather=False)[0], together[token])
