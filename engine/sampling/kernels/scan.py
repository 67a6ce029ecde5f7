"""Passes over a row's logits, tile by tile, of those blocks that may hold what a restriction keeps.

`source` is a row as tuple: its logits (row.py), vocab_size, largest logit, temperature, state and num_banned.
`listed`: int32 [num_listed], the blocks, ascending. `order`: of typical.py.
"""

import triton
import triton.language as tl

from engine.sampling.kernels.bounds import bisect, bound_from_below, without_ties
from engine.sampling.kernels.row import IMPOSSIBLE, load_logits, to_keys, weigh
from engine.sampling.kernels.typical import by_key, highest_rank, rank, weigh_with_distance


@triton.jit
def load_keys(source, token_ids, is_read):
    row_logits, vocab_size, largest, temperature, state, num_banned = source
    values = load_logits(row_logits, token_ids, is_read & (token_ids < vocab_size), state, num_banned)
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
    source, order, listed, num_listed, low, high, few_ids, few_keys,
    BLOCK: tl.constexpr, TILE: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """Write the tokens with ranks in [low, high], in the order of their ids, if they are at most FEW.

    How many they are, or some number above FEW.
    """
    tl.debug_barrier()  # others may still read what the last call wrote
    count = num_listed * 0
    start = 0
    while (start < num_listed) & (count <= FEW):
        token_ids, keys = load_tile(source, listed, start, num_listed, BLOCK, TILE)
        ranks = rank(keys, order)
        is_chosen = ((ranks >= low) & (ranks <= high)).to(tl.int32)
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
    source, order, listed, num_listed, by_mass, first, second, third, BLOCK: tl.constexpr, TILE: tl.constexpr
):
    """The masses (by_mass; else the numbers) of tokens with ranks up to each of three, float64."""
    below_first = tl.zeros([TILE, BLOCK], tl.float32)
    below_second = tl.zeros([TILE, BLOCK], tl.float32)
    below_third = tl.zeros([TILE, BLOCK], tl.float32)
    start = 0
    while start < num_listed:
        _, keys = load_tile(source, listed, start, num_listed, BLOCK, TILE)
        weights = tl.where(by_mass, weigh(keys), 1.0)
        ranks = rank(keys, order)
        below_first += tl.where(ranks <= first, weights, 0.0)
        below_second += tl.where(ranks <= second, weights, 0.0)
        below_third += tl.where(ranks <= third, weights, 0.0)
        start += TILE
    return (
        tl.sum(tl.sum(below_first, 1).to(tl.float64), 0),
        tl.sum(tl.sum(below_second, 1).to(tl.float64), 0),
        tl.sum(tl.sum(below_third, 1).to(tl.float64), 0),
    )


@triton.jit
def search(
    source, order, listed, num_listed, by_mass, target, low, high, few_ids, few_keys,
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
            source, order, listed, num_listed, by_mass, first, second, third, BLOCK, TILE
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
            count = gather(source, order, listed, num_listed, low, high, few_ids, few_keys, BLOCK, TILE, FEW)
    if low < high:
        keys = load_few(few_keys, count, FEW)
        weights = tl.where(by_mass, weigh(keys), 1.0).to(tl.float64)
        high = bisect(rank(keys, order), weights, target - below, low, high, 0)
    return high


@triton.jit
def sum_distances(source, last, listed, num_listed, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """The sums of typical.weigh_with_distance, float64."""
    masses = tl.zeros([TILE, BLOCK], tl.float32)
    distances = tl.zeros([TILE, BLOCK], tl.float32)
    start = 0
    while start < num_listed:
        _, keys = load_tile(source, listed, start, num_listed, BLOCK, TILE)
        mass, distance = weigh_with_distance(keys, last)
        masses += mass
        distances += distance
        start += TILE
    mass = tl.sum(tl.sum(masses, 1).to(tl.float64), 0)
    return mass, tl.sum(tl.sum(distances, 1).to(tl.float64), 0)


@triton.jit
def truncate_many(
    source, listed, num_listed, block_keys, block_masses, restrictions, total, high, few_ids, few_keys,
    BLOCK: tl.constexpr, TILE: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """bounds.truncate where more than FEW tokens have keys up to `high`.

    restrictions: top_k, top_p, the last key that min-p keeps, and typical_p. Returns an order as its two
    parts, and the last rank that is kept in it.
    """
    top_k, top_p, floor, typical_p = restrictions
    mean, last = by_key()
    for stage in range(
        3
    ):  # by number, for top-k; by mass, for top-p; by mass in another order, for typical-p
        is_restricted = (top_k > 0).to(tl.int32)
        if stage == 1:
            is_restricted = (top_p < 1).to(tl.int32)
        if stage == 2:
            high = tl.minimum(high, floor)
            is_restricted = (typical_p < 1).to(tl.int32)
        if is_restricted > 0:
            target = tl.where(stage == 1, total * top_p, top_k.to(tl.float64))
            # Block masses are missing behind top-k, which starts the search for top-p from key 0.
            weights = tl.where(stage == 1, tl.where(top_k > 0, total, block_masses), 1.0 * BLOCK)
            low = bound_from_below(block_keys, weights, target * (1 - 1e-6), high)
            if stage == 2:
                mass, distance = sum_distances(source, high, listed, num_listed, BLOCK, TILE)
                mean = (distance / mass).to(tl.float32)
                last = high
                target = mass * typical_p
                low = high * 0
                high = highest_rank((mean, last))
            high = search(
                source,
                (mean, last),
                listed,
                num_listed,
                stage > 0,
                target,
                low,
                high,
                few_ids,
                few_keys,
                BLOCK,
                TILE,
                FEW,
            )
            if (stage == 0) & (top_p < 1):
                order = (mean, last)
                mass, _, _ = measure(source, order, listed, num_listed, True, high, high, high, BLOCK, TILE)
                number, _, _ = measure(
                    source, order, listed, num_listed, False, high, high, high, BLOCK, TILE
                )
                total = without_ties(mass, number, top_k, high)
    return mean, last, high


@triton.jit
def weigh_blocks(
    source, order, listed, num_listed, last, masses,
    BLOCK: tl.constexpr, TILE: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """The mass of ranks up to `last` in each listed block, float64 [LENGTH]. masses: float32 scratch."""
    start = 0
    while start < num_listed:
        _, keys = load_tile(source, listed, start, num_listed, BLOCK, TILE)
        index = start + tl.arange(0, TILE)
        weights = tl.where(rank(keys, order) <= last, weigh(keys), 0.0)
        tl.store(masses + index, tl.sum(weights, 1), mask=index < num_listed)
        start += TILE
    tl.debug_barrier()
    index = tl.arange(0, LENGTH)
    return tl.load(masses + index, mask=index < num_listed, other=0.0).to(tl.float64)
