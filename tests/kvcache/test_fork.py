"""Forks share blocks until somebody writes."""

import pytest

from kvcache.config import KVCacheConfig, LayerGroup
from kvcache.manager import Growth, KVCacheManager, TableUpdate

TEXT = list(range(100, 108))  # two blocks of four


@pytest.fixture
def manager() -> KVCacheManager:
    """Sequence 1 holds TEXT in blocks 0 and 1, computed and committed, of eight."""
    manager = KVCacheManager(KVCacheConfig(8, 4))
    manager.add(1, TEXT)
    manager.grow(1, 0, 8)
    manager.commit(1, TEXT, 8)
    return manager


def test_a_fork_takes_no_blocks(manager: KVCacheManager) -> None:
    assert manager.fork(1, 2, 6)
    assert manager.block_tables(2) == ((0, 1),)
    assert manager.num_free_blocks == 6
    manager.check_invariants()


def test_a_fork_shares_only_what_its_tokens_are_in(manager: KVCacheManager) -> None:
    manager.fork(1, 2, 4)
    assert manager.block_tables(2) == ((0,),)
    manager.fork(1, 3, 0)
    assert manager.block_tables(3) == ((),)


def test_who_writes_first_gets_a_copy(manager: KVCacheManager) -> None:
    manager.fork(1, 2, 6)
    assert manager.grow(2, 6, 7) == Growth(8, (TableUpdate(0, 1, (2,)),), copies=((1, 2),))
    manager.check_invariants()
    assert manager.grow(2, 7, 8) == Growth(8), "it is the only holder now"
    assert manager.block_tables(1) == ((0, 1),)


def test_who_writes_last_keeps_the_original(manager: KVCacheManager) -> None:
    manager.add(3, range(5))
    manager.grow(3, 0, 5)
    manager.fork(3, 4, 5)
    parent, child = manager.grow(3, 5, 6), manager.grow(4, 5, 6)
    assert parent is not None
    assert len(parent.copies) == 1
    assert child == Growth(8)


def test_a_swap_and_new_blocks_are_one_update(manager: KVCacheManager) -> None:
    manager.fork(1, 2, 6)
    assert manager.grow(2, 6, 13) == Growth(16, (TableUpdate(0, 1, (2, 3, 4)),), copies=((1, 2),))


def test_the_last_prompt_token_in_a_full_published_block(manager: KVCacheManager) -> None:
    """The usual fork of several outputs: each computes the last prompt token again, to sample after it."""
    manager.fork(1, 2, 7)
    assert manager.grow(2, 7, 8) == Growth(8, (TableUpdate(0, 1, (2,)),), copies=((1, 2),))
    manager.commit(2, TEXT, 8)
    manager.check_invariants()
    assert manager.add(3, [*TEXT, 1]) == 8
    assert manager.block_tables(3) == ((0, 1),), "the parent's block was there first, and is unharmed"


def test_a_published_block_is_withdrawn_before_its_only_holder_writes(manager: KVCacheManager) -> None:
    manager.fork(1, 2, 7)
    manager.free(1)
    assert manager.grow(2, 7, 8) == Growth(8), "nobody else holds it: no copy is needed"
    assert manager.add(3, [*TEXT, 1]) == 4, "the second block may hold another text soon"
    manager.check_invariants()

    manager.commit(2, [*TEXT[:7], 0], 8)
    assert manager.add(4, [*TEXT, 1]) == 4
    assert manager.add(5, [*TEXT[:7], 0, 1]) == 8


def test_the_same_text_is_published_again(manager: KVCacheManager) -> None:
    manager.fork(1, 2, 7)
    manager.free(1)
    manager.grow(2, 7, 8)
    manager.commit(2, TEXT, 8)
    assert manager.add(3, [*TEXT, 1]) == 8


def test_nothing_is_copied_into_blocks_that_are_written_anew(manager: KVCacheManager) -> None:
    manager.fork(1, 2, 8)
    assert manager.grow(2, 3, 8) == Growth(8, (TableUpdate(0, 0, (3, 2)),), copies=((0, 3),))
    manager.fork(1, 3, 8)
    assert manager.grow(3, 4, 8) == Growth(8, (TableUpdate(0, 1, (4,)),))
    manager.check_invariants()


def test_a_rewound_sequence_commits_its_new_text(manager: KVCacheManager) -> None:
    text = [*TEXT[:2], 0, 0, 0, 0, 0, 0]
    assert manager.grow(1, 2, 8) == Growth(8)
    assert manager.add(2, [*TEXT, 1]) == 0, "what is taken back is not offered"
    manager.commit(1, text, 8)
    assert manager.add(3, [*text, 1]) == 8
    manager.check_invariants()


def test_a_refused_copy_changes_nothing(manager: KVCacheManager) -> None:
    manager.add(3, range(24))
    manager.grow(3, 0, 24)
    manager.fork(1, 2, 6)
    assert manager.num_free_blocks == 0
    assert manager.grow(2, 6, 7) is None
    assert manager.block_tables(2) == ((0, 1),)
    manager.free(1)
    assert manager.grow(2, 6, 7) == Growth(8), "the only holder needs no copy"
    manager.check_invariants()


def test_a_child_goes_on_committing_where_it_was_forked(manager: KVCacheManager) -> None:
    manager.fork(1, 2, 4)
    manager.grow(2, 4, 8)
    manager.commit(2, [*TEXT[:4], 1, 2, 3, 4], 8)
    assert manager.add(3, [*TEXT[:4], 1, 2, 3, 4, 5]) == 8
    assert manager.add(4, [*TEXT, 5]) == 8
    manager.check_invariants()


def test_many_children_share_and_part() -> None:
    manager = KVCacheManager(KVCacheConfig(8, 4))
    manager.add(0, range(6))
    manager.grow(0, 0, 6)
    for child_id in range(1, 5):
        assert manager.fork(0, child_id, 6)
    manager.free(0)
    growths = [manager.grow(child_id, 6, 7) for child_id in range(1, 5)]
    assert [len(growth.copies) for growth in growths if growth] == [1, 1, 1, 0]
    assert len({manager.block_tables(child_id)[0][1] for child_id in range(1, 5)}) == 4
    assert len({manager.block_tables(child_id)[0][0] for child_id in range(1, 5)}) == 1
    manager.check_invariants()


def test_a_fork_needs_what_its_window_sees() -> None:
    manager = KVCacheManager(KVCacheConfig(8, 4, (LayerGroup((0,), 4),)))
    manager.add(1, range(12))
    manager.grow(1, 0, 8)
    manager.grow(1, 8, 9)  # the query at 8 sees 5 to 8
    assert not manager.fork(1, 2, 6), "the query at 6 sees 3, whose block is given back"
    assert manager.fork(1, 2, 7)
    manager.check_invariants()
    manager.free(1)
    manager.free(2)
    assert manager.num_free_blocks == 8


def test_bugs_of_the_caller_are_noticed(manager: KVCacheManager) -> None:
    with pytest.raises(AssertionError, match="fewer tokens"):
        manager.fork(1, 2, 9)
    with pytest.raises(AssertionError, match="sequence 1 exists"):
        manager.fork(1, 1, 4)
