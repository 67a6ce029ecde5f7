"""Log-probabilities: of a row's token, and of the most likely ones, found without a sort.

The best k tokens are in k blocks: those with the largest maxima, the first of equal ones. For a token in any
other block is behind the best token of each of these.
"""

import triton
import triton.language as tl

from engine.sampling.kernels.blocks import log_sum_exp
from engine.sampling.kernels.row import BEAM, FLAGS, NUM_REPORTED, load_unbanned
from engine.sampling.report import MAX_CANDIDATES, REPORT_WIDTH

_MAX_CANDIDATES = tl.constexpr(MAX_CANDIDATES)
_WIDTH = tl.constexpr(REPORT_WIDTH)
_TOP_IDS = tl.constexpr(1)
_TOP_VALUES = tl.constexpr(1 + MAX_CANDIDATES)
_NOTHING = tl.constexpr(-(1 << 63))  # behind all sort keys
_LOW = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _sort_keys(values, ids):
    """int64, ascending with the value, and of equal values descending with the id; no two are equal."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)  # -0.0 becomes 0.0
    ordered = tl.where(bits < 0, bits ^ _LOW, bits)
    return (ordered.to(tl.int64) << 32) | (ids ^ _LOW).to(tl.int64)


@triton.jit
def _unpack(key):
    """The value and the id of a sort key; -inf and 0 of nothing."""
    ordered = (key >> 32).to(tl.int32)
    value = tl.where(ordered < 0, ordered ^ _LOW, ordered).to(tl.float32, bitcast=True)
    is_nothing = key == _NOTHING
    return tl.where(is_nothing, float("-inf"), value), tl.where(
        is_nothing, 0, (key & _LOW).to(tl.int32) ^ _LOW
    )


@triton.jit
def _list_best_blocks(maxima, num_blocks, num_listed, listed, LENGTH: tl.constexpr):
    index = tl.arange(0, LENGTH)
    is_block = index < num_blocks
    keys = _sort_keys(tl.load(maxima + index, mask=is_block, other=0.0), index)
    keys = tl.where(is_block, keys, _NOTHING)
    place = 0
    while place < num_listed:
        best = tl.max(keys, 0)
        _, block = _unpack(best)
        tl.store(listed + place, block)
        keys = tl.where(keys == best, _NOTHING, keys)
        place += 1
    tl.debug_barrier()


@triton.jit
def _report_best(row_logits, vocab_size, base, count, listed, num_listed, report, BLOCK: tl.constexpr):
    """The best `count` tokens of the listed blocks; values less `base`."""
    place = tl.arange(0, _MAX_CANDIDATES)
    blocks = tl.load(listed + place, mask=place < num_listed, other=0)
    token_ids = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    is_read = (place < num_listed)[:, None] & (token_ids < vocab_size)
    keys = _sort_keys(load_unbanned(row_logits, token_ids, is_read), token_ids)
    keys = tl.where(is_read, keys, _NOTHING)
    place = 0
    while place < count:
        best = tl.max(tl.max(keys, 1), 0)
        value, token_id = _unpack(best)
        tl.store(report + _TOP_IDS + place, token_id)
        tl.store(report + _TOP_VALUES + place, (value - base).to(tl.int32, bitcast=True))
        keys = tl.where(keys == best, _NOTHING, keys)
        place += 1


@triton.jit(  # one compilation for parts of a prompt, wherever they begin
    do_not_specialize=["num_blocks", "num_reported"], do_not_specialize_on_alignment=["token_ids", "report"]
)
def report_rows(
    logits,  # [n, vocab_size]
    processed,  # float32 [n, vocab_size]; None if rows is
    rows,  # int32 [n], -1: nothing to do; None: all rows of the logits
    packed,  # int32: rows.RowState; None if rows is
    token_ids,  # int32 [n]
    maxima,  # float32 [n, num_blocks]: of summarize_blocks; None if rows is
    raw_maxima,  # float32 [n, num_blocks], and raw_masses: of summarize_raw
    raw_masses,
    listed,  # int32 [n, num_blocks]: scratch
    report,  # int32 [n, REPORT_WIDTH], see sampling.report
    num_reported,  # where rows is None: of each
    logits_stride,
    packed_stride,
    vocab_size,
    num_blocks,
    BLOCK: tl.constexpr,  # tokens
    LENGTH: tl.constexpr,  # num_blocks, to a power of two
):
    """Rows of a beam search report their best processed logits, as they are, and 0.0 for their token."""
    sample = tl.program_id(0)
    count = num_reported
    is_beam = 0
    best_of = raw_maxima
    if rows is not None:
        row = tl.load(rows + sample)
        if row < 0:
            return
        state = packed + row.to(tl.int64) * packed_stride
        count = tl.load(state + NUM_REPORTED)
        if count < 0:
            return
        is_beam = tl.load(state + FLAGS) & BEAM
        best_of = tl.where(is_beam != 0, maxima, raw_maxima)
        processed += sample.to(tl.int64) * vocab_size
    logits += sample.to(tl.int64) * logits_stride
    report += sample * _WIDTH
    listed += sample * num_blocks
    base = log_sum_exp(raw_maxima + sample * num_blocks, raw_masses + sample * num_blocks, num_blocks, LENGTH)
    logprob = tl.load(logits + tl.load(token_ids + sample)).to(tl.float32) - base
    tl.store(report, tl.where(is_beam != 0, 0.0, logprob).to(tl.int32, bitcast=True))
    if count > 0:
        num_listed = tl.minimum(count, num_blocks)
        _list_best_blocks(best_of + sample * num_blocks, num_blocks, num_listed, listed, LENGTH)
        base = tl.where(is_beam != 0, 0.0, base)
        row_logits = (logits, processed, is_beam)
        _report_best(row_logits, vocab_size, base, count, listed, num_listed, report, BLOCK)
