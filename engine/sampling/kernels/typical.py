"""Locally typical sampling (Meister et al., arXiv:2202.00666), see sampling.typical: tokens in the order of
how far their logit is from the mean one.

An *order* is a tuple: the mean key, as the float32 that it stands for, and the last key that other
restrictions keep. With a mean below 0 the order is that of the keys themselves.
"""

import triton
import triton.language as tl

from engine.sampling.kernels.row import HIGHEST, IMPOSSIBLE, weigh


@triton.jit
def by_key():
    """The order of top-k, top-p and min-p."""
    return tl.full((), -1.0, tl.float32), tl.full((), HIGHEST, tl.int32)


@triton.jit
def rank(keys, order):
    """int32, from 0 to HIGHEST, or IMPOSSIBLE: ascending in this order."""
    mean, last = order
    ranks = keys
    if mean >= 0:
        distances = tl.abs(keys.to(tl.float32, bitcast=True) - mean).to(tl.int32, bitcast=True)
        ranks = tl.where(keys <= last, distances, IMPOSSIBLE)
    return ranks


@triton.jit
def highest_rank(order):
    """A bound of all ranks but IMPOSSIBLE, where the mean is not below 0."""
    mean, last = order
    return tl.maximum(mean, last.to(tl.float32, bitcast=True) - mean).to(tl.int32, bitcast=True)


@triton.jit
def weigh_with_distance(keys, last):
    """The weights of keys up to `last`, and these times what the keys stand for. float32."""
    is_kept = keys <= last
    weights = tl.where(is_kept, weigh(keys), 0.0)
    return weights, weights * tl.where(is_kept, keys, 0).to(tl.float32, bitcast=True)
