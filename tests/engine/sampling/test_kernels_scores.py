"""DeviceSampler.score against a log-softmax and a sort."""

import pytest
import torch

from engine.sampling.kernels import Tuning
from engine.sampling.logprobs import report_tokens
from engine.sampling.report import REPORT_WIDTH, read_reports
from tests.engine.sampling.kernel_cases import DEVICE, Pair, assert_same_reports
from tests.engine.sampling.processed_cases import SMALL, VOCAB_SIZE, likely_logits

pytestmark = pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning", "ignore:invalid value encountered:RuntimeWarning"
)


@pytest.mark.parametrize(("dtype", "tuning"), [(torch.float32, SMALL), (torch.bfloat16, Tuning())])
def test_scores_of_given_tokens(dtype: torch.dtype, tuning: Tuning) -> None:
    pair = Pair(1, VOCAB_SIZE, 5, tuning)
    logits = likely_logits(5, 2.0, dtype, 0)
    logits[1] = 3.0  # all tokens tie
    logits[2, 5:] = -torch.inf
    logits[3, 250:] = logits[3].max() + 1
    token_ids = torch.tensor([0, 299, 4, 17, 250], dtype=torch.int32, device=DEVICE)
    logprobs = logits.float().log_softmax(-1)
    for num_reported in (0, 7, 64):
        expected = report_tokens(logprobs, token_ids.long(), num_reported)
        report = torch.full_like(expected, -7)
        pair.actual.score(logits, token_ids, num_reported, report)
        counts = [num_reported] * 5
        assert_same_reports(
            read_reports(report.cpu().numpy(), counts), read_reports(expected.cpu().numpy(), counts)
        )


def test_more_tokens_are_reported_than_there_are() -> None:
    pair = Pair(1, 5, 1, SMALL)
    logits = torch.tensor([[1.0, 2.0, 5.0, -1.0, 2.0]], device=DEVICE)
    report = torch.zeros(1, REPORT_WIDTH, dtype=torch.int32, device=DEVICE)
    pair.actual.score(logits, torch.zeros(1, dtype=torch.int32, device=DEVICE), 8, report)
    (found,) = read_reports(report.cpu().numpy(), [8])
    assert found is not None
    assert found.token_ids[:5] == (2, 1, 4, 0, 3)
    assert found.logprobs[5:] == (-torch.inf,) * 3
