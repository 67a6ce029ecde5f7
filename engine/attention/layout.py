"""The tokens of one step as attention sees them: numpy on the host, shared by all layers."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

# Bounds the temporary memory of a group of lone tokens (pairs as above) and of a chunk (queries times keys).
_MAX_LONE_AREA = 1 << 20
_MAX_CHUNK_AREA = 1 << 22


@dataclass(frozen=True, slots=True)
class ChunkSpan:
    """Packed tokens [start, end) are consecutive tokens of one row, from `position` on."""

    start: int
    end: int
    row: int
    position: int

    @property
    def end_position(self) -> int:
        return self.position + self.end - self.start

    def split(self) -> Iterator["ChunkSpan"]:
        """Parts whose number of queries times keys is bounded."""
        size = max(16, _MAX_CHUNK_AREA // self.end_position)
        for start in range(self.start, self.end, size):
            yield ChunkSpan(start, min(start + size, self.end), self.row, self.position + start - self.start)


@dataclass(frozen=True, slots=True)
class StepLayout:
    """N packed tokens: first `num_lone` that attend each on its own, by rising position, then the chunks.

    rows, positions: int64 [N], of each token.
    """

    rows: IntArray
    positions: IntArray
    num_lone: int
    chunks: tuple[ChunkSpan, ...] = ()


def split_by_width(widths: IntArray, num_heads: int, split_cost: int) -> list[tuple[int, int]]:
    """Cut [0, n) into ranges of similar width, so that padding each to its widest wastes little.

    widths: int64 [n], rising; keys that each token is given. A cut is made where it saves most padding, as
    long as that is more than split_cost, in (query head, key) pairs.
    """
    ranges: list[tuple[int, int]] = []
    pending = [(0, len(widths))] if len(widths) else []
    while pending:
        start, end = pending.pop()
        saved = np.arange(1, end - start + 1) * (widths[end - 1] - widths[start:end])
        cut = start + int(saved.argmax()) + 1
        is_large = (end - start) * int(widths[end - 1]) * num_heads > _MAX_LONE_AREA
        if is_large and cut == start + 1:
            cut = (start + end) // 2
        if start < cut < end and (is_large or saved.max() * num_heads > split_cost):
            pending += [(cut, end), (start, cut)]
        else:
            ranges.append((start, end))
    return ranges
