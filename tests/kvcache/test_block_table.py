"""The arithmetic of blocks and windows, against its definition token by token."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from kvcache.block_table import (
    NULL_BLOCK,
    BlockTable,
    first_visible_block,
    max_held_blocks,
    num_blocks_for,
)

WINDOWS = st.none() | st.integers(1, 40)


def visible(query: int, window: int | None) -> set[int]:
    """Positions that a query sees: n - window + 1 to n."""
    return {position for position in range(query + 1) if window is None or position > query - window}


@given(num_tokens=st.integers(0, 100), block_size=st.integers(1, 17))
def test_blocks_for_tokens(num_tokens: int, block_size: int) -> None:
    assert num_blocks_for(num_tokens, block_size) == len({p // block_size for p in range(num_tokens)})


@given(query=st.integers(0, 100), window=WINDOWS, block_size=st.integers(1, 17))
def test_first_visible_block(query: int, window: int | None, block_size: int) -> None:
    first = min(position // block_size for position in visible(query, window))
    assert first_visible_block(query, window, block_size) == first


@given(
    num_tokens=st.integers(1, 100),
    window=WINDOWS,
    chunk=st.integers(1, 20),
    block_size=st.integers(1, 17),
)
def test_a_chunk_never_touches_more_blocks_than_foreseen(
    num_tokens: int, window: int | None, chunk: int, block_size: int
) -> None:
    most = max_held_blocks(num_tokens, window, chunk, block_size)
    for start in range(num_tokens):
        written = set(range(start, min(start + chunk, num_tokens)))
        touched = {position // block_size for position in written | visible(start, window)}
        assert len(touched) <= most


def test_a_foreseen_number_of_blocks_is_reached() -> None:
    assert max_held_blocks(1000, None, 8, 16) == 63
    assert max_held_blocks(1000, 1, 1, 16) == 1
    assert max_held_blocks(1000, 17, 1, 16) == 2
    assert max_held_blocks(1000, 18, 1, 16) == 3  # the oldest in one block, sixteen in the next, the newest
    assert max_held_blocks(20, 1000, 500, 16) == 2  # no more than the tokens there are


def test_a_table_knows_what_a_window_has_passed() -> None:
    table = BlockTable(window=8, block_ids=[7, 5, 3])
    assert table.passed(num_computed_tokens=10, block_size=4) == []
    assert table.passed(num_computed_tokens=11, block_size=4) == [7]
    assert table.sees_from(num_tokens=0, block_size=4)


def test_a_table_cannot_go_back_before_what_it_gave_back() -> None:
    table = BlockTable(window=8, block_ids=[NULL_BLOCK, 5, 3], num_passed=1)
    assert table.held == [5, 3]
    assert table.sees_from(num_tokens=11, block_size=4)
    assert not table.sees_from(num_tokens=10, block_size=4)
    with pytest.raises(AssertionError, match="given back"):
        table.passed(num_computed_tokens=10, block_size=4)


@pytest.mark.parametrize("table", [BlockTable(8, [4, 5], 1), BlockTable(8, [NULL_BLOCK, NULL_BLOCK, 5], 1)])
def test_invariants_notice_a_wrong_count_of_passed_blocks(table: BlockTable) -> None:
    with pytest.raises(AssertionError):
        table.check_invariants()
