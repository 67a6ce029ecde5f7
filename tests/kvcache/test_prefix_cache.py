"""What the prefix cache finds is what was published: by text, never by hash alone."""

import gc
import weakref

import hypothesis.strategies as st
import pytest
from hypothesis import given

from kvcache.block_table import NULL_BLOCK
from kvcache.prefix_cache import Prefix, PrefixCache, hash_block, longest_hit

A, B, C = (1, 1), (2, 2), (3, 3)  # the texts of blocks


def extend(cache: PrefixCache, *texts: tuple[int, ...]) -> Prefix:
    prefix = cache.root
    for text in texts:
        longer = cache.extend(prefix, text)
        assert longer is not None
        prefix = longer
    return prefix


def match(cache: PrefixCache, *texts: tuple[int, ...]) -> list[Prefix]:
    return cache.match(sum(texts, ()), block_size=2, max_blocks=len(texts))


def test_finds_the_known_part_of_a_text() -> None:
    cache = PrefixCache(num_groups=1)
    known = extend(cache, A, B)
    assert match(cache, A, B, C) == [known.parent, known]
    assert match(cache, B, A) == []
    assert cache.match((*A, *B), block_size=2, max_blocks=1) == [known.parent]


def test_the_same_tokens_after_another_text_are_another_prefix() -> None:
    cache = PrefixCache(num_groups=1)
    after_a, after_b = extend(cache, A, C), extend(cache, B, C)
    assert after_a is not after_b
    assert match(cache, B, C)[-1] is after_b


def test_hashes_do_not_depend_on_the_process() -> None:
    assert hash_block(0, (1, 2)) == hash((0, (1, 2)))
    assert hash_block(0, (1, 2)) != hash_block(1, (1, 2))


def test_a_collision_is_neither_found_nor_published() -> None:
    cache = PrefixCache(num_groups=1, hash_block=lambda parent_hash, token_ids: 7)
    known = extend(cache, A)
    assert match(cache, A) == [known]
    assert match(cache, B) == []
    assert cache.extend(cache.root, B) is None
    assert cache.extend(known, A) is None, "the same tokens, but after other ones"
    assert match(cache, A, A) == [known]


def test_a_collision_in_the_parents_hash_is_noticed_in_the_child() -> None:
    """A and B hash alike, so their children's hashes are equal, and so are the children's tokens."""
    cache = PrefixCache(num_groups=1, hash_block=lambda _, token_ids: 0 if token_ids in (A, B) else 1)
    child = extend(cache, A, C)
    cache.publish(child, group=0, block_id=5)
    assert match(cache, A, C)[-1] is child
    assert match(cache, B, C) == []

    cache.withdraw(5)
    del child  # nobody needs A any more, so B can take its hash
    known = extend(cache, B)
    assert match(cache, B, C) == [known]
    assert match(cache, A, C) == []


def test_the_first_block_of_a_text_wins() -> None:
    cache = PrefixCache(num_groups=2)
    prefix = extend(cache, A)
    cache.publish(prefix, group=1, block_id=3)
    cache.publish(prefix, group=1, block_id=4)
    cache.publish(prefix, group=1, block_id=3)
    assert prefix.block_ids == [NULL_BLOCK, 3]
    assert 3 in cache
    assert 4 not in cache
    assert len(cache) == 1


def test_a_withdrawn_block_is_not_offered() -> None:
    cache = PrefixCache(num_groups=2)
    prefix = extend(cache, A)
    cache.publish(prefix, group=0, block_id=3)
    cache.publish(prefix, group=1, block_id=4)
    cache.withdraw(3)
    cache.withdraw(9)  # never published: nothing to do
    assert prefix.block_ids == [NULL_BLOCK, 4]
    cache.check_invariants()


def test_a_block_holds_one_text() -> None:
    cache = PrefixCache(num_groups=1)
    first, second = extend(cache, A), extend(cache, B)
    cache.publish(first, group=0, block_id=3)
    with pytest.raises(AssertionError, match="another text"):
        cache.publish(second, group=0, block_id=3)


def test_a_prefix_lives_as_long_as_a_longer_one_is_published() -> None:
    cache = PrefixCache(num_groups=1)
    cache.publish(extend(cache, A, B), group=0, block_id=3)
    gc.collect()
    assert [prefix.token_ids for prefix in match(cache, A, B)] == [A, B]
    cache.withdraw(3)
    gc.collect()
    assert match(cache, A, B) == []


def test_very_long_texts_are_forgotten_without_recursion() -> None:
    cache = PrefixCache(num_groups=1)
    prefix = cache.root
    for token_id in range(100_000):
        longer = cache.extend(prefix, (token_id,))
        assert longer is not None
        prefix = longer
    assert prefix.ancestor(100_000) is cache.root
    first = weakref.ref(prefix.ancestor(99_999))
    del prefix, longer
    assert first() is None


def test_invariants_notice_a_block_that_its_prefix_has_forgotten() -> None:
    cache = PrefixCache(num_groups=1)
    prefix = extend(cache, A)
    cache.publish(prefix, group=0, block_id=3)
    cache.check_invariants()
    prefix.block_ids[0] = NULL_BLOCK
    with pytest.raises(AssertionError, match="block 3"):
        cache.check_invariants()


def path_of(rows: list[list[bool]]) -> list[Prefix]:
    """Prefixes whose block of each group is published or not."""
    return [Prefix(None, (), 0, [0 if published else NULL_BLOCK for published in row]) for row in rows]


def test_without_windows_a_hit_ends_at_the_first_gap() -> None:
    path = path_of([[True, True], [True, True], [True, False], [True, True]])
    assert longest_hit(path, [None, None], block_size=4) == 2


def test_a_window_needs_only_the_last_blocks() -> None:
    path = path_of([[False], [True], [True], [False]])
    assert longest_hit(path, [9], block_size=4) == 3  # position 12 sees 4 to 12
    assert longest_hit(path, [10], block_size=4) == 0  # position 12 would see 3, too


def test_after_a_window_of_one_nothing_is_needed() -> None:
    assert longest_hit(path_of([[False], [False]]), [1], block_size=4) == 2


@given(
    rows=st.lists(st.tuples(st.booleans(), st.booleans()).map(list), max_size=8),
    windows=st.tuples(st.none() | st.integers(1, 20), st.none() | st.integers(1, 20)),
    block_size=st.integers(1, 5),
)
def test_a_hit_is_the_longest_that_every_group_can_start_from(
    rows: list[list[bool]], windows: tuple[int | None, int | None], block_size: int
) -> None:
    def is_valid(num_blocks: int) -> bool:
        query = num_blocks * block_size
        return all(
            rows[position // block_size][group]
            for group, window in enumerate(windows)
            for position in range(query)
            if window is None or position > query - window
        )

    expected = max(num_blocks for num_blocks in range(len(rows) + 1) if is_valid(num_blocks))
    assert longest_hit(path_of(rows), windows, block_size) == expected
