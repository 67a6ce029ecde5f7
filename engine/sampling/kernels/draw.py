"""Drawing by inverting a cumulative sum, as inverse_cdf.draw does."""

import triton
import triton.language as tl


@triton.jit
def draw(weights, fraction, LENGTH: tl.constexpr):
    """One index, i with probability weights[i] / sum(weights); a weight of 0 is never drawn.

    weights: float64 [LENGTH]. fraction: float64, uniform in [0, 1].
    Returns the index, and how far into its weight the fraction fell: uniform again.
    """
    index = tl.arange(0, LENGTH)
    cumulative = tl.cumsum(weights, 0)
    target = fraction * tl.max(cumulative, 0)
    # Sums made in another order need not grow by rounding alone: a weight has to be there too.
    is_behind = (cumulative > target) & (weights > 0)
    last = tl.max(tl.where(weights > 0, index, 0), 0)
    chosen = tl.minimum(tl.min(tl.where(is_behind, index, LENGTH), 0), last)
    end = tl.sum(tl.where(index == chosen, cumulative, 0.0), 0)
    weight = tl.sum(tl.where(index == chosen, weights, 0.0), 0)
    rest = (target - end + weight) / weight
    return chosen, tl.minimum(tl.maximum(rest, 0.0), 1.0)
