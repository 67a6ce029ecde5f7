"""Top-k, top-p and min-p against exact sums in float64, and against the warpers of transformers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.sampling.params import SamplingParams
from engine.sampling.sampler import Sampler
from engine.sampling.truncation import NUCLEUS_WIDTH, thresholds

NO_IDS = torch.LongTensor()  # the warpers do not look at them


def tempered(num_rows: int, vocab_size: int, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(vocab_size + num_rows)
    logits = torch.randn(num_rows, vocab_size, generator=generator) * scale
    return logits - logits.amax(dim=-1, keepdim=True)


def kept(logits: Tensor, top_k: list[int], top_p: list[float]) -> Tensor:
    """Mask of the tokens that survive."""
    limited = all(top_k)
    floors = thresholds(
        logits,
        logits.double().exp().sum(-1),
        torch.tensor(top_k, dtype=torch.int32),
        torch.tensor(top_p),
        max(top_k) if limited else None,
    )
    return logits >= floors.unsqueeze(1)


@pytest.mark.parametrize("vocab_size", [20, 500, 32_000])
@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(50, 1.0), (0, 0.9), (0, 0.2), (50, 0.9), (400, 0.5), (1000, 0.99)]
)
def test_same_tokens_as_transformers(vocab_size: int, scale: float, top_k: int, top_p: float) -> None:
    logits = tempered(8, vocab_size, scale)
    ours = kept(logits, [top_k] * 8, [top_p] * 8)
    warped = logits
    if top_k:
        warped = TopKLogitsWarper(top_k)(NO_IDS, warped)
    theirs = TopPLogitsWarper(top_p)(NO_IDS, warped) > -torch.inf
    # Where they differ, the mass before the token is within the rounding of a float32 sum of top_p.
    probabilities = warped.double().softmax(-1)
    for row, token in (ours != theirs).nonzero().tolist():
        mass_before = probabilities[row][logits[row] > logits[row, token]].sum().item()
        assert mass_before == pytest.approx(top_p, abs=1e-5)
    assert (ours != theirs).sum(-1).max() <= 2


def test_a_wide_nucleus_is_found_beyond_the_first_look() -> None:
    flat, narrow = tempered(1, 5000, 0.01), tempered(1, 5000, 20.0)
    mask = kept(torch.cat((flat, narrow)), [0, 0], [0.9, 0.9])
    probabilities = torch.cat((flat, narrow)).double().softmax(-1)
    smallest = probabilities.masked_fill(~mask, 1).amin(-1)
    masses = (probabilities * mask).sum(-1)
    assert mask[0].sum() > NUCLEUS_WIDTH > mask[1].sum()
    assert (masses >= 0.9).all()
    assert (masses - smallest < 0.9).all()


@pytest.mark.parametrize("top_k", [3, NUCLEUS_WIDTH + 1, 4999, 5000, 9999])
def test_a_row_is_the_same_alone_and_beside_wider_ones(top_k: int) -> None:
    logits = tempered(3, 5000, 2.0)
    together = kept(logits, [top_k, 0, 5000], [0.97, 0.999, 1.0])
    alone = kept(logits[:1], [top_k], [0.97])
    assert torch.equal(together[:1], alone)
    assert together[2].all()


def test_ties_with_the_last_survivor_survive() -> None:
    logits = torch.tensor([[0.0, -1.0, -1.0, -1.0, -2.0]])
    assert kept(logits, [2], [1.0]).tolist() == [[True, True, True, True, False]]
    assert kept(logits, [0], [0.5]).tolist() == [[True, True, True, True, False]]
    assert kept(logits, [0], [0.4]).tolist() == [[True, False, False, False, False]]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7, min_p=0.05, seed=1),
        SamplingParams(temperature=1.3, min_p=1.0, seed=1),
        SamplingParams(temperature=2.0, top_k=40, top_p=0.95, min_p=0.1, seed=1),
        SamplingParams(temperature=0.5, top_p=0.8, seed=1),
    ],
)
def test_only_tokens_that_transformers_keeps_are_drawn(
    params: SamplingParams, make_sampler: Callable[..., Sampler]
) -> None:
    num_rows, vocab_size = 400, 300
    logits = torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(5)) * 2
    warped = TemperatureLogitsWarper(params.temperature)(NO_IDS, logits)
    if params.top_k:
        warped = TopKLogitsWarper(params.top_k)(NO_IDS, warped)
    warped = TopPLogitsWarper(params.top_p)(NO_IDS, warped)
    warped = MinPLogitsWarper(params.min_p)(NO_IDS, warped)
    expected = set((warped[0] > -torch.inf).nonzero().flatten().tolist())
    sampler = make_sampler([params] * num_rows, vocab_size)
    drawn: set[int] = set()
    for _ in range(20):
        token_ids, *_ = sampler.sample(logits.repeat(num_rows, 1), torch.arange(num_rows), range(num_rows))
        drawn.update(token_ids.tolist())
    assert drawn <= expected
    assert len(drawn) > len(expected) / 2
