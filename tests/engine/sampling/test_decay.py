"""top_p from token to token (Lee et al., arXiv:2206.04624)."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.sampling.params import SamplingParams
from engine.sampling.rows import Column
from engine.sampling.sampler import Sampler
from scheduler.step import NewRow
from tests.engine.sampling.transformers_cases import assert_same_distribution, run, warpers

CPU = torch.device("cpu")
VOCAB_SIZE = 60
TOKENS = (7, 8, 9, 5, 7, 5, 5, 8, 8, 8)
RESETS = SamplingParams(temperature=1.0, seed=1, top_p=0.9, top_p_decay=0.7, top_p_min=0.5, top_p_reset_id=5)


def make_sampler(params: SamplingParams, output: tuple[int, ...] = ()) -> Sampler:
    """The prompt ends with the reset id, which does not matter."""
    sampler = Sampler(2, VOCAB_SIZE, 32, (2,), CPU)
    sampler.set_rows([NewRow(1, 2, len(output), 0, (), 99, params, 0, (5, 5, *output))])
    return sampler


def present(sampler: Sampler) -> float:
    return sampler.state.gather(torch.tensor([1])).floats(Column.TOP_P).item()


def choose(sampler: Sampler, token_id: int) -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, token_id] = 99.0
    assert sampler.sample(logits, torch.tensor([1]), [1]).token_ids.tolist() == [token_id]


def expected(params: SamplingParams) -> list[float]:
    """Before each of TOKENS, and after the last."""
    values = [np.float32(params.top_p)]
    for token_id in TOKENS:
        lowest = min(np.float32(params.top_p_min), np.float32(params.top_p))
        decayed = max(values[-1] * np.float32(params.top_p_decay), lowest)
        values.append(np.float32(params.top_p) if token_id == params.top_p_reset_id else decayed)
    return [float(value) for value in values]


@pytest.mark.parametrize(
    "params",
    [
        RESETS,
        replace(RESETS, top_p_reset_id=None, top_p_min=0.0),
        replace(RESETS, top_p=1.0),
        replace(RESETS, top_p=0.3),  # below the least one: it stays
        replace(RESETS, top_p_decay=1.0),
    ],
)
def test_top_p_follows_the_tokens_and_a_preemption_does_not_matter(params: SamplingParams) -> None:
    sampler, values = make_sampler(params), expected(params)
    for count, token_id in enumerate(TOKENS):
        assert present(sampler) == values[count]
        assert present(make_sampler(params, TOKENS[:count])) == values[count]
        choose(sampler, token_id)
    assert present(sampler) == values[-1]


def test_the_distribution_is_that_of_the_present_top_p() -> None:
    params = replace(RESETS, top_p=1.0, top_p_min=0.1)
    sampler, values = make_sampler(params), expected(params)
    logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(1)) * 2
    for count, token_id in enumerate(TOKENS):
        ours = sampler.distribution(logits.clone(), torch.tensor([1]), [1])
        assert_same_distribution(ours[0], run(warpers(params, values[count]), [], logits[0]))
        choose(sampler, token_id)
    assert len(set(values)) > 3
