"""Room for sequences: granted, refused, given back."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

import kvcache
from kvcache.config import KVCacheConfig, LayerGroup
from kvcache.manager import Growth, KVCacheManager, TableUpdate

FULL, WINDOWED = LayerGroup((0,)), LayerGroup((1,), 6)


def manager_of(num_blocks: int, *groups: LayerGroup, caching: bool = True) -> KVCacheManager:
    config = KVCacheConfig(num_blocks, 4, groups or (FULL,), enable_prefix_caching=caching)
    return KVCacheManager(config)


def grow(manager: KVCacheManager, sequence_id: int, num_computed_tokens: int, num_tokens: int) -> Growth:
    growth = manager.grow(sequence_id, num_computed_tokens, num_tokens)
    assert growth is not None
    manager.check_invariants()
    return growth


def test_the_package_exports_what_its_users_need() -> None:
    assert set(kvcache.__all__) <= set(dir(kvcache))
    assert kvcache.KVCacheManager is KVCacheManager


def test_a_new_sequence_holds_nothing() -> None:
    manager = manager_of(8)
    assert manager.add(1, range(10)) == 0
    assert manager.block_tables(1) == ((),)
    assert manager.num_free_blocks == manager.num_blocks == 8
    assert manager.usage == 0


def test_room_comes_in_whole_blocks() -> None:
    manager = manager_of(8)
    manager.add(1, range(10))
    assert grow(manager, 1, 0, 10) == Growth(12, (TableUpdate(0, 0, (0, 1, 2)),))
    assert grow(manager, 1, 10, 12) == Growth(12)
    assert grow(manager, 1, 12, 13) == Growth(16, (TableUpdate(0, 3, (3,)),))
    assert manager.block_tables(1) == ((0, 1, 2, 3),)
    assert manager.usage == 0.5


def test_every_layer_group_gets_blocks_of_its_own() -> None:
    manager = manager_of(8, FULL, WINDOWED)
    manager.add(1, range(5))
    growth = grow(manager, 1, 0, 5)
    assert [update.group for update in growth.updates] == [0, 1]
    full, windowed = manager.block_tables(1)
    assert len(full) == len(windowed) == 2
    assert not set(full) & set(windowed)
    assert manager.num_free_blocks == 4


def test_a_refusal_changes_nothing() -> None:
    manager = manager_of(3)
    manager.add(1, range(8))
    manager.add(2, range(8))
    grow(manager, 1, 0, 8)
    assert manager.grow(2, 0, 8) is None
    assert manager.block_tables(2) == ((),)
    assert manager.num_free_blocks == 1
    assert grow(manager, 2, 0, 4).num_slots == 4


def test_freed_blocks_go_to_others() -> None:
    manager = manager_of(2)
    manager.add(1, range(8))
    grow(manager, 1, 0, 8)
    manager.free(1)
    manager.check_invariants()
    manager.add(1, range(100, 108))
    assert grow(manager, 1, 0, 8).num_slots == 8


def test_a_sequence_that_never_grew_can_be_freed() -> None:
    manager = manager_of(2)
    manager.add(1, [])
    manager.free(1)
    manager.check_invariants()
    assert manager.num_free_blocks == 2


def test_bugs_of_the_caller_are_noticed() -> None:
    manager = manager_of(4)
    manager.add(1, range(4))
    with pytest.raises(AssertionError, match="sequence 1 exists"):
        manager.add(1, range(4))
    with pytest.raises(AssertionError, match="without a block"):
        manager.grow(1, 4, 5)
    with pytest.raises(KeyError):
        manager.free(2)
    grow(manager, 1, 0, 4)
    with pytest.raises(AssertionError, match="not known"):
        manager.commit(1, [1, 2], 4)


def test_fits_counts_all_groups() -> None:
    assert manager_of(2).fits(8, 100)
    assert not manager_of(2).fits(9, 100)
    assert manager_of(4, FULL, FULL).fits(8, 100)
    assert not manager_of(3, FULL, FULL).fits(8, 100)


def test_a_window_fits_long_texts_into_few_blocks() -> None:
    windowed = manager_of(4, WINDOWED)
    assert windowed.fits(10**6, max_chunk_tokens=8)  # 5 + 8 tokens touch 4 blocks at most
    assert not windowed.fits(10**6, max_chunk_tokens=10)
    assert not manager_of(4, FULL, WINDOWED).fits(100, max_chunk_tokens=1)


@given(
    groups=st.sampled_from(
        [(FULL,), (WINDOWED,), (FULL, WINDOWED), (LayerGroup((0,), 1), LayerGroup((1,), 9))]
    ),
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=12),
)
def test_what_fits_is_never_refused_when_alone(groups: tuple[LayerGroup, ...], chunks: list[int]) -> None:
    num_blocks = 1
    while not manager_of(num_blocks, *groups).fits(sum(chunks), max(chunks)):
        num_blocks += 1
    manager = manager_of(num_blocks, *groups)
    manager.add(1, range(sum(chunks)))
    num_computed_tokens = 0
    for chunk in chunks:
        grow(manager, 1, num_computed_tokens, num_computed_tokens + chunk)
        num_computed_tokens += chunk
        manager.commit(1, range(sum(chunks)), num_computed_tokens)
    assert num_computed_tokens == sum(chunks)


@pytest.mark.parametrize("group", [FULL, WINDOWED])
def test_invariants_notice_tables_of_unequal_length(group: LayerGroup) -> None:
    manager = manager_of(8, FULL, group)
    manager.add(1, range(8))
    grow(manager, 1, 0, 8)
    manager._pool.release(manager._sequences[1].tables[1].block_ids.pop(), reusable=False)
    with pytest.raises(AssertionError, match="unequal length"):
        manager.check_invariants()
