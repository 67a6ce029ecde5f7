"""Passes over a row's logits, tile by tile, of those blocks that may hold what a restriction keeps.

`source` is a row as tuple: its logits, vocab_size, largest logit, temperature, state and num_banned.
`listed`: int32 [num_listed], the blocks, ascending.
"""

import triton
import triton.language as tl

from engine.sampling.kernels.bounds import bisect, bound_from_below, without_ties
from engine.sampling.kernels.row import IMPOSSIBLE, load_logits, to_keys, weigh


@triton.jit
def load_keys(source, token_ids, is_read):
    logits, vocab_size, largest, temperature, state, num_banned = source
    values = load_logits(logits, token_ids, is_read & (token_ids < vocab_size), state, num_banned)
    return to_keys(values, largest, temperature)


@triton.jit
def load_tile(source, listed, start, num_listed, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Token ids and keys [TILE, BLOCK] of the blocks listed[start : start + TILE]."""
    index = start + tl.arange(0, TILE)
    blocks = tl.load(listed + index, mask=index < num_listed, other=0)
    token_ids = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    return token_ids, load_keys(source, token_ids, (index < num_listed)[:, None])


@triton.jit
def list_blocks(block_keys, high, listed, LENGTH: tl.constexpr):
    """Write the blocks that hold keys up to `high`; how many."""
    is_listed = (block_keys <= high).to(tl.int32)
    place = tl.cumsum(is_listed, 0) - 1
    tl.store(listed + place, tl.arange(0, LENGTH), mask=is_listed > 0)
    tl.debug_barrier()
    return tl.sum(is_listed, 0)


@triton.jit
def gather(
    source, listed, num_listed, low, high, few_ids, few_keys,
    BLOCK: tl.constexpr, TILE: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """Write the tokens with keys in [low, high], in the order of their ids, if they are at most FEW.

    How many they are, or some number above FEW.
    """
    tl.debug_barrier()  # others may still read what the last call wrote
    count = num_listed * 0
    start = 0
    while (start < num_listed) & (count <= FEW):
        token_ids, keys = load_tile(source, listed, start, num_listed, BLOCK, TILE)
        is_chosen = ((keys >= low) & (keys <= high)).to(tl.int32)
        in_block = tl.sum(is_chosen, 1)
        place = (tl.cumsum(in_block, 0) - in_block)[:, None] + tl.cumsum(is_chosen, 1) - 1 + count
        fits = (is_chosen > 0) & (place < FEW)
        tl.store(few_ids + place, token_ids, mask=fits)
        tl.store(few_keys + place, keys, mask=fits)
        count += tl.sum(in_block, 0)
        start += TILE
    tl.debug_barrier()
    return count


@triton.jit
def load_few(few_keys, count, FEW: tl.constexpr):
    index = tl.arange(0, FEW)
    return tl.load(few_keys + index, mask=index < count, other=IMPOSSIBLE)


@triton.jit
def measure(
    source, listed, num_listed, by_mass, first, second, third, BLOCK: tl.constexpr, TILE: tl.constexpr
):
    """The masses (by_mass; else the numbers) of tokens with keys up to each of three, float64."""
    below_first = tl.zeros([TILE, BLOCK], tl.float32)
    below_second = tl.zeros([TILE, BLOCK], tl.float32)
    below_third = tl.zeros([TILE, BLOCK], tl.float32)
    start = 0
    while start < num_listed:
        _, keys = load_tile(source, listed, start, num_listed, BLOCK, TILE)
        weights = tl.where(by_mass, weigh(keys), 1.0)
        below_first += tl.where(keys <= first, weights, 0.0)
        below_second += tl.where(keys <= second, weights, 0.0)
        below_third += tl.where(keys <= third, weights, 0.0)
        start += TILE
    return (
        tl.sum(tl.sum(below_first, 1).to(tl.float64), 0),
        tl.sum(tl.sum(below_second, 1).to(tl.float64), 0),
        tl.sum(tl.sum(below_third, 1).to(tl.float64), 0),
    )


@triton.jit
def search(
    source, listed, num_listed, by_mass, target, low, high, few_ids, few_keys,
    BLOCK: tl.constexpr, TILE: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """bounds.bisect over all tokens: by quarters, until so few are left that registers hold them."""
    below = target * 0  # what keys below `low` weigh, once that has been measured
    is_measured = low < 0
    count = num_listed * 0 + FEW + 1
    while (low < high) & (count > FEW):
        span = (high - low).to(tl.int64)
        first = tl.where(is_measured, low + (span >> 2).to(tl.int32), low - 1)
        second = low + (span >> 1).to(tl.int32)
        third = low + ((span * 3) >> 2).to(tl.int32)
        to_first, to_second, to_third = measure(
            source, listed, num_listed, by_mass, first, second, third, BLOCK, TILE
        )
        if to_first >= target:
            high = first
        elif to_second >= target:
            low, high, below = first + 1, second, to_first
        elif to_third >= target:
            low, high, below = second + 1, third, to_second
        else:
            low, below = third + 1, to_third
        is_measured = low >= 0
        if low < high:
            count = gather(source, listed, num_listed, low, high, few_ids, few_keys, BLOCK, TILE, FEW)
    if low < high:
        keys = load_few(few_keys, count, FEW)
        weights = tl.where(by_mass, weigh(keys), 1.0).to(tl.float64)
        high = bisect(keys, weights, target - below, low, high, 0)
    return high


@triton.jit
def truncate_many(
    source, listed, num_listed, block_keys, block_masses, top_k, top_p, total, high, few_ids, few_keys,
    BLOCK: tl.constexpr, TILE: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """bounds.truncate where more than FEW tokens have keys up to `high`."""
    for by_mass in range(2):  # first by number, for top-k; then by mass, for top-p
        is_restricted = tl.where(by_mass == 1, (top_p < 1).to(tl.int32), (top_k > 0).to(tl.int32))
        if is_restricted > 0:
            target = tl.where(by_mass == 1, total * top_p, top_k.to(tl.float64))
            # Block masses are missing behind top-k, which starts the search for top-p from key 0.
            weights = tl.where(by_mass == 1, tl.where(top_k > 0, total, block_masses), 1.0 * BLOCK)
            low = bound_from_below(block_keys, weights, target * (1 - 1e-6), high)
            high = search(
                source,
                listed,
                num_listed,
                by_mass == 1,
                target,
                low,
                high,
                few_ids,
                few_keys,
                BLOCK,
                TILE,
                FEW,
            )
            if (by_mass == 0) & (top_p < 1):
                mass, _, _ = measure(source, listed, num_listed, True, high, high, high, BLOCK, TILE)
                number, _, _ = measure(source, listed, num_listed, False, high, high, high, BLOCK, TILE)
                total = without_ties(mass, number, top_k, high)
    return high


@triton.jit
def weigh_blocks(
    source, listed, num_listed, last, masses, BLOCK: tl.constexpr, TILE: tl.constexpr, LENGTH: tl.constexpr
):
    """The mass of keys up to `last` in each listed block, float64 [LENGTH]. masses: float32, to pass them."""
    start = 0
    while start < num_listed:
        _, keys = load_tile(source, listed, start, num_listed, BLOCK, TILE)
        index = start + tl.arange(0, TILE)
        weights = tl.where(keys <= last, weigh(keys), 0.0)
        tl.store(masses + index, tl.sum(weights, 1), mask=index < num_listed)
        start += TILE
    tl.debug_barrier()
    index = tl.arange(0, LENGTH)
    return tl.load(masses + index, mask=index < num_listed, other=0.0).to(tl.float64)
