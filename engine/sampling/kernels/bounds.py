"""Searches over keys (row.py) for the last one that a restriction keeps.

They bisect the integers between two keys, counting or weighing what lies below: the search by thresholds that
sorting-free samplers use (FlashInfer, arXiv:2501.01005; RadiK, arXiv:2501.14336, by digits), ended exactly.
"""

import triton
import triton.language as tl

from engine.sampling.kernels.row import HIGHEST, IMPOSSIBLE, weigh
from engine.sampling.kernels.typical import by_key, rank, weigh_with_distance

TOLERANCE = tl.constexpr(1 << 16)  # of a bound that need not be exact: 1/128 of the value


@triton.jit
def all_keys():
    """The first and the last key of logits that are above -inf."""
    return tl.full((), 0, tl.int32), tl.full((), HIGHEST, tl.int32)


@triton.jit
def bisect(keys, weights, target, low, high, TOLERANCE: tl.constexpr):
    """The smallest key (to TOLERANCE, from above) such that keys up to it weigh at least `target`, or another
    key that includes the same ones. Keys up to `high` are taken to weigh enough, and below `low` too little.

    keys: int32 [length]. weights, [length], and target: float64, or float32 of integers.
    """
    while high - low > TOLERANCE:
        middle = low + ((high - low) >> 1)
        weight = tl.sum(tl.where(keys <= middle, weights, 0.0), 0)
        high = tl.where(weight >= target, middle, high)
        low = tl.where(weight > target, low, tl.where(weight < target, middle + 1, middle))
    return high


@triton.jit
def bound_top_k(block_keys, top_k, LENGTH: tl.constexpr):
    """A key that at least top_k tokens reach: as many blocks have a largest logit that does."""
    ones = tl.full([LENGTH], 1.0, tl.float32)
    low, high = all_keys()
    return bisect(block_keys, ones, top_k.to(tl.float32), low, high, TOLERANCE)


@triton.jit
def bound_top_p(block_keys, block_masses, wanted, BLOCK: tl.constexpr):
    """A key up to which tokens have at least the mass `wanted`.

    block_keys: of the largest logits. block_masses: float64. Of a block's tokens, the largest and those
    behind the key are known: the others have at most the key's own weight each.
    """
    enough = wanted * (1 + 1e-6)  # because block masses are rounded
    low, high = all_keys()
    while high - low > TOLERANCE:  # as bisect does, with weights that depend on the key
        middle = low + ((high - low) >> 1)
        missed = weigh(middle).to(tl.float64) * (BLOCK - 1)
        least = tl.maximum(weigh(block_keys).to(tl.float64), block_masses - missed)
        is_enough = tl.sum(tl.where(block_keys <= middle, least, 0.0), 0) >= enough
        high = tl.where(is_enough, middle, high)
        low = tl.where(is_enough, low, middle + 1)
    return high


@triton.jit
def bound_from_below(block_keys, block_weights, target, high):
    """A key that the searched one is not below: up to it, not even whole blocks weigh `target`."""
    low, _ = all_keys()
    return tl.maximum(bisect(block_keys, block_weights, target, low, high, TOLERANCE) - TOLERANCE, 0)


@triton.jit
def truncate(keys, top_k, top_p, total, high):
    """The last key that top-k and then top-p keep. keys: int32 [length], all that are up to `high`.

    total: float64, the mass that top_p is a part of where top_k does not limit it.
    """
    weights = weigh(keys).to(tl.float64)
    low, _ = all_keys()
    if top_k > 0:
        ones = tl.where(keys <= HIGHEST, 1.0, 0.0)
        high = bisect(keys, ones, top_k.to(tl.float32), low, high, 0)
        kept = tl.sum(tl.where(keys <= high, weights, 0.0), 0)
        num_kept = tl.sum(tl.where(keys <= high, ones, 0.0), 0).to(tl.float64)
        total = without_ties(kept, num_kept, top_k, high)
    if top_p < 1:
        high = bisect(keys, weights, total * top_p, low, high, 0)
    return high


@triton.jit
def truncate_small(
    few_keys, keys, count, top_k, top_p, total, high, LENGTH: tl.constexpr, TILE: tl.constexpr
):
    """truncate without a search: what is up to each key is added up for all keys at once, which takes a time
    that grows with the square of their number, but no step that waits for the one before.

    few_keys: int32 [count], where `keys` [LENGTH] were loaded from. TILE: keys to compare with at a time.
    """
    number = tl.zeros([LENGTH], tl.int32)
    mass = tl.zeros([LENGTH], tl.float64)
    start = 0
    while start < count:
        index = start + tl.arange(0, TILE)
        others = tl.load(few_keys + index, mask=index < count, other=IMPOSSIBLE)
        is_below = others[:, None] <= keys[None, :]  # a thread adds up a column: no shuffles between threads
        weights = weigh(others).to(tl.float64)
        number += tl.sum(is_below.to(tl.int32), 0)
        mass += tl.sum(tl.where(is_below, weights[:, None], 0.0), 0)
        start += TILE
    if top_k > 0:
        high = tl.minimum(high, tl.min(tl.where(number >= top_k, keys, HIGHEST), 0))
        kept = tl.max(tl.where(keys <= high, mass, 0.0), 0)
        num_kept = tl.max(tl.where(keys <= high, number, 0), 0).to(tl.float64)
        total = without_ties(kept, num_kept, top_k, high)
    if top_p < 1:
        high = tl.minimum(high, tl.min(tl.where(mass >= total * top_p, keys, HIGHEST), 0))
    return high


@triton.jit
def without_ties(mass, num_kept, top_k, last):
    """The mass of top_k tokens alone, where num_kept survive because some tie with the last one."""
    return mass - tl.maximum(num_kept - top_k, 0.0) * weigh(last).to(tl.float64)


@triton.jit
def truncate_typical(keys, last, typical_p):
    """As scan.truncate_many returns it: the last rank that typical_p keeps, of keys up to `last`."""
    mean, _ = by_key()
    high = last
    if typical_p < 1:
        weights, distances = weigh_with_distance(keys, last)
        total = tl.sum(weights.to(tl.float64), 0)
        mean = (tl.sum(distances.to(tl.float64), 0) / total).to(tl.float32)
        low, high = all_keys()
        high = bisect(rank(keys, (mean, last)), weights.to(tl.float64), total * typical_p, low, high, 0)
    return mean, last, high
