"""Cutting lone tokens into groups of similar width."""

from itertools import pairwise

import numpy as np
import pytest

from engine.attention.layout import ChunkSpan, split_by_width


@pytest.mark.parametrize(
    ("widths", "num_heads", "ranges"),
    [
        ([], 8, []),
        ([16], 8, [(0, 1)]),
        ([16, 32, 48], 8, [(0, 3)]),  # too little to gain
        ([16] * 50 + [2048] * 2, 8, [(0, 50), (50, 52)]),
        ([16] * 60 + [1024] * 30 + [4096] * 10, 8, [(0, 60), (60, 90), (90, 100)]),
        ([65536] * 4, 8, [(0, 2), (2, 4)]),  # bounded, though nothing is padded
        ([1 << 20], 8, [(0, 1)]),  # one token cannot be cut
    ],
)
def test_split_by_width(widths: list[int], num_heads: int, ranges: list[tuple[int, int]]) -> None:
    assert split_by_width(np.array(widths, dtype=np.int64), num_heads, 16_384) == ranges


def test_ranges_cover_everything_in_order() -> None:
    widths = np.sort(np.random.default_rng(0).integers(1, 5000, 300))
    ranges = split_by_width(widths, 16, 1000)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 300
    assert all(left[1] == right[0] for left, right in pairwise(ranges))


def test_long_chunks_are_cut() -> None:
    chunk = ChunkSpan(100, 612, row=3, position=100_000)
    parts = list(chunk.split())
    assert all((part.end - part.start) * part.end_position <= 1 << 22 for part in parts)
    assert sum(part.end - part.start for part in parts) == 512
    assert [part.position - part.start for part in parts] == [100_000 - 100] * len(parts)
    assert list(ChunkSpan(0, 40, 1, 0).split()) == [ChunkSpan(0, 40, 1, 0)]
