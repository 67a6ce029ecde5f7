"""Sequences that begin alike share blocks; what nobody holds is kept as long as there is room."""

from collections.abc import Sequence

from kvcache.config import KVCacheConfig, LayerGroup
from kvcache.manager import KVCacheManager, PrefixStats
from kvcache.prefix_cache import hash_block

PROMPT = list(range(100, 112))  # three blocks of four


def manager_of(num_blocks: int, *, caching: bool = True) -> KVCacheManager:
    return KVCacheManager(KVCacheConfig(num_blocks, 4, enable_prefix_caching=caching))


def compute(manager: KVCacheManager, sequence_id: int, token_ids: Sequence[int]) -> int:
    """Add, compute and commit a whole text. Returns the number of cached tokens."""
    num_cached = manager.add(sequence_id, token_ids)
    assert manager.grow(sequence_id, num_cached, len(token_ids)) is not None
    manager.commit(sequence_id, token_ids, len(token_ids))
    manager.check_invariants()
    return num_cached


def test_a_running_sequence_shares_its_full_blocks() -> None:
    manager = manager_of(8)
    assert compute(manager, 1, PROMPT) == 0
    assert compute(manager, 2, [*PROMPT, 1]) == 12
    assert manager.block_tables(1)[0] == manager.block_tables(2)[0][:3]
    assert manager.num_free_blocks == 4


def test_one_token_is_always_left_to_compute() -> None:
    manager = manager_of(8)
    compute(manager, 1, PROMPT)
    assert compute(manager, 2, PROMPT) == 8


def test_only_full_computed_blocks_are_shared() -> None:
    manager = manager_of(8)
    manager.add(1, PROMPT)
    manager.grow(1, 0, 12)
    manager.commit(1, PROMPT, 7)
    assert manager.add(2, [*PROMPT, 1]) == 4
    manager.commit(1, PROMPT, 8)
    assert manager.add(3, [*PROMPT, 1]) == 8


def test_a_finished_sequence_leaves_its_blocks_for_reuse() -> None:
    manager = manager_of(8)
    compute(manager, 1, PROMPT)
    manager.free(1)
    assert manager.num_free_blocks == 8
    assert compute(manager, 2, PROMPT) == 8


def test_tails_are_evicted_before_what_they_go_on_from() -> None:
    manager = manager_of(4)
    compute(manager, 1, PROMPT)
    manager.free(1)
    compute(manager, 2, range(8))  # the never used block, then the tail of the prompt
    assert manager.add(3, [*PROMPT, 1]) == 8


def test_what_was_used_last_is_evicted_last() -> None:
    manager = manager_of(4)
    for sequence_id, token_ids in enumerate([range(5), range(10, 15)]):
        compute(manager, sequence_id, token_ids)
        manager.free(sequence_id)
    compute(manager, 2, range(5))  # the older text again, which makes it the younger one
    manager.free(2)
    compute(manager, 3, range(20, 32))
    assert manager.add(4, range(5)) == 4
    assert manager.add(5, range(10, 15)) == 0


def test_a_preempted_sequence_finds_its_own_blocks() -> None:
    manager = manager_of(8)
    compute(manager, 1, PROMPT)
    manager.free(1)
    assert manager.add(1, [*PROMPT, 1, 2]) == 12


def test_a_second_block_of_the_same_text_stays_private() -> None:
    manager = manager_of(8)
    for sequence_id in (1, 2):
        manager.add(sequence_id, PROMPT)
        manager.grow(sequence_id, 0, 12)
    for sequence_id in (1, 2):
        manager.commit(sequence_id, PROMPT, 12)
    manager.check_invariants()
    manager.add(3, [*PROMPT, 1])
    assert manager.block_tables(3) == manager.block_tables(1)
    manager.free(2)
    manager.free(1)
    manager.check_invariants()
    assert manager.num_free_blocks == 5


def test_colliding_hashes_cost_a_hit_but_never_give_a_wrong_one() -> None:
    manager = KVCacheManager(KVCacheConfig(16, 4), hash_block=lambda parent_hash, token_ids: 1)
    assert compute(manager, 1, range(8)) == 0
    assert compute(manager, 2, range(50, 58)) == 0
    assert manager.add(3, range(50, 58)) == 0, "its hash belongs to another text"
    assert manager.add(4, range(8)) == 4
    assert manager.block_tables(4)[0] == manager.block_tables(1)[0][:1]
    manager.commit(2, range(50, 58), 8)
    manager.check_invariants()


def test_equal_tokens_after_unequal_parents_are_told_apart() -> None:
    manager = KVCacheManager(
        KVCacheConfig(16, 4), hash_block=lambda parent_hash, token_ids: hash_block(0, token_ids)
    )
    compute(manager, 1, [1, 1, 1, 1, 7, 7, 7, 7, 9])
    assert manager.add(2, [2, 2, 2, 2, 7, 7, 7, 7, 9]) == 0
    assert manager.add(3, [1, 1, 1, 1, 7, 7, 7, 7, 9]) == 8


def test_without_prefix_caching_nothing_is_shared_or_kept() -> None:
    manager = manager_of(8, caching=False)
    compute(manager, 1, PROMPT)
    assert compute(manager, 2, PROMPT) == 0
    assert manager.num_free_blocks == 2
    assert manager.prefix_stats == PrefixStats(0, 0)


def test_lookups_are_counted_once_in_tokens() -> None:
    manager = manager_of(4)
    compute(manager, 1, PROMPT)
    assert manager.prefix_stats == PrefixStats(12, 0)
    for _ in range(3):  # does not get room, and tries again
        assert manager.add(2, [*PROMPT, *range(8)]) == 12
        assert manager.grow(2, 12, 20) is None
        manager.free(2)
    assert manager.prefix_stats == PrefixStats(12, 0)
    manager.add(3, [*PROMPT, 1])
    manager.grow(3, 12, 13)
    manager.grow(3, 13, 14)
    assert manager.prefix_stats == PrefixStats(25, 12)


def test_room_is_granted_when_it_can_only_come_from_the_cache() -> None:
    manager = KVCacheManager(KVCacheConfig(6, 4, (LayerGroup((0,)), LayerGroup((1,), 5))))
    for sequence_id in range(5):
        compute(manager, sequence_id, [sequence_id] * 12)
        manager.free(sequence_id)
    assert manager.num_free_blocks == 6
