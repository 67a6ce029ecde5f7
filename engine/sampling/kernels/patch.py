"""The tokens that a row bans one by one: of repeated n-grams, bad words, and stop ids that come too early."""

import triton
import triton.language as tl

from engine.sampling.kernels.row import (
    NUM_GENERATED,
    NUM_PROMPT,
    STOP_IDS,
    count_banned,
)
from engine.sampling.rows import Column

_NGRAM_SIZE = tl.constexpr(int(Column.NGRAM_SIZE))
_NUM_BAD_WORDS = tl.constexpr(int(Column.NUM_BAD_WORDS))
_WORD = tl.constexpr(32)  # tokens of a word of `banned`


@triton.jit
def _any(mask):
    return tl.max(mask.to(tl.int32), 0) > 0


@triton.jit
def has_bans(state):
    num_lists = tl.maximum(tl.load(state + _NGRAM_SIZE), tl.load(state + _NUM_BAD_WORDS))
    return (num_lists > 0) | (count_banned(state) > 0)


@triton.jit
def _ban(banned, token_ids, is_banned, vocab_size):
    is_banned = is_banned & (token_ids >= 0) & (token_ids < vocab_size)
    tl.atomic_or(banned + token_ids // _WORD, 1 << (token_ids % _WORD), mask=is_banned, sem="relaxed")


@triton.jit
def _ban_ngrams(banned, history, start, length, size, vocab_size):
    """What followed wherever the last size - 1 tokens stood before, of n-grams that begin at `start`."""
    is_same = start + size <= length
    index = 0
    while (index < size - 1) & _any(is_same):
        wanted = tl.load(history + length - size + 1 + index)
        is_same = is_same & (tl.load(history + start + index, mask=is_same, other=-1) == wanted)
        index += 1
    _ban(banned, tl.load(history + start + size - 1, mask=is_same, other=0), is_same, vocab_size)


@triton.jit
def _ban_words(banned, history, length, bad_ids, bad_ends, num_words, vocab_size, MAX_WORDS: tl.constexpr):
    """The last token of each bad word of which the row ends with the others."""
    word = tl.arange(0, MAX_WORDS)
    ends = tl.load(bad_ends + word, mask=word < num_words, other=0)
    begins = tl.load(bad_ends + word - 1, mask=(word < num_words) & (word > 0), other=0)
    before = ends - begins - 1  # tokens before the last one
    is_same = (word < num_words) & (before <= length)
    is_left = is_same & (before > 0)
    index = 0
    while _any(is_left):
        wanted = tl.load(bad_ids + begins + index, mask=is_left, other=0)
        found = tl.load(history + length - before + index, mask=is_left, other=0)
        is_same = is_same & ((is_left == 0) | (wanted == found))
        index += 1
        is_left = is_same & (before > index)
    _ban(banned, tl.load(bad_ids + ends - 1, mask=is_same, other=0), is_same, vocab_size)


@triton.jit
def patch_rows(
    rows,  # int32 [n], -1: nothing to do
    packed,  # int32: rows.RowState
    history,  # these three: tables.RowTables
    bad_ids,
    bad_ends,
    banned,  # int32 [n, ceil(vocab_size / 32)]: zeros, of which a token's bit becomes 1 where it is banned
    packed_stride,
    history_width,
    vocab_size,
    SPAN: tl.constexpr,  # tokens of the history that a program looks at
    MAX_BAD_TOKENS: tl.constexpr,
    MAX_WORDS: tl.constexpr,
    STOP_LENGTH: tl.constexpr,  # the most stop ids of a row, to a power of two
):
    """Comes before process_rows, which does the rest in its one pass."""
    sample = tl.program_id(1)
    row = tl.load(rows + sample).to(tl.int64)
    if row < 0:
        return
    state = packed + row * packed_stride
    if has_bans(state) == 0:
        return
    banned += sample.to(tl.int64) * ((vocab_size + _WORD - 1) // _WORD)
    history += row * history_width
    length = tl.minimum(tl.load(state + NUM_PROMPT) + tl.load(state + NUM_GENERATED), history_width)
    size = tl.load(state + _NGRAM_SIZE)
    begin = tl.program_id(0) * SPAN
    if (size > 0) & (begin + size <= length):
        _ban_ngrams(banned, history, begin + tl.arange(0, SPAN), length, size, vocab_size)
    if tl.program_id(0) == 0:
        num_words = tl.load(state + _NUM_BAD_WORDS)
        if num_words > 0:
            bad_ids += row * MAX_BAD_TOKENS
            bad_ends += row * MAX_WORDS
            _ban_words(banned, history, length, bad_ids, bad_ends, num_words, vocab_size, MAX_WORDS)
        num_banned = count_banned(state)
        if num_banned > 0:
            column = tl.arange(0, STOP_LENGTH)
            stop_ids = tl.load(state + STOP_IDS + column, mask=column < num_banned, other=0)
            _ban(banned, stop_ids, column < num_banned, vocab_size)
