"""Blocks by id: how many hold each, and which to hand out next."""

from collections import Counter, OrderedDict
from collections.abc import Callable


class BlockPool:
    """Reference counts and free lists over block ids 0 to num_blocks - 1. Every operation is O(1).

    A block without a holder is *reusable* if the prefix cache still publishes it: it counts as free, but
    keeps its content until no other block is free and it is the one released longest ago.
    """

    def __init__(self, num_blocks: int, on_evict: Callable[[int], None]) -> None:
        """on_evict: told the id of each reusable block whose content is about to be lost."""
        self._ref_counts = [0] * num_blocks
        self._free = list(reversed(range(num_blocks)))  # a stack: block 0 goes first
        self._reusable: OrderedDict[int, None] = OrderedDict()  # released longest ago first
        self._on_evict = on_evict

    @property
    def num_blocks(self) -> int:
        return len(self._ref_counts)

    @property
    def num_free(self) -> int:
        """Blocks that take() can hand out, reusable ones included."""
        return len(self._free) + len(self._reusable)

    def take(self) -> int:
        """A block that nobody else holds. Needs num_free > 0."""
        if self._free:
            block_id = self._free.pop()
        else:
            block_id, _ = self._reusable.popitem(last=False)
            self._on_evict(block_id)
        self._ref_counts[block_id] = 1
        return block_id

    def share(self, block_id: int) -> None:
        """One more holder of a block that is held, or reusable."""
        if self._ref_counts[block_id] == 0:
            del self._reusable[block_id]
        self._ref_counts[block_id] += 1

    def release(self, block_id: int, *, reusable: bool) -> None:
        """One holder less. The last one leaves the block reusable, or just free."""
        self._ref_counts[block_id] -= 1
        if self._ref_counts[block_id]:
            return
        if reusable:
            self._reusable[block_id] = None
        else:
            self._free.append(block_id)

    def is_shared(self, block_id: int) -> bool:
        """Whether more than one holds the block, so that none of them may write into it."""
        return self._ref_counts[block_id] > 1

    def is_reusable(self, block_id: int) -> bool:
        return block_id in self._reusable

    def check_invariants(self, holders: Counter[int]) -> None:
        """holders: how many hold each block, counted independently. AssertionError on any disagreement."""
        for block_id, ref_count in enumerate(self._ref_counts):
            assert ref_count == holders[block_id], (
                f"block {block_id}: {ref_count=}, {holders[block_id]} holders"
            )
        idle = {block_id for block_id, ref_count in enumerate(self._ref_counts) if ref_count == 0}
        assert len(idle) == self.num_free, "a block is listed twice, or lost"
        assert idle == self._reusable.keys() | set(self._free), "a block is both held and free"
