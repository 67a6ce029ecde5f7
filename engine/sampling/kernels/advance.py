"""What a row's token changes in its state, as sampling.advance does: counts, history, the next top_p."""

import triton
import triton.language as tl

from engine.sampling.kernels.row import FLAGS, NUM_GENERATED, NUM_PROMPT, TOP_P, load_float
from engine.sampling.rows import Column, Flag
from engine.sampling.tables import MAX_SEEN, PROMPT_SHIFT

_TOP_P_FIRST = tl.constexpr(int(Column.TOP_P_FIRST))
_TOP_P_DECAY = tl.constexpr(int(Column.TOP_P_DECAY))
_TOP_P_MIN = tl.constexpr(int(Column.TOP_P_MIN))
_TOP_P_RESET_ID = tl.constexpr(int(Column.TOP_P_RESET_ID))
_COUNTS = tl.constexpr(int(Flag.COUNTS))
_KEEPS = tl.constexpr(int(Flag.KEEPS))
_MAX_SEEN = tl.constexpr(MAX_SEEN)
_WORD = tl.constexpr(32)  # tokens of a word of bits
_OUTPUT_MASK = tl.constexpr((1 << PROMPT_SHIFT) - 1)


@triton.jit
def advance(state, row, token_id, seen, seen_bits, history, vocab_size, history_width):
    """seen, seen_bits, history: of tables.RowTables; None where no row has Flag.COUNTS or KEEPS."""
    num_generated = tl.load(state + NUM_GENERATED)
    decay = load_float(state, _TOP_P_DECAY)
    if decay < 1:
        first = load_float(state, _TOP_P_FIRST)
        least = tl.minimum(load_float(state, _TOP_P_MIN), first)
        top_p = tl.maximum(load_float(state, TOP_P) * decay, least)
        top_p = tl.where(token_id == tl.load(state + _TOP_P_RESET_ID), first, top_p)
        tl.store(state + TOP_P, top_p.to(tl.int32, bitcast=True))
    if seen is not None:
        flags = tl.load(state + FLAGS)
        if (flags & _COUNTS) != 0:
            place = seen + row.to(tl.int64) * vocab_size + token_id
            count = tl.load(place)
            may_grow = (count & _OUTPUT_MASK) < _MAX_SEEN
            tl.store(place, count + may_grow.to(tl.int32))
            word = seen_bits + row.to(tl.int64) * ((vocab_size + _WORD - 1) // _WORD) + token_id // _WORD
            tl.store(word, tl.load(word) | (1 << (token_id % _WORD)))
        position = tl.load(state + NUM_PROMPT) + num_generated
        if ((flags & _KEEPS) != 0) & (position < history_width):
            tl.store(history + row.to(tl.int64) * history_width + position, token_id)
    tl.store(state + NUM_GENERATED, num_generated + 1)
