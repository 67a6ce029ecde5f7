"""Drawing from unnormalised weights by inverting their cumulative sum, in token-id order."""

import torch
from torch import Tensor

BLOCK_SIZE = 256  # tokens; about the square root of a vocabulary, so that both levels of the search are short


def exp_in_blocks(logits: Tensor) -> tuple[Tensor, Tensor]:
    """exp(logits), padded to whole blocks: [n, blocks, BLOCK_SIZE], and a view of it without the padding."""
    num_rows, vocab_size = logits.shape
    blocks = logits.new_zeros(num_rows, -(-vocab_size // BLOCK_SIZE), BLOCK_SIZE)
    weights = blocks.flatten(1)[:, :vocab_size]
    torch.exp(logits, out=weights)
    return blocks, weights


def draw_tokens(weights: Tensor, masses: Tensor, fractions: Tensor) -> Tensor:
    """A token id for each row, [n] int64: first its block, then its place in the block.

    A running sum over a whole vocabulary is slow, and loses the tail in float32; one over blocks is not so.
    weights: [n, blocks, BLOCK_SIZE] float32. masses: [n, blocks] float64, their sums. fractions: see `draw`.
    """
    block, fractions = draw(masses, fractions)
    index = block.view(-1, 1, 1).expand(-1, 1, BLOCK_SIZE)
    place, _ = draw(weights.gather(1, index).squeeze(1).double(), fractions)
    return block * BLOCK_SIZE + place


def draw(weights: Tensor, fractions: Tensor) -> tuple[Tensor, Tensor]:
    """One index a row, i with probability weights[i] / sum(weights); a weight of 0 is never drawn.

    weights: [n, m] float64, none negative, not all 0. fractions: [n] float64, uniform in [0, 1].
    Returns the indices, [n] int64, and how far into the chosen weight each fraction fell: uniform again.
    A row with NaN gets some index in range.
    """
    cumulative = weights.cumsum(-1)
    # A target equal to the sum, which rounding can make, would fall behind the last token.
    just_below = torch.nextafter(cumulative[:, -1], torch.zeros_like(fractions))
    target = torch.minimum(fractions * cumulative[:, -1], just_below).unsqueeze(1)
    index = torch.searchsorted(cumulative, target, right=True).clamp(max=weights.shape[1] - 1)
    chosen = weights.gather(1, index)
    rest = (target - cumulative.gather(1, index) + chosen) / chosen
    return index.squeeze(1), rest.squeeze(1).clamp(0, 1)
