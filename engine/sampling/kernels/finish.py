"""The second kernel: one program a row makes its token and its verdict."""

import triton
import triton.language as tl

from engine.sampling.kernels.advance import advance
from engine.sampling.kernels.bounds import (
    bound_top_k,
    bound_top_p,
    truncate,
    truncate_small,
    truncate_typical,
)
from engine.sampling.kernels.draw import draw
from engine.sampling.kernels.row import (
    BEAM,
    CHANGES,
    FLAGS,
    HIGHEST,
    MAX_NEW_TOKENS,
    MIN_P,
    NUM_GENERATED,
    STOP_IDS,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    TYPICAL_P,
    count_banned,
    draw_uniform,
    is_random,
    load_float,
    load_logits,
    to_keys,
    weigh,
)
from engine.sampling.kernels.scan import (
    gather,
    list_blocks,
    load_few,
    load_keys,
    truncate_many,
    weigh_blocks,
)
from engine.sampling.kernels.typical import by_key, rank
from scheduler.step import Finish

_NONE = tl.constexpr(int(Finish.NONE))
_STOP = tl.constexpr(int(Finish.STOP))
_LENGTH = tl.constexpr(int(Finish.LENGTH))
_ERROR = tl.constexpr(int(Finish.ERROR))


@triton.jit
def _find_largest(
    row_logits, vocab_size, state, num_banned, maxima, largest, BLOCK: tl.constexpr, LENGTH: tl.constexpr
):
    """The lowest token id that has the largest logit."""
    block = tl.min(tl.where(maxima == largest, tl.arange(0, LENGTH), LENGTH), 0)
    token_ids = block * BLOCK + tl.arange(0, BLOCK)
    values = load_logits(row_logits, token_ids, token_ids < vocab_size, state, num_banned)
    return tl.min(tl.where(values == largest, token_ids, vocab_size - 1), 0)


@triton.jit
def _draw_within(source, order, block, last, fraction, BLOCK: tl.constexpr):
    """A token of one block, of those with ranks up to `last`."""
    token_ids = block * BLOCK + tl.arange(0, BLOCK)
    keys = load_keys(source, token_ids, token_ids >= 0)
    weights = tl.where(rank(keys, order) <= last, weigh(keys), 0.0).to(tl.float64)
    index, _ = draw(weights, fraction, BLOCK)
    return block * BLOCK + index


@triton.jit
def _draw_few(few_ids, few_keys, count, last, typical_p, fraction, FEW: tl.constexpr):
    """A token of those gathered, with keys up to `last`, that typical-p keeps."""
    keys = load_few(few_keys, count, FEW)
    mean, key, last = truncate_typical(keys, last, typical_p)
    weights = tl.where(rank(keys, (mean, key)) <= last, weigh(keys), 0.0).to(tl.float64)
    index, _ = draw(weights, fraction, FEW)
    return tl.load(few_ids + index)


