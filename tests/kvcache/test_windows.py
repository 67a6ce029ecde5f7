"""Layers with a sliding window hold only what their next query sees."""

import pytest

from kvcache.config import KVCacheConfig, LayerGroup
from kvcache.manager import NULL_BLOCK, KVCacheManager

FULL, WINDOWED = LayerGroup((0,)), LayerGroup((1,), 6)


def manager_of(num_blocks: int, *groups: LayerGroup, caching: bool = True) -> KVCacheManager:
    return KVCacheManager(KVCacheConfig(num_blocks, 4, groups, enable_prefix_caching=caching))


def compute(manager: KVCacheManager, sequence_id: int, num_tokens: int, *, chunk: int = 4) -> None:
    """Compute and commit tokens 0, 1, 2... in chunks."""
    start = manager.add(sequence_id, range(num_tokens))
    for stop in range(start + chunk, num_tokens + 1, chunk):
        assert manager.grow(sequence_id, stop - chunk, stop) is not None
        manager.commit(sequence_id, range(num_tokens), stop)
        manager.check_invariants()


def test_passed_blocks_are_given_back() -> None:
    manager = manager_of(8, WINDOWED)
    manager.add(1, range(20))
    manager.grow(1, 0, 8)
    manager.grow(1, 8, 9)  # the query at 8 sees 3 to 8
    assert NULL_BLOCK not in manager.block_tables(1)[0]
    manager.grow(1, 9, 10)  # the query at 9 sees 4 to 9
    assert manager.block_tables(1)[0][0] == NULL_BLOCK
    assert manager.num_free_blocks == 6
    manager.check_invariants()


def test_a_window_of_one_keeps_nothing_but_what_it_writes() -> None:
    manager = manager_of(8, LayerGroup((0,), 1))
    manager.add(1, range(9))
    manager.grow(1, 0, 8)
    manager.grow(1, 8, 9)
    assert manager.block_tables(1)[0][:2] == (NULL_BLOCK, NULL_BLOCK)
    assert manager.num_free_blocks == 7


def test_full_groups_keep_everything() -> None:
    manager = manager_of(16, FULL, WINDOWED)
    compute(manager, 1, 20)
    full, windowed = manager.block_tables(1)
    assert NULL_BLOCK not in full
    assert windowed.count(NULL_BLOCK) == 2
    assert manager.num_free_blocks == 16 - 5 - 3


def test_blocks_given_back_count_for_the_same_grow() -> None:
    manager = manager_of(3, WINDOWED, caching=False)
    manager.add(1, range(100))
    for start in range(0, 96, 4):
        assert manager.grow(1, start, start + 4) is not None
        manager.check_invariants()
    assert manager.block_tables(1)[0][:-3] == (NULL_BLOCK,) * 21


def test_a_shared_block_that_is_passed_gives_no_room() -> None:
    manager = manager_of(3, WINDOWED)
    manager.add(1, range(16))
    manager.grow(1, 0, 12)
    assert manager.fork(1, 2, 12)
    assert manager.grow(1, 12, 13) is None, "the child holds the block that the window passes"
    assert NULL_BLOCK not in manager.block_tables(1)[0]
    manager.free(2)
    assert manager.grow(1, 12, 13) is not None
    manager.check_invariants()


def test_a_hit_holds_only_what_the_next_query_sees() -> None:
    manager = manager_of(16, FULL, WINDOWED)
    compute(manager, 1, 16)
    assert manager.add(2, range(17)) == 16
    full, windowed = manager.block_tables(2)
    assert full == manager.block_tables(1)[0]
    assert windowed == (NULL_BLOCK, NULL_BLOCK, *manager.block_tables(1)[1][2:])
    manager.check_invariants()


def test_a_hit_is_valid_in_every_group() -> None:
    manager = manager_of(8, FULL, WINDOWED)
    compute(manager, 1, 12)
    manager.free(1)
    manager.add(2, range(50, 59))
    manager.grow(2, 0, 9)  # takes two never used blocks, and the four released longest ago
    assert manager.num_free_blocks == 2
    assert manager.add(3, range(13)) == 4, "both groups have the first block left"
    assert NULL_BLOCK not in {block_id for table in manager.block_tables(3) for block_id in table}
    manager.check_invariants()


def test_passed_blocks_can_be_found_by_others() -> None:
    manager = manager_of(16, WINDOWED)
    compute(manager, 1, 20)
    assert manager.block_tables(1)[0][:2] == (NULL_BLOCK, NULL_BLOCK)
    assert manager.add(2, range(9)) == 8, "the first two blocks are given back, but still there"
    assert NULL_BLOCK not in manager.block_tables(2)[0]
    manager.check_invariants()


def test_a_window_passes_blocks_before_they_are_committed() -> None:
    manager = manager_of(16, FULL, WINDOWED)
    manager.add(1, range(20))
    for start in range(0, 20, 4):
        manager.grow(1, start, start + 4)
    manager.commit(1, range(20), 20)
    manager.check_invariants()
    assert manager.add(2, range(9)) == 0, "windowed layers have lost the first blocks"
    assert manager.add(3, range(21)) == 20


def test_a_sequence_cannot_go_back_before_its_window() -> None:
    manager = manager_of(16, WINDOWED)
    compute(manager, 1, 20)
    with pytest.raises(AssertionError, match="given back"):
        manager.grow(1, 8, 9)
