"""Top-k and top-p as thresholds: a token survives when its logit is at least its row's threshold.

Tokens that tie with the last survivor survive too: the result does not depend on how a sort breaks ties.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Top-p alone may keep any number of tokens, but mostly keeps few, and on a CPU finding the largest few logits
# takes a fraction of the time of a sort. So look at this many, then at so many times more.
NUCLEUS_WIDTH = 128
NUCLEUS_GROWTH = 16


def thresholds(logits: Tensor, totals: Tensor, top_k: Tensor, top_p: Tensor, largest_k: int | None) -> Tensor:
    """The logit of the last token that top-k and then top-p keep.

    logits: [n, vocab] float32, the maximum of every row is 0. totals: [n] float64, sums of exp(logits).
    top_k: [n] int32, 0 keeps all. top_p: [n] float32, 1 keeps all. Returns [n] float32.
    largest_k: the largest top_k; None when some row restricts top_p alone.
    """
    vocab_size = logits.shape[1]
    if largest_k is not None:
        return _of_largest(logits, totals, top_k, top_p, min(largest_k, vocab_size))[0]

    def look(index: Tensor | None, width: int) -> tuple[Tensor, Tensor]:
        if index is None:
            return _of_largest(logits, totals, top_k, top_p, width)
        return _of_largest(logits[index], totals[index], top_k[index], top_p[index], width)

    return search_widening(look, vocab_size, logits.device)


def search_widening(
    look: Callable[[Tensor | None, int], tuple[Tensor, Tensor]], vocab_size: int, device: torch.device
) -> Tensor:
    """What `look` finds, [n].

    look: of the rows in an index, or of all n, and among so many of the tokens that come first: what it
    found, and whether these tokens were enough, bool [n]. They are when they are all.
    """
    if device.type != "cpu":  # asking whether some would do means waiting for the device
        return look(None, vocab_size)[0]
    width = min(NUCLEUS_WIDTH, vocab_size)
    results, found = look(None, width)
    while width < vocab_size and not found.all():
        width = min(width * NUCLEUS_GROWTH, vocab_size)
        rest = (~found).nonzero().squeeze(1)
        results[rest], found[rest] = look(rest, width)
    return results


def _of_largest(
    logits: Tensor, totals: Tensor, top_k: Tensor, top_p: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Thresholds [n] from the `width` largest logits, and whether these were enough, bool [n]."""
    wants_all = width == logits.shape[1]  # which sort finds sooner, on a GPU
    largest = logits.sort(descending=True).values if wants_all else logits.topk(width).values
    limited = top_k > 0
    last_k = torch.where(limited, top_k, logits.shape[1]).clamp(max=logits.shape[1]).long() - 1
    beyond_k = torch.arange(width, device=logits.device) > last_k.unsqueeze(1)
    mass = largest.exp().double().masked_fill_(beyond_k, 0).cumsum(-1)
    wanted = torch.where(limited, mass[:, -1], totals) * top_p
    # The token with which the mass reaches what top-p wants is the last one that top-p keeps.
    last_p = torch.searchsorted(mass, wanted.unsqueeze(1)).squeeze(1)
    last = torch.where(top_p < 1, torch.minimum(last_p, last_k), last_k)
    threshold = largest.gather(1, last.clamp(max=width - 1).unsqueeze(1)).squeeze(1)
    return threshold, torch.where(limited, last_k, last) < width
