"""Each processor equals that of transformers on random logits, and so do all combinations of three."""

from itertools import combinations
from typing import Any

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.sampling.params import SamplingParams
from engine.sampling.sampler import Sampler
from scheduler.step import NewRow
from tests.engine.sampling.transformers_cases import (
    EOS,
    assert_same_distribution,
    distribution,
    processors,
    run,
)

NO_SHRINKING = [Phase.explicit, Phase.reuse, Phase.generate]  # it takes minutes
CPU = torch.device("cpu")
VOCAB_SIZE = 45  # not a multiple of 32
MAX_MODEL_LEN = 40

# Few of them, so that n-grams and words do recur.
token = st.integers(0, 6)
any_token = st.integers(0, VOCAB_SIZE - 1)
stops = st.lists(any_token, min_size=1, max_size=3).map(tuple)
FEATURES: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "bias": st.dictionaries(any_token, st.floats(-5, 5, width=32), min_size=1, max_size=9).map(
        lambda biases: {"logit_bias": tuple(biases.items())}
    ),
    "repetition": st.fixed_dictionaries(
        {
            "repetition_penalty": st.sampled_from([0.4, 0.9, 1.1, 1.3, 4.0]),
            "penalize_prompt": st.sampled_from([None, True, False]),
        }
    ),
    "ngram": st.integers(1, 5).map(lambda size: {"no_repeat_ngram_size": size}),
    "bad words": st.lists(st.lists(token, min_size=1, max_size=4).map(tuple), min_size=1, max_size=6).map(
        lambda words: {"bad_word_ids": tuple(words)}
    ),
    "min new tokens": st.fixed_dictionaries({"min_new_tokens": st.integers(1, 8), "stop_token_ids": stops}),
    "allowed": st.sets(any_token, min_size=1).map(lambda ids: {"allowed_token_ids": tuple(ids)}),
    "temperature": st.sampled_from([0.6, 0.8, 1.7, 3.0]).map(lambda value: {"temperature": value}),
    "top_k": st.integers(2, VOCAB_SIZE + 1).map(lambda value: {"top_k": value}),
    "top_p": st.sampled_from([0.05, 0.4, 0.9, 0.98]).map(lambda value: {"top_p": value}),
    "min_p": st.sampled_from([0.003, 0.02, 0.1, 0.6]).map(lambda value: {"min_p": value}),
    "typical": st.sampled_from([0.05, 0.3, 0.7, 0.95]).map(lambda value: {"typical_p": value}),
}
CASES = [names for size in range(4) for names in combinations(FEATURES, size)]
BEFORE_TEMPERATURE = list(FEATURES)[:6]


def params_of(features: dict[str, dict[str, Any]], names: tuple[str, ...]) -> SamplingParams:
    fields: dict[str, Any] = {"temperature": 1.0, "seed": 0}
    for name in names:
        fields.update(features[name])
    return SamplingParams(**fields)


def make_sampler(params: list[SamplingParams], prompt: list[int], output: list[int]) -> Sampler:
    sampler = Sampler(len(params), VOCAB_SIZE, MAX_MODEL_LEN, (EOS,), CPU)
    token_ids = (*prompt, *output)
    sampler.set_rows(
        [
            NewRow(row, len(prompt), len(output), 0, (), 99, each, row, token_ids)
            for row, each in enumerate(params)
        ]
    )
    return sampler


def make_logits(num_rows: int, seed: int, scale: float) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * scale


@settings(deadline=None, phases=NO_SHRINKING, max_examples=40)
@given(
    st.fixed_dictionaries(FEATURES),
    st.lists(token, min_size=1, max_size=16),
    st.lists(token, max_size=16),
    st.integers(0, 2**32),
    st.sampled_from([0.5, 2.0, 4.0]),
)
def test_combinations_up_to_three_in_one_batch(
    features: dict[str, dict[str, Any]], prompt: list[int], output: list[int], seed: int, scale: float
) -> None:
    params = [params_of(features, names) for names in CASES]
    sampler = make_sampler(params, prompt, output)
    logits = make_logits(len(params), seed, scale)
    ours = sampler.distribution(logits.clone(), torch.arange(len(params)), range(len(params)))
    for row, each in enumerate(params):
        scores = distribution(each, prompt + output, len(prompt), logits[row])
        assert_same_distribution(ours[row], scores)


@settings(deadline=None, phases=NO_SHRINKING, max_examples=60)
@given(
    st.fixed_dictionaries(FEATURES),
    st.sets(st.sampled_from(BEFORE_TEMPERATURE)),
    st.lists(token, min_size=1, max_size=16),
    st.lists(token, max_size=16),
    st.integers(0, 2**32),
)
def test_what_precedes_the_temperature_has_the_same_bits(
    features: dict[str, dict[str, Any]], names: set[str], prompt: list[int], output: list[int], seed: int
) -> None:
    params = params_of(features, tuple(name for name in BEFORE_TEMPERATURE if name in names))
    sampler = make_sampler([params], prompt, output)
    logits = make_logits(1, seed, 3.0)
    expected = run(processors(params, len(prompt), VOCAB_SIZE), prompt + output, logits[0])
    sampler.sample(logits, torch.tensor([0]), [0])
    assert torch.equal(logits[0], expected)


@settings(deadline=None, phases=NO_SHRINKING, max_examples=20)
@given(
    st.fixed_dictionaries(FEATURES),
    st.lists(st.sets(st.sampled_from(list(FEATURES)), max_size=5), min_size=6, max_size=6),
    st.lists(token, min_size=1, max_size=8),
    st.integers(0, 2**32),
)
def test_step_after_step(
    features: dict[str, dict[str, Any]], wishes: list[set[str]], prompt: list[int], seed: int
) -> None:
    """Counts, histories and numbers of tokens advance on the device."""
    params = [params_of(features, tuple(sorted(names))) for names in wishes]
    sampler = make_sampler(params, prompt, [])
    known = [list(prompt) for _ in params]
    rows = torch.arange(len(params))
    for step in range(12):
        logits = make_logits(len(params), seed + step, 1.0)
        logits[:, :7] += 3.0
        ours = sampler.distribution(logits.clone(), rows, range(len(params)))
        for row, each in enumerate(params):
            scores = distribution(each, known[row], len(prompt), logits[row])
            assert_same_distribution(ours[row], scores)
        sampled = sampler.sample(logits, rows, range(len(params)))
        for tokens, token_id in zip(known, sampled.token_ids.tolist(), strict=True):
            tokens.append(token_id)
