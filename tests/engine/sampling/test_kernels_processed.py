"""DeviceSampler.sample_processed does what the torch sampler does, in Triton's interpreter where there is no
GPU: the same bits of processed logits, tokens, verdicts and state, and the same reports but for rounding.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from engine.sampling.kernels import Tuning
from engine.sampling.params import SamplingParams
from scheduler.beams import BeamParams
from tests.engine.sampling.kernel_cases import (
    DEVICE,
    EOS,
    FullStep,
    Pair,
    assert_same_reports,
    new_row,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning", "ignore:invalid value encountered:RuntimeWarning"
)

VOCAB_SIZE = 300
SMALL = Tuning(block=16, chunk=4, tile=8, few=32, span=64)
PROMPT = (1, 2, 3, 4, 1, 2, 3, 5, 1, 2)
BIASES = tuple((token_id, (-1) ** token_id * 3.0) for token_id in range(0, VOCAB_SIZE, 7))
BEAM = BeamParams(width=3, stop_token_ids=(EOS,))
PARAMS = [
    SamplingParams(),
    SamplingParams(repetition_penalty=1.3),
    SamplingParams(presence_penalty=0.7, frequency_penalty=0.4, penalize_prompt=True, logprobs=0),
    SamplingParams(
        repetition_penalty=0.7, presence_penalty=-0.3, frequency_penalty=1.7, penalize_prompt=False,
        temperature=0.9, top_p=0.8, seed=1,
    ),
    SamplingParams(no_repeat_ngram_size=1),
    SamplingParams(no_repeat_ngram_size=3, logprobs=5),
    SamplingParams(logit_bias=BIASES, repetition_penalty=1.5, temperature=1.5, typical_p=0.7, seed=2),
    SamplingParams(bad_word_ids=((9,), (2, 3), (7, 3), (1, 2, 4), (*PROMPT[1:], 6), PROMPT * 2, (EOS,))),
    SamplingParams(allowed_token_ids=(1, 31, 32, 63, 299), logit_bias=((63, 2.5), (7, 9.0)), logprobs=20),
    SamplingParams(beam=BEAM, logit_bias=((11, 4.0),), repetition_penalty=1.2, no_repeat_ngram_size=2),
    SamplingParams(temperature=1.0, top_k=40, top_p=0.9, typical_p=0.3, seed=3),
    SamplingParams(temperature=1.0, top_p=0.9, top_p_decay=0.5, top_p_min=0.3, top_p_reset_id=3, seed=4),
    SamplingParams(min_new_tokens=2, stop_token_ids=(5, 3), frequency_penalty=0.1, logprobs=3),
    SamplingParams(
        logit_bias=((3, 5.0),), repetition_penalty=1.1, presence_penalty=0.1, no_repeat_ngram_size=2,
        bad_word_ids=((4,), (3, 1)), min_new_tokens=2, allowed_token_ids=tuple(range(200)), temperature=2.0,
        top_k=100, top_p=0.95, min_p=0.001, typical_p=0.9, seed=5, logprobs=20,
    ),
]  # fmt: skip


def likely_logits(num_rows: int, scale: float, dtype: torch.dtype, seed: int) -> Tensor:
    """Tokens of the prompt are among the most likely ones."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, VOCAB_SIZE, generator=generator) * scale
    logits[:, :10] += 2 * scale
    return logits.to(dtype).to(DEVICE)


def assert_same(step: FullStep, params: Sequence[SamplingParams]) -> None:
    assert torch.equal(step.actual, step.expected)
    assert_same_reports(step.actual_reports, step.expected_reports)
    # A log-softmax comes first in rows of a beam search.
    is_beam = torch.tensor([each.beam is not None for each in params], device=DEVICE)
    assert torch.equal(step.actual_processed[~is_beam], step.expected_processed[~is_beam])
    torch.testing.assert_close(
        step.actual_processed[is_beam], step.expected_processed[is_beam], rtol=1e-5, atol=1e-5
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
