"""The first kernel: all logits are read once, by many programs a row, and leave two numbers a block.

From the largest logit of each block follow the largest of the row and cheap bounds of what top-k and top-p
keep; from the masses follows the block that a row without them draws from.
"""

import triton
import triton.language as tl

from engine.sampling.kernels.row import TEMPERATURE, TOP_K, count_banned, is_random, load_float, load_logits


@triton.jit(do_not_specialize=["num_blocks"])
def summarize_blocks(
    logits,  # [n, vocab_size]
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
    blocks = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    token_ids = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    values = load_logits(
        logits + sample.to(tl.int64) * logits_stride,
        token_ids,
        token_ids < vocab_size,
        state,
        count_banned(state),
    )
    largest = tl.max(values, 1)
    tl.store(maxima + sample * num_blocks + blocks, largest, mask=blocks < num_blocks)
    # What top-k keeps has a mass of its own, which has to wait for it.
    if is_random(state) & (tl.load(state + TOP_K) == 0):
        base = tl.where(tl.abs(largest) < float("inf"), largest, 0.0)
        weights = tl.exp((values - base[:, None]) / load_float(state, TEMPERATURE))
        tl.store(masses + sample * num_blocks + blocks, tl.sum(weights, 1), mask=blocks < num_blocks)
