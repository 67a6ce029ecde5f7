"""Locally typical sampling (Meister et al., arXiv:2202.00666) of what other truncations have left."""

import torch
from torch import Tensor

from engine.sampling.inverse_cdf import BLOCK_SIZE
from engine.sampling.truncation import search_widening

_LOWEST = -200.0  # exp() of less is 0 in float32; times 0 it must not be NaN


def keep_typical(logits: Tensor, blocks: Tensor, typical_p: Tensor) -> Tensor:
    """blocks without the weight of tokens that are not typical enough; those that tie with the last survive.

    A token's distance is |-log p - entropy|. With p = exp(logit) / Z, log Z cancels in it: the distance is
    |logit - mean logit|. The nearest tokens whose mass reaches typical_p survive.

    logits: [n, vocab_size] float32, finite or -inf. blocks: see `inverse_cdf.exp_in_blocks`, 0 for tokens
    that are out already. typical_p: [n] float32.
    """
    vocab_size = logits.shape[1]
    weights = blocks.flatten(1)[:, :vocab_size]
    totals = blocks.sum(-1).double().sum(-1)
    mean = _sum_in_blocks(weights * logits.clamp(min=_LOWEST)) / totals
    # Those that are out come last: they would only make the search look further.
    distances = (logits - mean.float().unsqueeze(1)).abs_().masked_fill_(weights == 0, torch.inf)
    wanted = totals * typical_p

    def look(index: Tensor | None, width: int) -> tuple[Tensor, Tensor]:
        if index is None:
            return _of_nearest(distances, weights, wanted, width)
        return _of_nearest(distances[index], weights[index], wanted[index], width)

    bounds = search_widening(look, vocab_size, logits.device)
    kept = torch.zeros_like(blocks)
    kept.flatten(1)[:, :vocab_size] = weights.masked_fill(distances > bounds.unsqueeze(1), 0)
    return kept


def _of_nearest(distances: Tensor, weights: Tensor, wanted: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The distance of the last survivor, [n], among the `width` nearest tokens, and whether it is among them,
    bool [n]."""
    wants_all = width == distances.shape[1]
    nearest, ids = distances.sort() if wants_all else distances.topk(width, largest=False)
    mass = weights.gather(1, ids).double().cumsum(-1)
    last = torch.searchsorted(mass, wanted.unsqueeze(1)).squeeze(1)
    bounds = nearest.gather(1, last.clamp(max=width - 1).unsqueeze(1)).squeeze(1)
    return bounds, last < width


def _sum_in_blocks(values: Tensor) -> Tensor:
    """[n] float64, of [n, vocab_size] float32: the same for a row alone and in a batch."""
    blocks = values.new_zeros(len(values), -(-values.shape[1] // BLOCK_SIZE), BLOCK_SIZE)
    blocks.flatten(1)[:, : values.shape[1]] = values
    return blocks.sum(-1).double().sum(-1)
