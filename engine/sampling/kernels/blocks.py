"""The first kernels: all logits are read once, by many programs a row, and leave two numbers a block.

From the largest logit of each block follow the largest of the row and cheap bounds of what top-k and top-p
keep; from the masses follows the block that a row without them draws from, or the sum of all exponentials.
"""

import triton
import triton.language as tl

from engine.sampling.kernels.row import (
    BEAM,
    CHANGES,
    FLAGS,
    TEMPERATURE,
    TOP_K,
    count_banned,
    is_random,
    load_float,
    load_logits,
    load_unbanned,
)


@triton.jit(do_not_specialize=["num_blocks"])
def summarize_blocks(
    logits,  # [n, vocab_size]
    processed,  # float32 [n, vocab_size]: of rows with Flag.CHANGES, and only these are read; None: all rows
    rows,  # int32 [n], -1: nothing to do
    packed,  # int32: rows.RowState
    maxima,  # float32 [n, num_blocks]
    masses,  # float32 [n, num_blocks]: sums of exp((logit - the block's largest) / temperature)
    logits_stride,
    packed_stride,
    vocab_size,
    num_blocks,
    BLOCK: tl.constexpr,  # tokens
    CHUNK: tl.constexpr,  # blocks of a program
):
    sample = tl.program_id(1)
    row = tl.load(rows + sample)
    if row < 0:
        return
    state = packed + row.to(tl.int64) * packed_stride
    logits += sample.to(tl.int64) * logits_stride
    is_processed = 0
    num_banned = count_banned(state)
    if processed is not None:
        is_processed = tl.load(state + FLAGS) & CHANGES
        if is_processed == 0:
            return
        processed += sample.to(tl.int64) * vocab_size
        num_banned *= 0  # process_rows has done it
    row_logits = (logits, processed, is_processed)
    blocks = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    token_ids = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    values = load_logits(row_logits, token_ids, token_ids < vocab_size, state, num_banned)
    first = sample * num_blocks
    temperature = load_float(state, TEMPERATURE)
    summarize(values, blocks, num_blocks, maxima + first, masses + first, temperature, needs_masses(state))


@triton.jit
def needs_masses(state):
    """What top-k keeps has a mass of its own, which has to wait for it."""
    return is_random(state) & (tl.load(state + TOP_K) == 0)


@triton.jit
def summarize(values, blocks, num_blocks, maxima, masses, temperature, has_masses):
    """values: float32 [length, BLOCK], of `blocks` [length]. maxima, masses: the row's."""
    largest = tl.max(values, 1)
    tl.store(maxima + blocks, largest, mask=blocks < num_blocks)
    if has_masses:
        base = tl.where(tl.abs(largest) < float("inf"), largest, 0.0)
        weights = tl.exp((values - base[:, None]) / temperature)
        tl.store(masses + blocks, tl.sum(weights, 1), mask=blocks < num_blocks)


@triton.jit(do_not_specialize=["num_blocks"])
def summarize_raw(
    logits,  # [n, vocab_size]
    rows,  # int32 [n], -1: nothing to do; None: all rows of the logits
    packed,  # int32: rows.RowState; None if rows is
    maxima,  # float32 [n, num_blocks]
    masses,  # float32 [n, num_blocks]: sums of exp(logit - the block's largest)
    logits_stride,
    packed_stride,
    vocab_size,
    num_blocks,
    BLOCK: tl.constexpr,  # tokens
    CHUNK: tl.constexpr,  # blocks of a program
):
    """Of the model's own logits, for rows that start from their log-probabilities: those of a beam search.
    Other rows that report some get the same from process_rows.
    """
    sample = tl.program_id(1)
    if rows is not None:
        row = tl.load(rows + sample)
        if row < 0:
            return
        state = packed + row.to(tl.int64) * packed_stride
        if (tl.load(state + FLAGS) & BEAM) == 0:
            return
    row_logits = (logits + sample.to(tl.int64) * logits_stride, None, 0)
    first = sample * num_blocks
    start = tl.program_id(0) * CHUNK
    while start < num_blocks:
        blocks = start + tl.arange(0, CHUNK)
        token_ids = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        values = load_unbanned(row_logits, token_ids, token_ids < vocab_size)
        summarize(values, blocks, num_blocks, maxima + first, masses + first, 1.0, True)
        start += tl.num_programs(0) * CHUNK


@triton.jit
def log_sum_exp(maxima, masses, num_blocks, LENGTH: tl.constexpr):
    """float32, of a row's blocks. LENGTH: num_blocks, to a power of two."""
    index = tl.arange(0, LENGTH)
    largest_of = tl.load(maxima + index, mask=index < num_blocks, other=float("-inf"))
    mass_of = tl.load(masses + index, mask=index < num_blocks, other=0.0)
    largest = tl.max(largest_of, 0)
    return largest + tl.log(tl.sum(mass_of * tl.exp(largest_of - largest), 0))
