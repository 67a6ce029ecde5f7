"""What one more block costs depends neither on the sequence's length nor on the pool's size."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, SupportsIndex, overload

import pytest

from kvcache.config import KVCacheConfig, LayerGroup
from kvcache.manager import KVCacheManager

GROUPS = [(LayerGroup((0,)),), (LayerGroup((0,), 64),), (LayerGroup((0,)), LayerGroup((1,), 64))]


class CountingList(list[int]):
    """Counts the elements that are read."""

    num_reads = 0

    @overload
    def __getitem__(self, index: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> int | list[int]:
        self.num_reads += len(range(*index.indices(len(self)))) if isinstance(index, slice) else 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[int]:
        self.num_reads += len(self)
        return super().__iter__()

    def __contains__(self, value: object) -> bool:
        self.num_reads += len(self)
        return super().__contains__(value)


def count_calls(action: Callable[[], object]) -> Counter[str]:
    """Calls of functions, ours and built in, while the action runs."""
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            calls[frame.f_code.co_qualname] += 1
        elif event == "c_call":
            calls[argument.__qualname__] += 1

    previous = sys.getprofile()
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(previous)
    return calls


def cost_of_one_block(groups: tuple[LayerGroup, ...], num_blocks: int) -> tuple[int, int, int, Counter[str]]:
    """Reads of tables, of reference counts and of token ids, and calls, for the block after num_blocks."""
    manager = KVCacheManager(KVCacheConfig(4 * num_blocks, 16, groups))
    token_ids = CountingList(range(16 * (num_blocks + 1)))
    manager.add(1, [])
    for num_computed_tokens in range(0, 16 * num_blocks, 16):
        manager.grow(1, num_computed_tokens, num_computed_tokens + 16)
        manager.commit(1, token_ids, num_computed_tokens + 16)

    ref_counts = manager._pool._ref_counts = CountingList(manager._pool._ref_counts)
    tables = [CountingList(table.block_ids) for table in manager._sequences[1].tables]
    for table, counting in zip(manager._sequences[1].tables, tables, strict=True):
        table.block_ids = counting
    token_ids.num_reads = 0

    calls = count_calls(lambda: manager.grow(1, 16 * num_blocks, 16 * num_blocks + 1))
    calls += count_calls(lambda: manager.commit(1, token_ids, 16 * (num_blocks + 1)))
    num_table_reads = sum(table.num_reads for table in tables)
    return num_table_reads, ref_counts.num_reads, token_ids.num_reads, calls


@pytest.mark.parametrize("groups", GROUPS, ids=["full", "windowed", "mixed"])
def test_one_more_block_costs_the_same_for_long_sequences(groups: tuple[LayerGroup, ...]) -> None:
    short, long = cost_of_one_block(groups, 20), cost_of_one_block(groups, 2000)
    assert short == long
    assert long[0] <= 10 * len(groups)
    assert long[2] == 16, "a commit reads the tokens of the new block"


def cost_of_the_last_block(num_blocks: int) -> Counter[str]:
    """The pool is full of reusable blocks, and each new one evicts an old one."""
    manager = KVCacheManager(KVCacheConfig(num_blocks, 1))
    manager.add(1, range(num_blocks))
    manager.grow(1, 0, num_blocks)
    manager.commit(1, range(num_blocks), num_blocks)
    manager.free(1)
    manager.add(2, [-1])
    return count_calls(lambda: manager.grow(2, 0, 1))


def test_eviction_does_not_search_the_pool() -> None:
    assert cost_of_the_last_block(20) == cost_of_the_last_block(5000)


def test_a_finished_sequence_is_freed_block_by_block() -> None:
    def cost(num_blocks: int) -> int:
        manager = KVCacheManager(KVCacheConfig(10_000, 1))
        manager.add(1, [])
        manager.grow(1, 0, num_blocks)
        return count_calls(lambda: manager.free(1)).total()

    assert cost(2000) - cost(1000) == cost(1000) - cost(0)


def test_a_lookup_reads_each_token_once() -> None:
    token_ids = CountingList(range(1600))
    manager = KVCacheManager(KVCacheConfig(200))
    manager.add(1, token_ids)
    manager.grow(1, 0, 1600)
    manager.commit(1, token_ids, 1600)
    token_ids.num_reads = 0
    assert manager.add(2, token_ids) == 1584
    assert token_ids.num_reads == 1584


def test_a_miss_reads_one_block() -> None:
    manager = KVCacheManager(KVCacheConfig(200))
    manager.add(1, range(1600))
    manager.grow(1, 0, 1600)
    manager.commit(1, range(1600), 1600)
    token_ids = CountingList([-1, *range(1600)])
    assert manager.add(2, token_ids) == 0
    assert token_ids.num_reads == 16
