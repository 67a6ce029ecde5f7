"""Log-probabilities on the device, packed for the host: see `report`."""

import torch
from torch import Tensor

from engine.sampling.report import MAX_CANDIDATES, REPORT_WIDTH

_TOP_IDS = 1
_TOP_VALUES = 1 + MAX_CANDIDATES


def score(logits: Tensor, token_ids: Tensor, num_top: int) -> Tensor:
    """Reports, int32 [n, REPORT_WIDTH], of one token a row and of the num_top most likely ones, by what the
    model itself makes of them.

    logits: float32 [n, vocab_size]. token_ids: int64 [n].
    """
    return report_tokens(torch.log_softmax(logits, -1), token_ids, num_top)


def report_tokens(logprobs: Tensor, token_ids: Tensor, num_top: int) -> Tensor:
    """`score` of logits whose log-softmax is known: float32 [n, vocab_size]."""
    report = report_best(logprobs, num_top)
    chosen = logprobs.gather(1, token_ids.unsqueeze(1))
    report[:, :1] = chosen.view(torch.int32)
    return report


def report_best(scores: Tensor, num_top: int) -> Tensor:
    """Reports, int32 [n, REPORT_WIDTH], of the num_top best tokens; the first word is 0.0.

    scores: float32 [n, vocab_size]. Where the vocabulary has fewer tokens, some id with -inf stands for the
    rest.
    """
    num_top = min(num_top, MAX_CANDIDATES)
    report = torch.zeros(len(scores), REPORT_WIDTH, dtype=torch.int32, device=scores.device)
    if num_top == 0:
        return report
    report.view(torch.float32)[:, _TOP_VALUES : _TOP_VALUES + num_top] = -torch.inf
    num_found = min(num_top, scores.shape[1])
    token_ids = best(scores, num_found)
    report[:, _TOP_IDS : _TOP_IDS + num_found] = token_ids.int()
    values = scores.gather(1, token_ids).view(torch.int32)
    report[:, _TOP_VALUES : _TOP_VALUES + num_found] = values
    return report


def best(scores: Tensor, num: int) -> Tensor:
    """Token ids of the largest scores, int64 [n, num], best first; of equal ones the lowest id first, which
    torch.topk does not promise.

    scores: float32 [n, vocab_size].
    """
    # The bits of floats, read as integers, are in the order of their values, reversed for negative ones.
    # Adding zero turns the negative zero positive.
    bits = (scores + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    ids = torch.arange(scores.shape[1], device=scores.device)
    return ((ordered.long() << 32) - ids).topk(num, dim=1).indices
