from collections import Counter

import pytest

from kvcache.block_pool import BlockPool


@pytest.fixture
def evicted() -> list[int]:
    return []


@pytest.fixture
def pool(evicted: list[int]) -> BlockPool:
    return BlockPool(4, on_evict=evicted.append)


def take_all(pool: BlockPool) -> list[int]:
    return [pool.take() for _ in range(pool.num_free)]


def test_hands_out_every_block_once(pool: BlockPool) -> None:
    assert pool.num_blocks == pool.num_free == 4
    assert sorted(take_all(pool)) == [0, 1, 2, 3]
    assert pool.num_free == 0
    pool.check_invariants(Counter({0: 1, 1: 1, 2: 1, 3: 1}))


def test_a_block_is_free_when_its_last_holder_leaves(pool: BlockPool) -> None:
    block_id = pool.take()
    pool.share(block_id)
    assert pool.is_shared(block_id)
    pool.release(block_id, reusable=False)
    assert not pool.is_shared(block_id)
    assert pool.num_free == 3
    pool.release(block_id, reusable=False)
    assert pool.num_free == 4


def test_blocks_of_no_use_go_before_reusable_ones(pool: BlockPool, evicted: list[int]) -> None:
    kept, useless, *_ = take_all(pool)
    pool.release(kept, reusable=True)
    pool.release(useless, reusable=False)
    assert pool.take() == useless
    assert evicted == []
    assert pool.take() == kept
    assert evicted == [kept]


def test_evicts_what_was_released_longest_ago(pool: BlockPool, evicted: list[int]) -> None:
    first, second, third, fourth = take_all(pool)
    for block_id in (third, first, fourth, second):
        pool.release(block_id, reusable=True)
    pool.share(third)  # used once more, so it is now the last to go
    pool.release(third, reusable=True)
    assert take_all(pool) == evicted == [first, fourth, second, third]


def test_a_reusable_block_can_be_held_again(pool: BlockPool, evicted: list[int]) -> None:
    block_id = take_all(pool)[0]
    pool.release(block_id, reusable=True)
    assert pool.is_reusable(block_id)
    pool.share(block_id)
    assert not pool.is_reusable(block_id)
    assert pool.num_free == 0
    assert evicted == []


def test_an_empty_pool_gives_nothing(pool: BlockPool) -> None:
    take_all(pool)
    with pytest.raises(KeyError):
        pool.take()


def test_invariants_notice_a_lost_holder(pool: BlockPool) -> None:
    block_id = pool.take()
    pool.check_invariants(Counter([block_id]))
    with pytest.raises(AssertionError, match=f"block {block_id}"):
        pool.check_invariants(Counter())


def test_invariants_notice_a_block_given_back_twice(pool: BlockPool) -> None:
    first, second = pool.take(), pool.take()
    pool.release(first, reusable=False)
    pool.release(second, reusable=False)
    pool.share(pool.take())
    pool._free.append(first)
    with pytest.raises(AssertionError, match="twice"):
        pool.check_invariants(Counter({second: 2}))