@triton.jit
def _draw_restricted(
    source, state, block_keys, block_masses, fraction, listed, masses, few_ids, few_keys,
    BLOCK: tl.constexpr, TILE: tl.constexpr, SMALL: tl.constexpr, FEW: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """A token of those that top-k, top-p, min-p and typical-p keep."""
    top_k = tl.load(state + TOP_K)
    top_p = load_float(state, TOP_P)
    min_p = load_float(state, MIN_P)
    typical_p = load_float(state, TYPICAL_P)
    total = tl.sum(block_masses, 0)
    floor = tl.abs(tl.log(tl.maximum(min_p, 1.1754943508222875e-38))).to(tl.int32, bitcast=True)
    floor = tl.where(min_p > 0, floor, HIGHEST)
    high = floor
    if top_k > 0:
        high = bound_top_k(block_keys, top_k, LENGTH)
    elif top_p < 1:
        high = bound_top_p(block_keys, block_masses, total * top_p, BLOCK)
    num_listed = list_blocks(block_keys, high, listed, LENGTH)
    count = gather(source, by_key(), listed, num_listed, 0, high, few_ids, few_keys, BLOCK, TILE, FEW)
    token_id = 0
    if count <= SMALL:
        keys = load_few(few_keys, count, SMALL)
        last = truncate_small(few_keys, keys, count, top_k, top_p, total, high, SMALL, TILE)
        last = tl.minimum(last, floor)
        token_id = _draw_few(few_ids, few_keys, count, last, typical_p, fraction, SMALL)
    elif count <= FEW:
        keys = load_few(few_keys, count, FEW)
        last = tl.minimum(truncate(keys, top_k, top_p, total, high), floor)
        token_id = _draw_few(few_ids, few_keys, count, last, typical_p, fraction, FEW)
    else:
        mean, key, last = truncate_many(
            source,
            listed,
            num_listed,
            block_keys,
            block_masses,
            (top_k, top_p, floor, typical_p),
            total,
            high,
            few_ids,
            few_keys,
            BLOCK,
            TILE,
            FEW,
        )
        order = (mean, key)
        block_weights = weigh_blocks(source, order, listed, num_listed, last, masses, BLOCK, TILE, LENGTH)
        index, rest = draw(block_weights, fraction, LENGTH)
        token_id = _draw_within(source, order, tl.load(listed + index), last, rest, BLOCK)
    return token_id


@triton.jit
def _verdict(state, token_id, largest, STOP_WIDTH: tl.constexpr, STOP_LENGTH: tl.constexpr):
    """A Finish code. ERROR beats STOP, which beats LENGTH."""
    column = tl.arange(0, STOP_LENGTH)
    stop_ids = tl.load(state + STOP_IDS + column, mask=column < STOP_WIDTH, other=-1)
    is_last = tl.load(state + NUM_GENERATED) + 1 >= tl.load(state + MAX_NEW_TOKENS)
    finish = tl.where(is_last, _LENGTH, 0)
    finish = tl.where(tl.max((stop_ids == token_id).to(tl.int32), 0) > 0, _STOP, finish)
    finish = tl.where((tl.load(state + FLAGS) & BEAM) != 0, _NONE, finish)  # the token is none of its own
    return tl.where(tl.abs(largest) < float("inf"), finish, _ERROR)


@triton.jit(do_not_specialize=["num_blocks", "out_stride"])  # one compilation for all batch sizes
def finish_rows(
    logits,  # [n, vocab_size]
    processed,  # float32 [n, vocab_size], and the next three, of tables.RowTables; or None, all of them,
    seen,  # if no row has any
    seen_bits,
    history,
    rows,  # int32 [n], -1: writes zeros
    packed,  # int32: rows.RowState
    maxima,  # float32 [n, num_blocks], and masses: of summarize_blocks
    masses,
    listed,  # int32 [n, num_blocks]: scratch
    few_ids,  # int32 [n, FEW]: scratch, and few_keys
    few_keys,
    last_token,  # int32 [max_num_rows]
    out,  # int32 [2, n]
    logits_stride,
    packed_stride,
    out_stride,
    vocab_size,
    history_width,
    num_blocks,
    BLOCK: tl.constexpr,  # tokens
    TILE: tl.constexpr,  # blocks
    SMALL: tl.constexpr,  # tokens
    FEW: tl.constexpr,  # tokens, at least SMALL
    LENGTH: tl.constexpr,  # num_blocks, to a power of two
    STOP_WIDTH: tl.constexpr,
    STOP_LENGTH: tl.constexpr,  # STOP_WIDTH, to a power of two
):
    sample = tl.program_id(0)
    row = tl.load(rows + sample)
    if row < 0:
        tl.store(out + sample, 0)
        tl.store(out + out_stride + sample, 0)
        return
    state = packed + row.to(tl.int64) * packed_stride
    logits += sample.to(tl.int64) * logits_stride
    maxima += sample * num_blocks
    masses += sample * num_blocks
    listed += sample * num_blocks
    few_ids += sample * FEW
    few_keys += sample * FEW
    is_processed = 0
    num_banned = count_banned(state)
    if processed is not None:
        processed += sample.to(tl.int64) * vocab_size
        is_processed = tl.load(state + FLAGS) & CHANGES
        num_banned = tl.where(is_processed != 0, 0, num_banned)  # patch_rows has done it
    row_logits = (logits, processed, is_processed)

    index = tl.arange(0, LENGTH)
    largest_of = tl.load(maxima + index, mask=index < num_blocks, other=float("-inf"))
    largest = tl.max(largest_of, 0)
    token_id = 0
    if is_random(state) & (tl.abs(largest) < float("inf")):
        temperature = load_float(state, TEMPERATURE)
        source = (row_logits, vocab_size, largest, temperature, state, num_banned)
        fraction = draw_uniform(state)
        block_keys = to_keys(largest_of, largest, temperature)
        has_masses = (index < num_blocks) & (tl.load(state + TOP_K) == 0)
        block_masses = tl.load(masses + index, mask=has_masses, other=0.0).to(tl.float64)
        block_masses *= weigh(block_keys).to(tl.float64)
        is_restricted = (tl.load(state + TOP_K) > 0) | (load_float(state, TOP_P) < 1)
        is_restricted |= (load_float(state, MIN_P) > 0) | (load_float(state, TYPICAL_P) < 1)
        if is_restricted:
            token_id = _draw_restricted(
                source, state, block_keys, block_masses, fraction, listed, masses, few_ids, few_keys,
                BLOCK, TILE, SMALL, FEW, LENGTH,
            )  # fmt: skip
        else:
            block, rest = draw(block_masses, fraction, LENGTH)
            mean, last = by_key()
            token_id = _draw_within(source, (mean, last), block, last, rest, BLOCK)
    else:
        token_id = _find_largest(
            row_logits, vocab_size, state, num_banned, largest_of, largest, BLOCK, LENGTH
        )

    finish = _verdict(state, token_id, largest, STOP_WIDTH, STOP_LENGTH)
    tl.store(out + sample, token_id)
    tl.store(out + out_stride + sample, finish)
    tl.store(last_token + row, token_id)
    advance(state, row, token_id, seen, seen_bits, history, vocab_size, history_width)
