"""DeviceSampler.sample_processed does what the torch sampler does, in Triton's interpreter where there is no
GPU: the same bits of processed logits, tokens, verdicts and state, and the same reports but for rounding.
"""

from random import Random

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.sampling.kernels import Tuning
from engine.sampling.params import NamedSpec, SamplingParams
from tests.engine.sampling.kernel_cases import EOS, Pair, new_row
from tests.engine.sampling.processed_cases import (
    PARAMS,
    PROMPT,
    SMALL,
    VOCAB_SIZE,
    RaisesSeven,
    any_params,
    assert_same,
    likely_logits,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning", "ignore:invalid value encountered:RuntimeWarning"
)


@pytest.mark.parametrize(
    ("dtype", "tuning", "scale", "num_steps"),
    [(torch.float32, SMALL, 1.0, 1), (torch.bfloat16, Tuning(), 4.0, 3), (torch.float16, Tuning(), 0.3, 1)],
)
def test_every_kind_of_row(dtype: torch.dtype, tuning: Tuning, scale: float, num_steps: int) -> None:
    num_rows = len(PARAMS)
    pair = Pair(num_rows + 1, VOCAB_SIZE, num_rows + 2, tuning)
    pair.set_rows([new_row(row, each, limit=3, token_ids=PROMPT) for row, each in enumerate(PARAMS)])
    for seed in range(num_steps):
        order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed)).tolist()
        step = pair.full_step(likely_logits(num_rows, scale, dtype, seed), order, num_padding=2)
        assert_same(step, [PARAMS[row] for row in order])
        pair.assert_same_state()


@settings(deadline=None, max_examples=4, phases=[Phase.explicit, Phase.generate])  # shrinking takes minutes
@given(st.lists(any_params(), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_mixed_rows(params: list[SamplingParams], random: Random) -> None:
    num_rows = len(params)
    pair = Pair(num_rows, VOCAB_SIZE, num_rows)
    prompts = [tuple(random.choices(range(5), k=random.randint(1, 20))) for _ in params]
    pair.set_rows(
        [
            new_row(row, each, generated=random.randrange(len(prompts[row])), token_ids=prompts[row])
            for row, each in enumerate(params)
        ]
    )
    for seed in range(2):
        rows = random.sample(range(num_rows), random.randint(1, num_rows))
        step = pair.full_step(likely_logits(len(rows), 1.5, torch.bfloat16, seed), rows)
        assert_same(step, [params[row] for row in rows])
        pair.assert_same_state()


def test_rows_that_ask_for_nothing_sample_as_in_the_plain_path() -> None:
    params = [PARAMS[0], SamplingParams(temperature=1.0, seed=1), PARAMS[10]]
    pair, plain = Pair(3, VOCAB_SIZE, 3, SMALL), Pair(3, VOCAB_SIZE, 3, SMALL)
    for each in (pair, plain):
        each.set_rows([new_row(row, wanted) for row, wanted in enumerate(params)])
    logits = likely_logits(3, 1.0, torch.bfloat16, 0)
    assert torch.equal(pair.full_step(logits, range(3)).actual, plain.step(logits, range(3)).actual)
    assert torch.equal(pair.actual.state.packed, plain.actual.state.packed)


def test_custom_processors_see_all_other_changes() -> None:
    named = (NamedSpec("raises 7"),)
    params = [
        SamplingParams(logits_processors=named, logit_bias=((7, 2.0),), logprobs=2),
        SamplingParams(logits_processors=named, bad_word_ids=((7,),), min_new_tokens=1),
        SamplingParams(repetition_penalty=1.1),
        SamplingParams(),
    ]
    pair = Pair(4, VOCAB_SIZE, 5, custom=RaisesSeven())
    pair.set_rows([new_row(row, each, token_ids=PROMPT) for row, each in enumerate(params)])
    order = [3, 1, 0, 2]

    def process(processed: Tensor, rows: Tensor) -> None:
        assert rows.tolist() == [*order, -1]
        assert processed[1, [7, EOS]].tolist() == [-torch.inf] * 2
        RaisesSeven.on_device(processed, rows)

    step = pair.full_step(likely_logits(4, 1.0, torch.float32, 0), order, 1, process)
    assert_same(step, [params[row] for row in order])
    pair.assert_same_state()
