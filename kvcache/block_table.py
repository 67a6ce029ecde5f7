"""One sequence's blocks in one layer group, and the arithmetic of blocks and windows."""

from dataclasses import dataclass, field

NULL_BLOCK = -1  # a table entry whose block a sliding window has passed and given back


@dataclass(slots=True)
class BlockTable:
    """block_ids[i] holds the tokens at positions [i * block_size, (i + 1) * block_size).

    window: of the layer group; None sees everything. num_passed: leading entries that hold NULL_BLOCK.
    """

    window: int | None
    block_ids: list[int] = field(default_factory=list)
    num_passed: int = 0

    @property
    def held(self) -> list[int]:
        """The blocks that the table holds, in order."""
        return self.block_ids[self.num_passed :]

    def passed(self, num_computed_tokens: int, block_size: int) -> list[int]:
        """Held blocks that the query at position num_computed_tokens, and all after it, do not see."""
        first_visible = first_visible_block(num_computed_tokens, self.window, block_size)
        assert first_visible >= self.num_passed, "the query would see blocks that are given back"
        return self.block_ids[self.num_passed : first_visible]

    def sees_from(self, num_tokens: int, block_size: int) -> bool:
        """Whether all that the query at position num_tokens sees is still held."""
        return self.num_passed <= first_visible_block(num_tokens, self.window, block_size)

    def check_invariants(self) -> None:
        assert all(block_id == NULL_BLOCK for block_id in self.block_ids[: self.num_passed]), (
            "passed, yet held"
        )
        assert NULL_BLOCK not in self.held, "a block inside the window is missing"


def num_blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold num_tokens tokens."""
    return -(-num_tokens // block_size)


def first_visible_block(num_tokens: int, window: int | None, block_size: int) -> int:
    """Index of the first block seen by the query at position num_tokens: itself and window - 1 before it."""
    return 0 if window is None else max(0, num_tokens - window + 1) // block_size


def max_held_blocks(num_tokens: int, window: int | None, max_chunk_tokens: int, block_size: int) -> int:
    """Most blocks that one table holds at a time while num_tokens are computed, max_chunk_tokens a step.

    A step needs what its first query sees and what it writes: window - 1 + max_chunk_tokens positions in a
    row, wherever in a block they start.
    """
    num_blocks = num_blocks_for(num_tokens, block_size)
    if window is None:
        return num_blocks
    return min(num_blocks, num_blocks_for(window + max_chunk_tokens - 2, block_size) + 1)
