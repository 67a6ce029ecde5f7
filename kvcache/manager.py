"""The sole owner of sequence -> blocks (contract; being implemented)."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvcache.config import KVCacheConfig

NULL_BLOCK = -1  # a table entry whose block a sliding window has passed and given back


@dataclass(frozen=True, slots=True)
class TableUpdate:
    """table[start : start + len(block_ids)] of one group changed (appended blocks, or a copy-on-write swap)."""

    group: int
    start: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Growth:
    """What a grant of room changed.

    num_slots: tokens the sequence may hold before it must ask again; positions [0, num_slots) are writable from
    num_computed_tokens on. updates: table entries to write. copies: (source, destination) blocks to copy before
    the step writes.
    """

    num_slots: int
    updates: tuple[TableUpdate, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()


class KVCacheManager:
    """Who owns which block. Pure bookkeeping: no tensors, no clock, no randomness.

    A sequence is known by an integer id. All methods are all-or-nothing: when they answer None nothing changed.
    """

    def __init__(self, config: KVCacheConfig) -> None: ...

    def add(self, sequence_id: int, token_ids: Sequence[int]) -> int:
        """Start a sequence; returns num_cached_tokens: tokens (whole blocks, at most len(token_ids) - 1) whose
        K/V are in the pool already, now held by the sequence. Takes no new block."""
        ...

    def grow(self, sequence_id: int, num_computed_tokens: int, num_tokens: int) -> Growth | None:
        """Room for positions [num_computed_tokens, num_tokens), the ones the next step writes; copy-on-write for
        shared blocks among them; gives back blocks that windows have passed. None: not enough free blocks."""
        ...

    def commit(self, sequence_id: int, token_ids: Sequence[int], num_computed_tokens: int) -> None:
        """Publish the full blocks within the first num_computed_tokens tokens for reuse by others."""
        ...

    def fork(self, parent_id: int, child_id: int, num_tokens: int) -> None:
        """A child shares the parent's blocks over its first num_tokens tokens. Neither may write into a shared
        block before its next grow()."""
        ...

    def free(self, sequence_id: int) -> None:
        """Give back all blocks, tails first, so that shared prefixes are evicted last."""
        ...

    def block_tables(self, sequence_id: int) -> tuple[tuple[int, ...], ...]:
        """One table per layer group; NULL_BLOCK where a window has passed."""
        ...

    def fits(self, num_tokens: int, max_chunk_tokens: int) -> bool:
        """Whether a sequence of num_tokens, alone in the pool, computed max_chunk_tokens a step, can be held."""
        ...

    @property
    def num_free_blocks(self) -> int: ...  # reusable cached blocks count as free

    @property
    def num_blocks(self) -> int: ...

    @property
    def usage(self) -> float:
        """Held blocks over all blocks, 0 to 1 (reusable cached blocks are not held)."""
        ...

    def check_invariants(self) -> None:
        """AssertionError when any bookkeeping disagrees. Linear; for tests and idle moments."""
        ...
