"""What a random row draws from: its logits after temperature, top-k, top-p, min-p and typical-p."""

import torch
from torch import Tensor

from engine.sampling.inverse_cdf import exp_in_blocks
from engine.sampling.rows import Column, Hints, RowBatch, select, to_index
from engine.sampling.truncation import thresholds
from engine.sampling.typical import keep_typical


def temper(logits: Tensor, largest: Tensor, batch: RowBatch) -> Tensor:
    """Logits over the temperature, shifted so that the largest of a row is 0."""
    return (logits - largest.unsqueeze(1)).div_(batch.floats(Column.TEMPERATURE).unsqueeze(1))


def weigh(logits: Tensor, batch: RowBatch, hints: Hints) -> tuple[Tensor, Tensor]:
    """Unnormalised probabilities of n rows that are all random: 0 for tokens that are cut off.

    logits: tempered, [n, vocab_size]. Returns weights as `inverse_cdf.exp_in_blocks` has them, and the sums
    of their blocks, [n, blocks] float64.
    """
    blocks, weights = exp_in_blocks(logits)
    masses = blocks.sum(-1).double()
    if (hints["truncates"] | hints["min_p"]).any():
        floors = _floors(logits, masses, batch, hints)
        weights.masked_fill_(logits < floors.unsqueeze(1), 0)
        masses = blocks.sum(-1).double()
    if hints["typical"].any():
        index = to_index(hints["typical"], logits.device)
        typical_p = batch.select(index).floats(Column.TYPICAL_P)
        kept = keep_typical(select(logits, index), select(blocks, index), typical_p)
        blocks = kept if index is None else blocks.index_copy_(0, index, kept)
        masses = blocks.sum(-1).double()
    return blocks, masses


def _floors(logits: Tensor, masses: Tensor, batch: RowBatch, hints: Hints) -> Tensor:
    """The smallest logit that each row keeps, [n]. Min-p is a ratio to the most likely token, of logit 0."""
    floors = batch.floats(Column.MIN_P).log()
    if not hints["truncates"].any():
        return floors
    index = to_index(hints["truncates"], logits.device)
    rows, hints = batch.select(index), hints[hints["truncates"]]
    bounds = thresholds(
        select(logits, index),
        select(masses, index).sum(-1),
        rows.integers(Column.TOP_K),
        rows.floats(Column.TOP_P),
        largest_k=int(hints["top_k"].max()) if hints["top_k"].all() else None,
    )
    bounds = torch.maximum(bounds, select(floors, index))
    return bounds if index is None else floors.index_copy(0, index, bounds)
