"""Reads and writes of the rows' state, one launch each."""

import torch
import triton
import triton.language as tl

FROM_STATE = -2
"""In the place of a position: the row decodes, and the device knows its position and token."""

_BLOCK = 256


@triton.jit(do_not_specialize=["num_words"])
def _scatter(state, indices, values, num_words, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_given = i < num_words
    index = tl.load(indices + i, mask=is_given, other=0)
    tl.store(state + index, tl.load(values + i, mask=is_given, other=0), mask=is_given)


@triton.jit(do_not_specialize=["num_tokens"])
def _take(
    rows,
    positions,
    token_ids,
    num_computed,
    last_token,
    num_tokens,
    ALL_DECODE: tl.constexpr,
    MARK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_token = i < num_tokens
    row = tl.load(rows + i, mask=is_token, other=-1)
    decodes = is_token & (row >= 0)
    if not ALL_DECODE:
        decodes = decodes & (tl.load(positions + i, mask=is_token, other=0) == MARK)
    is_taken = decodes | (is_token & (row < 0))
    position = tl.load(num_computed + row, mask=decodes, other=-1)
    tl.store(positions + i, position, mask=is_taken)
    tl.store(token_ids + i, tl.load(last_token + row, mask=decodes, other=0), mask=is_taken)
    tl.store(num_computed + row, position + 1, mask=decodes)


def scatter_words(state: torch.Tensor, indices: torch.Tensor, values: torch.Tensor) -> None:
    """state[indices[i]] = values[i]: all int32, indices different from each other."""
    num_words = len(indices)
    _scatter[(triton.cdiv(num_words, _BLOCK),)](state, indices, values, num_words, BLOCK=_BLOCK)


def take_tokens(
    rows: torch.Tensor,
    positions: torch.Tensor,
    token_ids: torch.Tensor,
    num_computed: torch.Tensor,
    last_token: torch.Tensor,
    *,
    all_decode: bool,
) -> None:
    """Fill in positions and tokens of the tokens that decode, and count them as computed.

    rows, positions, token_ids: int32 [N]. num_computed, last_token: int32 [max_num_rows].
    all_decode: every token whose row is not -1 decodes, whatever its position says; the others become padding
    (position -1, token 0). Else those decode whose position is FROM_STATE.
    """
    grid = (triton.cdiv(len(rows), _BLOCK),)
    _take[grid](
        rows,
        positions,
        token_ids,
        num_computed,
        last_token,
        len(rows),
        ALL_DECODE=all_decode,
        MARK=FROM_STATE,
        BLOCK=_BLOCK,
    )
