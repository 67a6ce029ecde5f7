"""The sole owner of sequence -> blocks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kvcache.block_pool import BlockPool
from kvcache.block_table import NULL_BLOCK, BlockTable, first_visible_block, max_held_blocks, num_blocks_for
from kvcache.config import KVCacheConfig
from kvcache.prefix_cache import BlockHash, Prefix, PrefixCache, PrefixStats, hash_block, longest_hit

__all__ = ["NULL_BLOCK", "Growth", "KVCacheManager", "PrefixStats", "TableUpdate"]


@dataclass(frozen=True, slots=True)
class TableUpdate:
    """Entries of one group's table to write: table[start : start + len(block_ids)] = block_ids."""

    group: int
    start: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Growth:
    """What a grant of room changed.

    num_slots: tokens that the sequence may hold before it must ask again. Positions from num_computed_tokens
    up to it are the sequence's own to write, until a fork shares them.
    updates: table entries to write, at most one update a group.
    copies: (source, destination) blocks to copy before the step writes. They apply one after the other, in
    the order of the grow() calls: a copy may read or overwrite what an earlier one has written.
    """

    num_slots: int
    updates: tuple[TableUpdate, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()


@dataclass(slots=True)
class _SequenceBlocks:
    """What one sequence holds. tables: one a layer group, all equally long.

    prefix: the text of the first num_committed_blocks blocks; None when nothing (more) can be published.
    num_queried_tokens: tokens looked up in the prefix cache and not yet counted in the statistics.
    """

    tables: list[BlockTable]
    prefix: Prefix | None
    num_committed_blocks: int = 0
    num_queried_tokens: int = 0

    @property
    def num_blocks(self) -> int:
        return len(self.tables[0].block_ids)

    def prefix_of(self, num_blocks: int) -> Prefix | None:
        """The text of that many committed blocks."""
        return self.prefix and self.prefix.ancestor(self.num_committed_blocks - num_blocks)


class KVCacheManager:
    """Who owns which block. Pure bookkeeping: no tensors, no clock, no randomness.

    A sequence is known by an integer id, from add() or fork() to free(). All methods are all-or-nothing: when
    they refuse (None, False) nothing changed. An unknown id, or a position never granted, is a bug of the
    caller (KeyError, AssertionError).

    The device runs steps in the order in which they are planned here. So a block may pass to another sequence
    while a step that reads or writes it is still in flight.
    """

    def __init__(self, config: KVCacheConfig, hash_block: BlockHash = hash_block) -> None:
        self.config = config
        self._block_size = config.block_size
        self._windows = tuple(group.window for group in config.groups)
        self._cache = PrefixCache(len(config.groups), hash_block)
        self._pool = BlockPool(config.num_blocks, on_evict=self._cache.withdraw)
        self._sequences: dict[int, _SequenceBlocks] = {}
        self._num_queried_tokens = 0
        self._num_hit_tokens = 0

    def add(self, sequence_id: int, token_ids: Sequence[int]) -> int:
        """Start a sequence that will compute token_ids.

        Returns num_cached_tokens: leading tokens (whole blocks, at most len(token_ids) - 1, so that one is
        left to sample after) whose K/V are in the pool, now held by the sequence. Takes no new block.
        """
        assert sequence_id not in self._sequences, f"sequence {sequence_id} exists"
        caching = self.config.enable_prefix_caching
        hit = self._find_hit(token_ids) if caching else []
        self._sequences[sequence_id] = _SequenceBlocks(
            tables=[self._hold_hit(hit, group, window) for group, window in enumerate(self._windows)],
            prefix=hit[-1] if hit else self._cache.root,
            num_committed_blocks=len(hit),
            num_queried_tokens=len(token_ids) if caching else 0,
        )
        return len(hit) * self._block_size

    def grow(self, sequence_id: int, num_computed_tokens: int, num_tokens: int) -> Growth | None:
        """Room for positions [num_computed_tokens, num_tokens), the ones that the next step writes.

        Gives back the blocks that windows have passed (the query at num_computed_tokens does not see them),
        swaps shared blocks that would be written for copies, and takes new ones. None: too few free blocks.
        A num_computed_tokens below an earlier one takes back what was computed and committed from there on,
        which is possible as far back as no window has passed.
        """
        sequence = self._sequences[sequence_id]
        num_held = sequence.num_blocks
        num_blocks = max(num_held, num_blocks_for(num_tokens, self._block_size))
        assert num_computed_tokens <= num_held * self._block_size, "computed tokens without a block"
        if not self._has_room(sequence, num_computed_tokens, num_blocks):
            return None
        if sequence.num_queried_tokens:
            self._count_lookup(sequence)
        if num_computed_tokens < sequence.num_committed_blocks * self._block_size:
            self._take_back(sequence, num_computed_tokens // self._block_size)
        for table in sequence.tables:
            self._give_back_passed(table, num_computed_tokens)
        updates: list[TableUpdate] = []
        copies: list[tuple[int, int]] = []
        for group, table in enumerate(sequence.tables):
            start = self._make_writable(table, num_computed_tokens, copies)
            for _ in range(num_held, num_blocks):
                table.block_ids.append(self._pool.take())
            if start < num_blocks:
                updates.append(TableUpdate(group, start, tuple(table.block_ids[start:])))
        return Growth(num_blocks * self._block_size, tuple(updates), tuple(copies))

    def commit(self, sequence_id: int, token_ids: Sequence[int], num_computed_tokens: int) -> None:
        """Publish the full blocks within the first num_computed_tokens of token_ids for reuse by others.

        Count only tokens whose step has succeeded: what a failed step should have written must not be found.
        Each block is published once, so calling again costs only what is new.
        """
        if not self.config.enable_prefix_caching:
            return
        sequence = self._sequences[sequence_id]
        size = self._block_size
        for index in range(sequence.num_committed_blocks, num_computed_tokens // size):
            if sequence.prefix is None:
                return
            self._publish(sequence, index, tuple(token_ids[index * size : (index + 1) * size]))

    def fork(self, parent_id: int, child_id: int, num_tokens: int) -> bool:
        """A child shares the parent's blocks over its first num_tokens tokens.

        Steps before the child's first one must write those: its copies come before that step's own writes.
        Neither may write into a shared block before its next grow(). False: a sliding window has passed
        tokens that the child would see. That takes a num_tokens below the num_computed_tokens of the
        parent's last grow(), or below its cached tokens. Then add() the child instead.
        """
        assert child_id not in self._sequences, f"sequence {child_id} exists"
        parent = self._sequences[parent_id]
        assert num_tokens <= parent.num_blocks * self._block_size, "the parent holds fewer tokens"
        if not all(table.sees_from(num_tokens, self._block_size) for table in parent.tables):
            return False
        num_committed_blocks = min(parent.num_committed_blocks, num_tokens // self._block_size)
        self._sequences[child_id] = _SequenceBlocks(
            tables=[self._share_table(table, num_tokens) for table in parent.tables],
            prefix=parent.prefix_of(num_committed_blocks),
            num_committed_blocks=num_committed_blocks,
        )
        return True

    def free(self, sequence_id: int) -> None:
        """Give back all blocks, tails first, so that shared prefixes are evicted last."""
        tables = self._sequences.pop(sequence_id).tables
        for block_ids in reversed(list(zip(*(table.block_ids for table in tables), strict=True))):
            for block_id in block_ids:
                if block_id != NULL_BLOCK:
                    self._release(block_id)

    def block_tables(self, sequence_id: int) -> tuple[tuple[int, ...], ...]:
        """One table per layer group; NULL_BLOCK where a window has passed."""
        return tuple(tuple(table.block_ids) for table in self._sequences[sequence_id].tables)

    def fits(self, num_tokens: int, max_chunk_tokens: int) -> bool:
        """Whether a sequence of num_tokens, alone in the pool, max_chunk_tokens a step, can be computed."""
        limits = (max_held_blocks(num_tokens, w, max_chunk_tokens, self._block_size) for w in self._windows)
        return sum(limits) <= self.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that grow() can take, reusable cached ones included."""
        return self._pool.num_free

    @property
    def num_blocks(self) -> int:
        return self._pool.num_blocks

    @property
    def usage(self) -> float:
        """Held blocks over all blocks, 0 to 1 (reusable cached blocks are not held)."""
        return (self.num_blocks - self.num_free_blocks) / self.num_blocks

    @property
    def prefix_stats(self) -> PrefixStats:
        """Lookups by add(), counted when the sequence is first granted room: retries do not count twice."""
        return PrefixStats(self._num_queried_tokens, self._num_hit_tokens)

    def check_invariants(self) -> None:
        """AssertionError when any bookkeeping disagrees. Linear; for tests and idle moments."""
        tables = [table for sequence in self._sequences.values() for table in sequence.tables]
        for table in tables:
            table.check_invariants()
        for sequence in self._sequences.values():
            assert len({len(table.block_ids) for table in sequence.tables}) == 1, "tables of unequal length"
            assert sequence.num_committed_blocks <= sequence.num_blocks, "committed what it does not hold"
        self._pool.check_invariants(Counter(block_id for table in tables for block_id in table.held))
        self._cache.check_invariants()
        for block_id in range(self.num_blocks):
            assert block_id in self._cache or not self._pool.is_reusable(block_id), "kept, yet not published"

    def _find_hit(self, token_ids: Sequence[int]) -> list[Prefix]:
        path = self._cache.match(token_ids, self._block_size, (len(token_ids) - 1) // self._block_size)
        return path[: longest_hit(path, self._windows, self._block_size)]

    def _hold_hit(self, hit: list[Prefix], group: int, window: int | None) -> BlockTable:
        num_passed = first_visible_block(len(hit) * self._block_size, window, self._block_size)
        held = [prefix.block_ids[group] for prefix in hit[num_passed:]]
        for block_id in held:
            self._pool.share(block_id)
        return BlockTable(window, [NULL_BLOCK] * num_passed + held, num_passed)

    def _share_table(self, table: BlockTable, num_tokens: int) -> BlockTable:
        block_ids = table.block_ids[: num_blocks_for(num_tokens, self._block_size)]
        child = BlockTable(table.window, block_ids, table.num_passed)
        for block_id in child.held:
            self._pool.share(block_id)
        return child

    def _has_room(self, sequence: _SequenceBlocks, num_computed_tokens: int, num_blocks: int) -> bool:
        """Whether the pool has the blocks that a grow() takes, less those that it gives back first."""
        num_free = self._pool.num_free
        num_groups = len(sequence.tables)
        first_written = num_computed_tokens // self._block_size
        if (num_blocks - first_written) * num_groups <= num_free:  # even if all written blocks were shared
            return True
        num_taken = (num_blocks - sequence.num_blocks) * num_groups
        for table in sequence.tables:
            num_taken += sum(map(self._pool.is_shared, table.block_ids[first_written:]))
            passed = table.passed(num_computed_tokens, self._block_size)
            num_taken -= len(passed) - sum(map(self._pool.is_shared, passed))
        return num_taken <= num_free

    def _give_back_passed(self, table: BlockTable, num_computed_tokens: int) -> None:
        if table.window is None:
            return
        for block_id in table.passed(num_computed_tokens, self._block_size):
            self._release(block_id)
            table.block_ids[table.num_passed] = NULL_BLOCK
            table.num_passed += 1

    def _make_writable(
        self, table: BlockTable, num_computed_tokens: int, copies: list[tuple[int, int]]
    ) -> int:
        """Make the sequence the only user of every block from num_computed_tokens on.

        A block with other holders is swapped for a fresh one, and copied if it holds tokens to keep. One that
        only we hold, but a parent that is gone has published, is withdrawn: we may write another text. If it
        is the same, the next commit() publishes it again. Returns the first changed entry, or the length.
        """
        first_written, num_kept_tokens = divmod(num_computed_tokens, self._block_size)
        first_changed = len(table.block_ids)
        for index in reversed(range(first_written, first_changed)):
            block_id = table.block_ids[index]
            if not self._pool.is_shared(block_id):
                self._cache.withdraw(block_id)
                continue
            table.block_ids[index] = self._pool.take()
            self._release(block_id)
            first_changed = index
            if index == first_written and num_kept_tokens:
                copies.append((block_id, table.block_ids[index]))
        return first_changed

    def _publish(self, sequence: _SequenceBlocks, index: int, token_ids: tuple[int, ...]) -> None:
        assert sequence.prefix is not None
        assert len(token_ids) == self._block_size, "computed tokens whose ids are not known"
        sequence.prefix = self._cache.extend(sequence.prefix, token_ids)
        if sequence.prefix is None:  # a hash collision: neither this block nor later ones could be found
            return
        sequence.num_committed_blocks = index + 1
        for group, table in enumerate(sequence.tables):
            if table.block_ids[index] != NULL_BLOCK:
                self._cache.publish(sequence.prefix, group, table.block_ids[index])

    def _release(self, block_id: int) -> None:
        self._pool.release(block_id, reusable=block_id in self._cache)

    def _take_back(self, sequence: _SequenceBlocks, num_blocks: int) -> None:
        """Forget what the sequence has committed beyond num_blocks."""
        sequence.prefix = sequence.prefix_of(num_blocks)
        sequence.num_committed_blocks = num_blocks

    def _count_lookup(self, sequence: _SequenceBlocks) -> None:
        self._num_queried_tokens += sequence.num_queried_tokens
        self._num_hit_tokens += sequence.num_committed_blocks * self._block_size
        sequence.num_queried_tokens = 0
