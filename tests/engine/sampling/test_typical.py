"""Typical-p against its definition in float64, and against the warper of transformers."""

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import TypicalLogitsWarper

from engine.sampling.inverse_cdf import exp_in_blocks
from engine.sampling.typical import keep_typical

NO_IDS = torch.LongTensor()


def tempered(num_rows: int, vocab_size: int, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(vocab_size + num_rows)
    logits = torch.randn(num_rows, vocab_size, generator=generator) * scale
    return logits - logits.amax(dim=-1, keepdim=True)


def weigh(logits: Tensor, typical_p: list[float]) -> Tensor:
    """Weights [n, vocab_size] that are left."""
    blocks, _ = exp_in_blocks(logits)
    kept = keep_typical(logits, blocks, torch.tensor(typical_p))
    assert not kept.flatten(1)[:, logits.shape[1] :].any()
    return kept.flatten(1)[:, : logits.shape[1]]


@pytest.mark.parametrize("vocab_size", [1, 20, 256, 500, 32_000])
@pytest.mark.parametrize("scale", [0.3, 3.0, 12.0])
@pytest.mark.parametrize("typical_p", [0.1, 0.5, 0.9, 0.99])
def test_same_tokens_as_transformers(vocab_size: int, scale: float, typical_p: float) -> None:
    logits = tempered(4, vocab_size, scale)
    ours = weigh(logits, [typical_p] * 4) > 0
    has_weight = logits.exp() > 0
    # Its sums of float32 may miss the last token of a large vocabulary, so it gets float64.
    theirs = TypicalLogitsWarper(typical_p)(NO_IDS, logits.double()) > -torch.inf
    log_probs = logits.double().log_softmax(-1)
    distances = (-log_probs + (log_probs.exp() * log_probs).sum(-1, keepdim=True)).abs()
    # Where they differ, the mass of what is nearer is typical_p, up to the rounding of distances.
    for row, token in (ours != (theirs & has_weight)).nonzero().tolist():
        nearer = distances[row] < distances[row, token] - 1e-5
        within = distances[row] < distances[row, token] + 1e-5
        assert log_probs[row][nearer].exp().sum() <= typical_p + 1e-5
        assert log_probs[row][within].exp().sum() >= typical_p - 1e-5
    assert (ours != (theirs & has_weight)).sum(-1).max() <= 2


def test_ties_with_the_last_survivor_survive() -> None:
    logits = torch.tensor([[0.0, 0.0, -2.0, -2.0, -2.0, -9.0]])
    assert (weigh(logits, [0.1]) > 0).tolist() == [[True, True, False, False, False, False]]
    assert (weigh(logits, [0.95]) > 0).tolist() == [[True, True, True, True, True, False]]


def test_the_most_likely_token_may_go() -> None:
    logits = torch.cat((torch.zeros(1, 1), torch.full((1, 99), -3.0)), 1)
    assert not weigh(logits, [0.5])[0, 0]
    assert weigh(logits, [0.5])[0, 1:].all()


def test_tokens_that_are_out_count_for_nothing() -> None:
    logits = tempered(3, 700, 2.0)
    out = torch.zeros_like(logits, dtype=torch.bool)
    out[:, ::3] = True
    blocks, weights = exp_in_blocks(logits)
    weights.masked_fill_(out, 0)
    some = keep_typical(logits, blocks, torch.tensor([0.2, 0.5, 0.8])).flatten(1)[:, :700]
    alone = weigh(logits.masked_fill(out, -torch.inf), [0.2, 0.5, 0.8])
    assert torch.equal(some, alone)
    assert not some[out].any()


def test_a_row_is_the_same_alone_and_beside_wider_ones() -> None:
    logits = torch.cat((tempered(2, 5000, 4.0), tempered(1, 5000, 0.01)))
    together = weigh(logits, [0.3, 0.9, 0.95])
    alone = [weigh(logits[row : row + 1], [typical_p])[0] for row, typical_p in enumerate([0.3, 0.9, 0.95])]
    assert torch.equal(together, torch.stack(alone))
