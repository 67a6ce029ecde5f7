"""Where rows of DeviceSampler.sample_processed end: bad logits, full counters, histories, resets."""

import pytest
import torch

from engine.sampling.params import SamplingParams
from engine.sampling.tables import MAX_SEEN
from scheduler.step import Finish
from tests.engine.sampling.kernel_cases import DEVICE, Pair, assert_same_reports, new_row
from tests.engine.sampling.processed_cases import BEAM, PARAMS, PROMPT, VOCAB_SIZE, likely_logits

pytestmark = pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning", "ignore:invalid value encountered:RuntimeWarning"
)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_bad_rows_end_alone(bad: float) -> None:
    """Unless what is bad is banned."""
    beam = SamplingParams(beam=BEAM)
    params = [SamplingParams(repetition_penalty=2.0), PARAMS[13], beam, PARAMS[8]] * 2
    pair = Pair(8, VOCAB_SIZE, 8)
    pair.set_rows([new_row(row, each, token_ids=PROMPT) for row, each in enumerate(params)])
    logits = likely_logits(8, 1.0, torch.float32, 0)
    logits[:3] = bad
    logits[3, 100] = bad
    step = pair.full_step(logits, range(8))
    assert step.actual[1].tolist() == step.expected[1].tolist()
    assert step.actual[1].tolist() == [Finish.ERROR] * 3 + [Finish.NONE] * 5
    assert torch.equal(step.actual[:, 3:], step.expected[:, 3:])
    assert_same_reports(step.actual_reports[4:], step.expected_reports[4:])
    assert ((step.actual[0] >= 0) & (step.actual[0] < VOCAB_SIZE)).all()


def test_counts_end_where_their_bits_do_and_histories_where_the_row_does() -> None:
    pair = Pair(2, VOCAB_SIZE, 2)
    counts = SamplingParams(frequency_penalty=0.001, logit_bias=((7, 90.0),))
    keeps = SamplingParams(no_repeat_ngram_size=2)
    pair.set_rows(
        [
            new_row(0, counts, generated=MAX_SEEN - 1, token_ids=(7,) * MAX_SEEN),
            new_row(1, keeps, token_ids=tuple(range(63))),
        ]
    )
    for seed in range(3):
        step = pair.full_step(likely_logits(2, 1.0, torch.float32, seed), [0, 1])
        assert torch.equal(step.actual, step.expected)
        assert step.actual[0, 0] == 7
        pair.assert_same_state()
    assert pair.actual.tables.seen[0, 7] == MAX_SEEN | 1 << 16


def test_top_p_returns_to_its_first_value() -> None:
    params = SamplingParams(
        temperature=1.0, top_p=0.9, top_p_decay=0.5, top_p_min=0.2, top_p_reset_id=7, seed=1
    )
    pair = Pair(1, VOCAB_SIZE, 1)
    pair.set_rows([new_row(0, params)])
    tokens = []
    for likely in (5, 5, 5, 7, 5):
        logits = torch.zeros(1, VOCAB_SIZE, device=DEVICE)
        logits[0, likely] = 50.0
        tokens.append(int(pair.step(logits, [0]).actual[0, 0]))
        pair.assert_same_state()
    assert tokens == [5, 5, 5, 7, 5]
