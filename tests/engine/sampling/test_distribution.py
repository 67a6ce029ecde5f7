"""Drawn tokens against exact probabilities, by chi-square with fixed seeds."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from engine.sampling.params import SamplingParams
from engine.sampling.sampler import Sampler

Floats = npt.NDArray[np.float64]

KINDS = {
    "temperature": SamplingParams(temperature=0.8, seed=1),
    "hot": SamplingParams(temperature=3.0, seed=2),
    "top_k": SamplingParams(temperature=1.0, top_k=20, seed=3),
    "top_p": SamplingParams(temperature=1.0, top_p=0.8, seed=4),
    "min_p": SamplingParams(temperature=1.5, min_p=0.05, seed=5),
    "all": SamplingParams(temperature=1.2, top_k=100, top_p=0.9, min_p=0.02, seed=2**64 - 1),
    "typical": SamplingParams(temperature=1.0, typical_p=0.6, seed=6),
    "typical of some": SamplingParams(temperature=1.4, top_k=200, typical_p=0.8, seed=7),
    "processed": SamplingParams(temperature=1.0, top_k=40, logit_bias=((7, 9.0), (300, -2.0)), seed=8),
    "banned": SamplingParams(temperature=1.0, min_p=0.01, bad_word_ids=((7,), (3,)), seed=9),
}


def exact_probabilities(logits: Tensor, params: SamplingParams) -> Floats:
    """By sorting, in float64."""
    scaled = logits.double().numpy().copy()
    for token_id, bias in params.logit_bias:
        scaled[token_id] += bias
    scaled[[word[0] for word in params.bad_word_ids]] = -np.inf
    scaled /= params.temperature
    order = np.argsort(-scaled, kind="stable")
    weights = np.exp(scaled[order] - scaled.max())
    if params.top_k:
        weights[params.top_k :] = 0
    before = (np.cumsum(weights) - weights) / weights.sum()
    weights[before >= params.top_p] = 0
    weights[weights < params.min_p] = 0
    weights = keep_typical(weights / weights.sum(), params.typical_p)
    probabilities: Floats = np.empty_like(weights)
    probabilities[order] = weights / weights.sum()
    return probabilities


def keep_typical(probabilities: Floats, typical_p: float) -> Floats:
    if typical_p == 1:
        return probabilities
    logs = np.log(np.where(probabilities > 0, probabilities, 1))
    distances = np.abs(logs - (probabilities * logs).sum())
    order = np.argsort(np.where(probabilities > 0, distances, np.inf), kind="stable")
    kept = probabilities.copy()
    kept[order[np.cumsum(probabilities[order]) - probabilities[order] >= typical_p]] = 0
    return kept


def assert_follows(token_ids: npt.NDArray[np.int64], probabilities: Floats) -> None:
    """No token of probability 0; chi-square is below its 1e-5 quantile, by Wilson and Hilferty's formula."""
    assert (probabilities[token_ids] > 0).all()
    order = np.argsort(-probabilities, kind="stable")
    counts = np.bincount(token_ids, minlength=len(probabilities))[order]
    bins = np.floor(np.cumsum(probabilities[order]) * len(token_ids) / 10).astype(np.int64)
    expected = np.bincount(bins, probabilities[order] * len(token_ids))  # about 10 or more in each
    observed = np.bincount(bins, counts)
    used = expected > 5
    assert expected[~used].sum() <= 10
    statistic = ((observed - expected)[used] ** 2 / expected[used]).sum()
    freedom = used.sum() - 1
    assert freedom >= 3
    spread = 2 / (9 * freedom)
    assert (np.cbrt(statistic / freedom) - (1 - spread)) / np.sqrt(spread) < 4.3


def draw(sampler: Sampler, logits: Tensor, num_rows: int, num_steps: int) -> npt.NDArray[np.int64]:
    """Token ids [num_steps, num_rows] from the same logits [vocab] everywhere."""
    rows = torch.arange(num_rows)
    batch = logits.repeat(num_rows, 1)
    steps = [sampler.sample(batch.clone(), rows, range(num_rows)).token_ids for _ in range(num_steps)]
    return torch.stack(steps).numpy()


def make_logits(vocab_size: int, scale: float) -> Tensor:
    return torch.randn(vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * scale


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_of_500(kind: str, make_sampler: Callable[..., Sampler]) -> None:
    logits, num_rows = make_logits(500, 2.0), 300
    sampler = make_sampler([KINDS[kind]] * num_rows, 500)
    token_ids = draw(sampler, logits, num_rows, num_steps=40)
    assert_follows(token_ids.flatten(), exact_probabilities(logits, KINDS[kind]))


@pytest.mark.parametrize(("vocab_size", "num_steps"), [(32_000, 15), (128_256, 8), (262_144, 6)])
def test_mixed_rows_of_a_large_vocabulary(
    vocab_size: int, num_steps: int, make_sampler: Callable[..., Sampler]
) -> None:
    logits, copies = make_logits(vocab_size, 4.0), 8
    kinds = [
        KINDS[kind] for kind in ("temperature", "top_k", "top_p", "min_p", "all", "typical", "processed")
    ]
    kinds.append(SamplingParams())
    sampler = make_sampler(list(kinds) * copies, vocab_size)
    token_ids = draw(sampler, logits, len(kinds) * copies, num_steps)
    for position, params in enumerate(kinds[:-1]):
        drawn = token_ids[:, position :: len(kinds)].flatten()
        assert_follows(drawn, exact_probabilities(logits, params))
    assert (token_ids[:, len(kinds) - 1 :: len(kinds)] == logits.argmax().item()).all()


def test_the_ends_of_the_vocabulary_are_drawn(make_sampler: Callable[..., Sampler]) -> None:
    vocab_size, num_rows = 1000, 200
    logits = torch.full((vocab_size,), -torch.inf)
    logits[[0, 255, 256, vocab_size - 1]] = 0.0
    sampler = make_sampler([SamplingParams(temperature=1.0, seed=9)] * num_rows, vocab_size)
    token_ids = draw(sampler, logits, num_rows, num_steps=20)
    assert_follows(token_ids.flatten(), exact_probabilities(logits, SamplingParams(temperature=1.0)))
