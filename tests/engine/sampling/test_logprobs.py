"""Reports against torch.log_softmax and sorting."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling.logprobs import best, score
from engine.sampling.params import MAX_LOGPROBS, SamplingParams
from engine.sampling.report import REPORT_WIDTH, read_reports
from engine.sampling.sampler import Sampled, Sampler
from scheduler.beams import BeamParams
from scheduler.step import Finish, NewRow, TokenLogprobs

CPU = torch.device("cpu")
VOCAB_SIZE = 300
EOS = 2

values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, -3.5, float("-inf"), 7.0])


def make_sampler(*params: SamplingParams) -> Sampler:
    sampler = Sampler(len(params), VOCAB_SIZE, 64, (EOS,), CPU)
    sampler.set_rows([NewRow(row, 2, 1, 0, (), 100, each, row, (5, 6, 7)) for row, each in enumerate(params)])
    return sampler


def make_logits(num_rows: int, vocab_size: int = VOCAB_SIZE) -> torch.Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(num_rows)) * 3


def read(sampled: Sampled, num_reported: list[int]) -> list[TokenLogprobs | None]:
    assert sampled.report is not None
    assert sampled.report.shape == (len(num_reported), REPORT_WIDTH)
    return read_reports(sampled.report.numpy(), num_reported)


def assert_reports(report: TokenLogprobs | None, logits: torch.Tensor, token_id: int, num_top: int) -> None:
    assert report is not None
    log_probs = logits.log_softmax(-1)
    top = log_probs.sort(descending=True, stable=True)
    assert report.logprob == log_probs[token_id].item()
    assert report.token_ids == tuple(top.indices[:num_top].tolist())
    assert report.logprobs == tuple(top.values[:num_top].tolist())


@settings(deadline=None)
@given(st.lists(values, min_size=1, max_size=50), st.integers(0, 50))
def test_the_best_come_first_and_of_equals_the_lowest_id(scores: list[float], num: int) -> None:
    num = min(num, len(scores))
    ids = best(torch.tensor([scores, scores[::-1]]), num).tolist()
    for order, row in ((scores, ids[0]), (scores[::-1], ids[1])):
        assert row == sorted(range(len(scores)), key=lambda token_id: (-order[token_id], token_id))[:num]


def test_rows_report_the_model_s_distribution_whatever_changes_logits() -> None:
    asks = [0, -1, 3, MAX_LOGPROBS, 1, -1]
    params = [
        SamplingParams(logprobs=0, logit_bias=((5, 60.0),)),
        SamplingParams(),
        SamplingParams(logprobs=3, temperature=2.0, seed=1, allowed_token_ids=(7, 8, 9)),
        SamplingParams(logprobs=MAX_LOGPROBS, repetition_penalty=3.0),
        SamplingParams(logprobs=1, temperature=1.0, top_p=0.5, seed=2),
        SamplingParams(temperature=1.0, seed=2),
    ]
    logits = make_logits(len(params))
    sampled = make_sampler(*params).sample(logits.clone(), torch.arange(len(params)), range(len(params)))
    for row, report in enumerate(read(sampled, asks)):
        if asks[row] < 0:
            assert report is None
        else:
            assert_reports(report, logits[row], int(sampled.token_ids[row]), asks[row])
    assert int(sampled.token_ids[0]) == 5
    assert int(sampled.token_ids[2]) in (7, 8, 9)


def test_nothing_is_reported_when_nobody_asks() -> None:
    sampled = make_sampler(SamplingParams(), SamplingParams()).sample(
        make_logits(2), torch.arange(2), range(2)
    )
    assert sampled.report is None


def test_outputs_to_choose_from_report_their_own() -> None:
    params = SamplingParams(temperature=1.0, seed=3, best_of=4, num_outputs=2)
    logits = make_logits(1)
    sampled = make_sampler(params).sample(logits.clone(), torch.tensor([0]), [0])
    (report,) = read(sampled, [0])
    assert_reports(report, logits[0], int(sampled.token_ids), 0)


@pytest.mark.parametrize("bias", [0.0, 3.0])
def test_beam_rows_report_their_best_processed_scores(bias: float) -> None:
    beam = SamplingParams(
        beam=BeamParams(4, stop_token_ids=(EOS,)), logit_bias=((9, bias), (EOS, bias)), bad_word_ids=((11,),)
    )
    logits = make_logits(3)
    logits[:, 11] = 30.0
    params = (beam, SamplingParams(logprobs=2), beam)
    sampled = make_sampler(*params).sample(logits.clone(), torch.arange(3), range(3))
    num_candidates = beam.beam.num_candidates if beam.beam else 0
    reports = read(sampled, [num_candidates, 2, num_candidates])
    assert_reports(reports[1], logits[1], int(sampled.token_ids[1]), 2)
    for row in (0, 2):
        scores = logits[row].log_softmax(-1)
        scores[[9, EOS]] += bias
        scores[11] = -torch.inf
        top = scores.sort(descending=True, stable=True)
        assert reports[row] == TokenLogprobs(
            0.0, tuple(top.indices[:num_candidates].tolist()), tuple(top.values[:num_candidates].tolist())
        )
    assert sampled.finishes.tolist() == [Finish.NONE] * 3


def test_more_candidates_than_tokens_are_impossible_ones() -> None:
    logits = make_logits(2, 4)
    (first, second) = read_reports(score(logits, torch.tensor([3, 0]), 6).numpy(), [6, 6])
    assert first is not None
    assert second is not None
    assert first.logprobs[4:] == (-np.inf, -np.inf)
    assert sorted(first.token_ids[:4]) == [0, 1, 2, 3]
    assert second.logprob == logits[1].log_softmax(-1)[0].item()


def test_a_bad_row_reports_something_and_others_do_not_notice() -> None:
    logits = make_logits(2)
    bad = logits.clone()
    bad[0, 7] = torch.nan
    params = SamplingParams(logprobs=4)
    sampled = make_sampler(params, params).sample(bad, torch.arange(2), range(2))
    reports = read(sampled, [4, 4])
    assert sampled.finishes.tolist() == [Finish.ERROR, Finish.NONE]
    assert reports[0] is not None
    assert all(0 <= token_id < VOCAB_SIZE for token_id in reports[0].token_ids)
    assert_reports(reports[1], logits[1], int(sampled.token_ids[1]), 4)
